"""Base models that have a short name: each is one file of this room, which holds a `NamedModel` as its `BASE_MODEL`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from bayes_lora.discovery import modules_of
from bayes_lora.errors import BaseModelError, ConfigurationError
from bayes_lora.experiments import networks


@dataclass(frozen=True)
class NamedModel:
    """A base model with a short name.

    Attributes:
        name: the short name.
        find: gives the folder or the hub name to load it from; raises ImportError where a package is missing.
        on_the_hub: what it is called on the Hugging Face hub, where it is there: it comes from there where its package
            is missing, and a model card links to it.
        install: the command that installs its package, where it comes as one.
    """

    name: str
    find: Callable[[], str]
    on_the_hub: str | None = None
    install: str | None = None

    def locate(self) -> str:
        """The folder or the hub name to load it from.

        Raises:
            BaseModelError: its package is not installed, and it is not on the hub.
        """
        try:
            return self.find()
        except ImportError as error:
            if self.on_the_hub is not None:
                return self.on_the_hub
            raise BaseModelError(
                f"The base model {self.name!r} comes with a package that is not installed. Run: {self.install}. "
                "Or give a hub name or a folder."
            ) from error


@cache
def named_models() -> dict[str, NamedModel]:
    """Every base model that has a short name, by that name.

    Raises:
        ConfigurationError: two files give the same name.
    """
    found: dict[str, NamedModel] = {}
    for module in modules_of(networks):
        model = getattr(module, "BASE_MODEL", None)
        if isinstance(model, NamedModel):
            if model.name in found:
                raise ConfigurationError(f"{module.__name__}: the name {model.name!r} is taken. Choose another.")
            found[model.name] = model
    return found


def base_model_help() -> str:
    """What ``--base-model`` takes."""
    return f"Hub name, local folder, or {' or '.join(named_models())}."
