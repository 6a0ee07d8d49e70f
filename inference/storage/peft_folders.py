"""PEFT's files in the folder of a posterior: adapter "default" at its top, any other in a folder of its own name."""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn

from bayes_lora.adapters.initialization import rewrites_base
from bayes_lora.errors import PosteriorFileError
from bayes_lora.inference.storage.posterior_files import ADAPTER_CONFIG_FILE, ADAPTER_FILE, FIRST_ADAPTER
from bayes_lora.models import BayesianLoRA


def active_adapters(model: BayesianLoRA) -> list[str]:
    """Names of the PEFT adapters that a posterior is of, in the order in which they are active.

    Raises:
        PosteriorFileError: PEFT would not find them again where it writes them.
    """
    posterior_of = {adapter.key for adapter in model.sites.adapters}
    found = [key for key in model.sites.adapters[0].layer.active_adapters if key in posterior_of]
    if FIRST_ADAPTER not in found:
        raise PosteriorFileError(
            f"the posterior is of adapters {sorted(found)}; PEFT opens a folder by the adapter named 'default', and "
            "the others beside it. Build the network with get_peft_model(..., adapter_name='default')."
        )
    return found


def place(folder: Path, adapter: str) -> Path:
    """Where PEFT writes this adapter."""
    return folder if adapter == FIRST_ADAPTER else folder / adapter


@contextmanager
def whole_biases() -> Iterator[None]:
    """Keep PEFT from warning that LoRA-B's biases are shards; weights that are sharded are refused before."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LoRA tensor.* have invalid shape", UserWarning)
        yield


def open_adapters(base_network: nn.Module, folder: Path, adapters: Sequence[str], *, is_trainable: bool) -> PeftModel:
    """The network with these adapters, active in this order."""
    network = PeftModel.from_pretrained(base_network, str(folder), is_trainable=is_trainable)
    others = [adapter for adapter in adapters if adapter != FIRST_ADAPTER]
    for adapter in others:
        network.load_adapter(str(place(folder, adapter)), adapter_name=adapter, is_trainable=is_trainable)
    if others:
        network.base_model.set_adapter(list(adapters), inference_mode=not is_trainable)
    return network


def carried(folder: Path, adapters: Sequence[str]) -> set[str]:
    """Names of the tensors in the adapters' files: they come with them, so the base network's own do not count.

    Raises:
        PosteriorFileError: one is no safetensors file.
    """
    return {name for adapter in adapters for name in shapes(place(folder, adapter) / ADAPTER_FILE)}


def rewritten(folder: Path, adapters: Sequence[str], adapted: Sequence[str]) -> set[str]:
    """Names of the base weights that the adapters' initializations change, now and when they are opened.

    Args:
        folder: of the posterior.
        adapters: those of PEFT.
        adapted: names of the LoRA-A matrices, see `LatentSites.names`.
    """
    paths = [place(folder, adapter) / ADAPTER_CONFIG_FILE for adapter in adapters]
    configs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if not any(rewrites_base(config.get("init_lora_weights")) for config in configs):
        return set()
    return {f"{name.partition('[')[0]}.weight" for name in adapted}


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor in a file, from its header alone."""
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise PosteriorFileError(f"{path} is no safetensors file: {error}. Save the posterior again.") from error


def require_all(folder: Path, network: PeftModel, adapters: Sequence[str]) -> None:
    """Every weight was in the files: PEFT leaves at random what it does not find there.

    Raises:
        PosteriorFileError: one was not.
    """
    for adapter in adapters:
        path = place(folder, adapter) / ADAPTER_FILE
        with whole_biases():
            wanted = get_peft_model_state_dict(network, adapter_name=adapter, save_embedding_layers=False)
        missing = set(wanted) - set(shapes(path))
        if missing:
            raise PosteriorFileError(
                f"{path} lacks {sorted(missing)[:3]}, which the network has: the file is of another network, or its "
                "tensors were renamed. Save the posterior again."
            )
