"""A LoRA adapter that was trained elsewhere, to which a posterior is added."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
from peft.utils.other import ModulesToSaveWrapper
from safetensors import SafetensorError, safe_open
from torch import nn

from bayes_lora.errors import AdapterError
from bayes_lora.experiments.networks.base_models import BaseModel
from bayes_lora.files import sha256_of

_CONFIG_FILE, _WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names


@dataclass(frozen=True)
class TrainedAdapter:
    """A folder that PEFT's save_pretrained wrote, and the checksums of what was in it."""

    folder: str
    sha256: dict[str, str]

    @classmethod
    def of(cls, folder: Path) -> "TrainedAdapter":
        """The adapter in a folder.

        Raises:
            AdapterError: no LoRA adapter in PEFT's layout there, or its weights are a pickle.
        """
        folder = folder.expanduser()
        kind = _read_config(folder).get("peft_type")
        if kind != "LORA":
            raise AdapterError(f"{folder} holds an adapter of type {kind}. Give a LoRA adapter.")
        if not (folder / _WEIGHTS_FILE).is_file():
            raise AdapterError(
                f"{folder} has no {_WEIGHTS_FILE}. Write it with save_pretrained(folder), which saves safetensors; "
                "weights in the old adapter_model.bin are a pickle and are not opened."
            )
        return cls(str(folder.resolve()), _checksums(folder))

    @property
    def base_model(self) -> str:
        """The name or path of the base model that the adapter says it was trained on."""
        return str(_read_config(Path(self.folder)).get("base_model_name_or_path") or "")

    def check_unchanged(self) -> None:
        """Raise AdapterError if a file is gone or is another than it was when this was made."""
        folder = Path(self.folder)
        _read_config(folder)
        if not (folder / _WEIGHTS_FILE).is_file() or _checksums(folder) != self.sha256:
            raise AdapterError(
                f"the adapter in {folder} has changed since the run was started, so it cannot be resumed. "
                "Start a new run."
            )


def load_adapter(base: BaseModel, adapter: TrainedAdapter) -> Any:
    """The base network as a PEFT model with this adapter; its parameters are trainable, as after training.

    Raises:
        AdapterError: the adapter does not fit the network, or lacks weights, which would start at random: of LoRA, or
            of a module that the base model lacks, such as the task head.
    """
    folder = Path(adapter.folder)
    adapter.check_unchanged()
    name = type(base.network).__name__
    remedy = (
        f"Give the base model it was trained on with --base-model (it names {adapter.base_model!r}), and a task with "
        "as many classes."
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)  # an error below
            network = peft.PeftModel.from_pretrained(base.network, adapter.folder, is_trainable=True)
        expected = set(peft.get_peft_model_state_dict(network))
        with safe_open(str(folder / _WEIGHTS_FILE), "pt") as file:
            found = set(file.keys())
    except (RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise AdapterError(f"the adapter in {folder} does not fit {name}: {reason}. {remedy}") from error
    if expected != found:
        odd = sorted(expected ^ found)
        raise AdapterError(
            f"the adapter in {folder} does not fit {name}: {len(odd)} weights are in one of the two only, such as "
            f"{odd[0]}. {remedy}"
        )
    for module in base.new_modules:
        if not _travels(network, module):
            raise AdapterError(
                f"neither the base model nor the adapter in {folder} has weights for {module!r}, so they would be "
                f"random. Give the base model with its head, or train the adapter with modules_to_save=[{module!r}]."
            )
    return network


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{folder} holds no PEFT adapter: {_CONFIG_FILE} is missing or damaged ({error}). "
            "Give the folder that save_pretrained wrote."
        ) from error
    return config if isinstance(config, dict) else {}


def _checksums(folder: Path) -> dict[str, str]:
    return {name: sha256_of(folder / name) for name in (_CONFIG_FILE, _WEIGHTS_FILE)}


def _travels(network: nn.Module, path: str) -> bool:
    """Whether the module at this path of the base is one that PEFT saves with the adapter, or lies in one."""
    inside = f"base_model.model.{path}."
    return any(
        isinstance(module, ModulesToSaveWrapper) and inside.startswith(f"{name}.")
        for name, module in network.named_modules()
    )
