"""Tasks, studies, benchmarks and reports, and the command line that runs them."""

import logging

# It warns on import that a kernel package is missing, whether or not anything is quantized.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
