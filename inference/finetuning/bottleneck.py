"""Houlsby adapters: a small bottleneck after each sub-layer of a frozen transformer."""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from bayes_lora.checks import require_count, require_positive
from bayes_lora.errors import AdapterError, ConfigurationError

# The last module of a sub-layer before the residual connection, by its path inside the network: after attention, after
# the feed-forward layers. The first family of which both are found counts.
_SUBLAYERS = (
    # BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, DeBERTa, ESM
    (r"layer\.\d+\.attention\.output\.dropout", r"layer\.\d+\.output\.dropout"),
    # DistilBERT
    (r"layer\.\d+\.attention\.out_lin", r"layer\.\d+\.ffn"),
    # MPNet
    (r"layer\.\d+\.attention\.dropout", r"layer\.\d+\.output\.dropout"),
    # LLaMA, Mistral, Qwen
    (r"layers\.\d+\.self_attn\.o_proj", r"layers\.\d+\.mlp\.down_proj"),
    # ViT, which has one dropout for both, after the adapter then
    (r"layers\.\d+\.attention\.o_proj", r"layers\.\d+\.mlp\.fc2"),
)


class Bottleneck(nn.Module):
    """An adapter around the identity.

        h + W_up gelu(W_down h + b_down) + b_up

    Weights start as N(0, init_std^2) cut off at two standard deviations and biases at zero, so that the adapter starts
    within `|W_up| |W_down| |h|` of the identity, which is of the order of init_std^2. It does not start on it: with
    W_up = 0 there would be no gradient for W_down at first, and the paper's start trains as well for every init_std
    from 1e-2 down to 1e-7.

    Args:
        width: of the hidden states.
        size: of the bottleneck.
        init_std: standard deviation of the weights at the start.

    Shapes: (..., width) -> (..., width).

    Source: arXiv 1902.00751, section 2.1 and figure 2; the start: section 3.6. The paper leaves the nonlinearity open;
    its authors' code has GELU by tanh.
    """

    def __init__(self, width: int, size: int, init_std: float = 1e-2) -> None:
        super().__init__()
        require_count("size", size)
        require_positive("init_std", init_std)
        self.down = nn.Linear(width, size)
        self.up = nn.Linear(size, width)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=init_std, a=-2 * init_std, b=2 * init_std)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        inside = nn.functional.gelu(self.down(hidden), approximate="tanh")
        return hidden + self.up(inside)  # type: ignore[no-any-return]


def add_bottlenecks(
    network: PreTrainedModel, head: Sequence[str], size: int = 64, init_std: float = 1e-2
) -> tuple[str, ...]:
    """Put a `Bottleneck` after attention and after the feed-forward layers, and train nothing else but what the paper
    does: the LayerNorms and the task head.

    It sits where the paper has it: after the sub-layer's projection back to the hidden width and its dropout, before
    the residual connection. The network is changed in place; the names of its own parameters stay as they are.

    In a decoder such as LLaMA these are the "series adapters" of LLM-Adapters (arXiv 2304.01933), whose code differs
    in having tanh inside and 256 for a size. RMSNorms are no LayerNorms: there as here they stay as they are.

    Args:
        network: an encoder, a ViT or a decoder of LLaMA's layout, without adapters.
        head: paths of the modules that are trained in full: the task head, and whatever else starts at random. The
            head of a language model is none of these.
        size: of the bottleneck; 64 is what the paper has where one size serves all tasks.
        init_std: standard deviation of the adapters' weights at the start.

    Returns:
        The paths of the adapters, two for each layer.

    Raises:
        ConfigurationError: no layers of a known layout, an unknown module in `head`, or a value outside its
            domain.
        AdapterError: the network has bottlenecks already.

    Example:
        >>> add_bottlenecks(network, ["classifier"])  # doctest: +SKIP

    Source: arXiv 1902.00751, section 2.
    """
    modules: dict[str, Any] = dict(network.named_modules())
    if any(isinstance(module, Bottleneck) for module in modules.values()):
        raise AdapterError(
            f"the {type(network).__name__} has bottleneck adapters already. Load the base model anew to start again."
        )
    unknown = [name for name in head if name not in modules]
    if unknown:
        raise ConfigurationError(f"{type(network).__name__} has no module {unknown[0]!r} to train in full.")
    places = _find_sublayers(network, list(modules))
    width = network.config.hidden_size
    bottlenecks = {path: Bottleneck(width, size, init_std) for path in places}
    like = next(parameter for parameter in network.parameters() if parameter.is_floating_point())
    network.requires_grad_(False)
    for module in (*(modules[name] for name in head), *filter(_is_layer_norm, modules.values())):
        module.requires_grad_(True)
    for path, bottleneck in bottlenecks.items():
        modules[path].bottleneck = bottleneck.to(device=like.device, dtype=like.dtype)
        modules[path].register_forward_hook(_through_bottleneck)
    return tuple(f"{path}.bottleneck" for path in places)


def _find_sublayers(network: nn.Module, paths: Sequence[str]) -> list[str]:
    for family in _SUBLAYERS:
        after = [[path for path in paths if re.search(rf"(?:^|\.){ending}$", path)] for ending in family]
        if after[0] and len(after[0]) == len(after[1]):
            return [path for pair in zip(*after, strict=True) for path in pair]
    looked_for = "; ".join(
        " and ".join(ending.replace(r"\d+", "N").replace("\\", "") for ending in f) for f in _SUBLAYERS
    )
    raise ConfigurationError(
        f"{type(network).__name__} has no layers of a known layout, so no place for bottleneck adapters. "
        f"Looked for modules whose paths end in {looked_for}. Train it another way: lora, dora, adalora or full."
    )


def _is_layer_norm(module: nn.Module) -> bool:
    # DeBERTa has a class of its own.
    return "LayerNorm" in type(module).__name__


# A hook, and not a wrapper, leaves the names of the network's own parameters alone. It finds the adapter through the
# module it is called with, so that a copy of the network uses the copy's adapters.
def _through_bottleneck(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return module.bottleneck(output)  # type: ignore[no-any-return]
