"""Where `bayes-lora` starts: before its packages are imported, whether they are there."""

import sys

from bayes_lora.errors import MissingExtraError
from bayes_lora.extras import require_extra

_PACKAGES = ("typer", "datasets", "joblib", "filelock", "pyarrow", "arviz", "xarray", "pandas", "matplotlib")


def main() -> None:
    """Run the command line; without its packages, say how to install them."""
    try:
        require_extra("cli", "The command line", *_PACKAGES)
    except MissingExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    from bayes_lora.experiments.command_line.main import main as run

    run()
