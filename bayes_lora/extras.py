"""Packages that only a part of the library needs, and that an extra installs."""

from importlib.util import find_spec

from bayes_lora.errors import MissingExtraError


def require_extra(extra: str, what: str, *modules: str) -> None:
    """Raise unless the packages of an extra are installed.

    Args:
        extra: its name in pyproject.toml.
        what: needs it.
        modules: their import names.

    Raises:
        MissingExtraError: names those that are missing, and how they are installed.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"{what} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed. Run: "
            f"pip install 'bayes-lora[{extra}]'"
        )
