"""Base models: what a name given as ``--base-model`` stands for, and the network and processor behind it."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from bayes_lora.errors import BaseModelError, ConfigurationError, MissingExtraError
from bayes_lora.experiments.families.family import TaskFamily, task_family
from bayes_lora.experiments.networks.named_models import named_models


class BaseModel(NamedTuple):
    """A network with a task head, what makes its inputs, and the paths of its modules that start at random.

    The processor is its tokenizer, image processor or feature extractor.
    """

    network: PreTrainedModel
    processor: Any
    new_modules: tuple[str, ...]


def resolve_base_model(name: str) -> str:
    """Where to load a base model from: a folder, or a name on the Hugging Face hub.

    Args:
        name: a short name, see `named_models`; a folder with a saved model; anything else is taken as a hub name.

    Raises:
        BaseModelError: the package is missing, the folder holds no model, or the path does not exist.
    """
    named = named_models().get(name)
    if named is not None:
        return named.locate()
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            adapter = (
                " It holds a PEFT adapter: give the model that adapter was trained on."
                if (path / "adapter_config.json").is_file()
                else ""
            )
            raise BaseModelError(
                f"The folder {path} has no config.json, so it holds no base model.{adapter} Give the folder that "
                "save_pretrained wrote."
            )
        return str(path)
    # A hub name is "model" or "owner/model"; asking the hub for a path would only delay the error.
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BaseModelError(
            f"The base model {name!r} looks like a path, but there is no such folder. Check its spelling; relative "
            f"paths start from {Path.cwd()}."
        )
    return name


def load_base_model(name: str, label_names: Sequence[str], task_type: str = "classification") -> BaseModel:
    """A network with a new head for a task, its processor, and which of its modules are new.

    Args:
        name: as `resolve_base_model` takes it.
        label_names: (class,) what the class ids mean.
        task_type: the name of a `TaskFamily`, which says what the head and the inputs are.

    Raises:
        TaskError: an unknown type.
        ConfigurationError: label names that do not suit it, such as fewer than two classes.
        BaseModelError: the model cannot be found or opened, or is of another kind than the task.
    """
    family = task_family(task_type)
    fault = family.check_names(label_names)
    if fault is not None:
        raise ConfigurationError(f"label_names={tuple(label_names)!r}: the task {fault}.")
    source, inputs = resolve_base_model(name), family.inputs
    try:
        _check_kind(name, source, family)
        processor = inputs.load_processor(source)
        network, new_modules = _load_network(source, family, label_names)
    except (BaseModelError, MissingExtraError):
        raise
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise BaseModelError(
            f"The base model {name!r} could not be loaded as {inputs.network} ({type(error).__name__}: {error}). "
            "Check the spelling and the network connection, or give a local folder that save_pretrained wrote, or "
            f"{' or '.join(map(repr, inputs.suggested or named_models()))}."
        ) from error
    unsuited = family.network_fault(network, new_modules)
    if unsuited is not None:
        raise BaseModelError(f"The base model {name!r} {unsuited}.")
    inputs.settle(name, network, processor)
    return BaseModel(network, processor, new_modules)


def _check_kind(name: str, source: str, family: TaskFamily) -> None:
    # What transformers says itself is that a file is missing, or the names of all models that it has.
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    if type(config) not in family.auto_class()._model_mapping:
        known = family.inputs.suggested or named_models()
        raise BaseModelError(
            f"The base model {name!r} is of type {config.model_type!r}, and transformers has none of that type that is "
            f"{family.inputs.network}. Give another with --base-model, such as {' or '.join(known)}."
        )


class _HeldReports(logging.Filter):
    """Keeps transformers' load reports from the terminal until it is known what they say."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        held = "LOAD REPORT" in record.getMessage()
        if held:
            self.records.append(record)
        return not held


def _load_network(
    source: str, family: TaskFamily, label_names: Sequence[str]
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The network and its new modules, without the report that its head is new: that is so for every base model.

    A report is passed on where it says more: that the checkpoint lacks weights of the transformer itself, or that its
    head for another number of classes was replaced. Every other message comes through as ever, and a download keeps
    its progress bars.
    """
    logger = logging.getLogger("transformers.modeling_utils")
    held = _HeldReports()
    bars = Path(source).is_dir() and transformers_logging.is_progress_bar_enabled()
    if bars:
        transformers_logging.disable_progress_bar()
    logger.addFilter(held)
    expected = False
    try:
        network: PreTrainedModel
        network, report = family.auto_class().from_pretrained(
            source,
            **family.head(label_names),
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # a head for another number of classes is replaced; all else is refused
            output_loading_info=True,
        )
        inside = f"{network.base_model_prefix}."
        misshapen = [key for key, *_ in report["mismatched_keys"]]
        of_transformer = sorted(key for key in misshapen if key.startswith(inside))  # they come as a set
        if of_transformer:
            raise ValueError(f"its weights do not fit its config.json: {', '.join(of_transformer[:3])}")
        new_modules = _owners([*report["missing_keys"], *misshapen], inside)
        expected = not misshapen and not any(key.startswith(inside) for key in report["missing_keys"])
    finally:
        logger.removeFilter(held)
        if bars:
            transformers_logging.enable_progress_bar()
        if not expected:
            for record in held.records:
                logger.handle(record)
    return network, new_modules


def _owners(keys: Iterable[str], inside: str) -> tuple[str, ...]:
    """The modules that these parameters belong to.

    Of a head it is the whole, also where the checkpoint has parts of it; inside the transformer, all else of which is
    trained already, it is the very module.
    """
    owners = (key.rpartition(".")[0] if key.startswith(inside) else key.partition(".")[0] for key in sorted(keys))
    return tuple(dict.fromkeys(owners))
