"""LoRA adapters on a base model: which modules get one, and which are new and trained in full."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import peft
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from bayes_lora.errors import ConfigurationError

# Module names of attention's query, key and value projections: BERT and its kin; LLaMA, OPT, Qwen, Mistral; GPT-2;
# GPT-NeoX, Falcon, BLOOM; T5; DistilBERT; DeBERTa; MPT and others with one fused projection.
_ATTENTION = {
    *("query", "key", "value"),
    *("q_proj", "k_proj", "v_proj", "qkv_proj"),
    *("query_proj", "key_proj", "value_proj"),
    *("q_lin", "k_lin", "v_lin"),
    *("q", "k", "v"),
    *("c_attn", "query_key_value", "qkv", "Wqkv"),
}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# PEFT trains and saves every module of a sequence classifier whose path ends so.
_PEFT_HEADS = ("classifier", "score")


@dataclass(frozen=True)
class LoRAOptions:
    """The LoRA adapter itself: rank, alpha, dropout, and which modules (see `lora_targets`)."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: str = "attention"

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise ConfigurationError(
                f"rank={self.rank} and alpha={self.alpha} must be at least 1, dropout={self.dropout} in [0, 1)."
            )


def add_lora(
    network: nn.Module,
    new_modules: Sequence[str],
    options: LoRAOptions,
    config: type[peft.LoraConfig] = peft.LoraConfig,
    **settings: Any,
) -> Any:
    """The network as a PEFT model with new adapters.

    Args:
        network: the base model, without adapters.
        new_modules: paths of modules that start at random (see `load_base_model`). They are trained in full and saved
            with the adapter: frozen at random they would harm, and unsaved they could not be had again.
        options: of the adapters.
        config: PEFT's configuration of another kind of LoRA.
        settings: of that kind; by default only the rank.

    Raises:
        ConfigurationError: no module of a name in `options.targets`, or PEFT cannot adapt those modules.
    """
    targets = lora_targets(network, options.targets)
    try:
        made = config(
            task_type=_task_type(network),
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules=targets,
            modules_to_save=_trained_in_full(network, new_modules) or None,
            **(settings or {"r": options.rank}),
        )
        return peft.get_peft_model(network, made)
    except (TypeError, ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise ConfigurationError(
            f"PEFT cannot put LoRA adapters on the modules {options.targets!r} of {type(network).__name__} "
            f"({type(error).__name__}: {error}). Name other modules with --targets, such as 'attention'; the head and "
            "other new modules are trained in full and take none."
        ) from error


def _task_type(network: nn.Module) -> str | None:
    """Under which PEFT opens the network again: what its outputs are of. None for one that reads no tokens, to which
    PEFT's own classes would pass some."""
    if getattr(network, "main_input_name", "input_ids") != "input_ids":
        return None
    name = type(network).__name__
    if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return str(peft.TaskType.CAUSAL_LM.value)
    of_tokens = name.endswith("ForTokenClassification")
    found: str = peft.TaskType.TOKEN_CLS if of_tokens else peft.TaskType.SEQ_CLS
    return found


def _trained_in_full(network: nn.Module, new_modules: Sequence[str]) -> list[str]:
    """`modules_to_save`, without the names that PEFT adds itself; it adds none where it knows no type of task.

    It keeps adapters off the modules named there. Those that only end like its own names (DistilBERT's pre_classifier)
    it wraps as well, but would give an adapter first: they must be named.
    """
    matched = [path for path, _ in network.named_modules() if path.endswith(_PEFT_HEADS)]
    if _task_type(network) is None:
        return list(dict.fromkeys([*new_modules, *matched]))
    return [path for path in dict.fromkeys([*new_modules, *matched]) if path not in _PEFT_HEADS]


def lora_targets(network: nn.Module, which: str) -> list[str] | str:
    """The `target_modules` for peft.LoraConfig.

    Args:
        network: the base model, without adapters.
        which: "attention" for the query, key and value projections; "all-linear" for every linear layer but the head;
            otherwise names of linear layers and convolutions separated by commas, each the end of a module's path as
            PEFT matches it.

    Raises:
        ConfigurationError: no module of that name; the message gives names that there are.
    """
    if which == "all-linear":
        return "all-linear"
    # nn.Linear, from which quantized layers derive, and GPT-2's projections, linear layers with transposed weights.
    last_parts = _names_of(network, nn.Linear, Conv1D)
    convolutions = _names_of(network, *_CONVOLUTIONS)
    some = ", ".join(last_parts[:8]) + (f"; its convolutions {', '.join(convolutions[:8])}" if convolutions else "")
    if which == "attention":
        found = [name for name in last_parts if name in _ATTENTION]
        if not found:
            raise ConfigurationError(
                f"{type(network).__name__} has no query, key or value projection of a known name. Name the modules "
                f"yourself, separated by commas; its linear layers are called {some}."
            )
        return found
    names = [name.strip() for name in which.split(",") if name.strip()]
    if not names:
        raise ConfigurationError(f"No target module is named. Give 'attention', 'all-linear', or some of {some}.")
    paths = [path for path, of in network.named_modules() if isinstance(of, (nn.Linear, Conv1D, *_CONVOLUTIONS))]
    for name in names:
        if not any(path == name or path.endswith(f".{name}") for path in paths):
            raise ConfigurationError(
                f"{type(network).__name__} has no linear layer called {name!r}. Its linear layers are called {some}; "
                "'attention' and 'all-linear' find them by themselves."
            )
    return names


def _names_of(network: nn.Module, *kinds: type[nn.Module]) -> list[str]:
    """The last parts of modules' paths, in order of appearance: the same network gives the same configuration file."""
    paths = (path for path, module in network.named_modules() if isinstance(module, kinds))
    return list(dict.fromkeys(path.rpartition(".")[2] for path in paths))
