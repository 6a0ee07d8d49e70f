"""Tasks, studies, benchmarks and reports, and the command line that runs them."""

import logging
import warnings

# It warns on import that a kernel package is missing, whether or not anything is quantized.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def ignore_known_warnings() -> None:
    """For the processes of the command line: what nobody who runs it can act on."""
    # peft asks transformers by a name that its next major version drops.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # loky replaces a worker that has grown by 300 MB, as one does that trains; its job is done by then.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given", category=UserWarning)
