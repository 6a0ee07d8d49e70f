"""Finding the LoRA-A matrices of a PEFT model, and refusing those whose noise would be skipped or wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from peft.tuners.lora.layer import Conv1d, Conv2d, Conv3d, Embedding, LoraLayer, MultiheadAttention, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from bayes_lora.adapters.fused import fuse, unfuse
from bayes_lora.adapters.initialization import require_repeatable
from bayes_lora.adapters.perturbation import NoiseState, PerturbedLinear
from bayes_lora.adapters.placement import keep_layout, release_layout, require_loaded, require_whole
from bayes_lora.errors import AdapterError, UnsupportedAdapterError

# Known to call the LoRA-A module. By name, so that bitsandbytes is not imported where it is not in use.
_SUPPORTED_LAYERS = (
    "peft.tuners.lora.layer.Linear",
    "peft.tuners.lora.bnb.Linear8bitLt",
    "peft.tuners.lora.bnb.Linear4bit",
    "bayes_lora.adapters.fused.FusedLoraLinear",
)
_REFUSED_LAYERS = (
    ((ParamWrapper,), "it adapts a bare parameter (target_parameters)"),
    ((MultiheadAttention,), "torch's MultiheadAttention uses the merged weight, not the LoRA-A module"),
    ((Embedding,), "an embedding looks LoRA-A up by token instead of multiplying with it"),
    ((Conv1d, Conv2d, Conv3d), "a convolution's LoRA-A is not a matrix"),
)


@dataclass(frozen=True, eq=False)
class Adapter:
    """One LoRA-A matrix: `layer.lora_A[key]`, of shape (rank, in_features)."""

    name: str
    layer: LoraLayer
    key: str

    @property
    def linear(self) -> nn.Linear:
        """The Linear that holds mu as its weight."""
        return self.layer.lora_A[self.key]  # type: ignore[no-any-return]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of LoRA-A and LoRA-B."""
        for factor in (self.layer.lora_A, self.layer.lora_B):
            yield from factor[self.key].parameters()

    @property
    def rank(self) -> int:
        return self.linear.out_features

    @property
    def in_features(self) -> int:
        return self.linear.in_features


def find_adapters(network: nn.Module) -> tuple[Adapter, ...]:
    """The active LoRA-A matrices of `network`, sorted by rank, then in_features, then module order.

    So adapters of one shape stand side by side, and a group's share of a tensor over all adapters is a slice. Names
    are module paths without PEFT's wrapping, such as ``bert.encoder.layer.0.attention.self.query``; where several
    adapters are active at once, the adapter's name follows in brackets.

    Raises:
        AdapterError: none found, or merged, disabled, or already Bayesian adapters, or weights without values.
        UnsupportedAdapterError: DoRA and other variants, layers whose LoRA-A is not a plain Linear, sharded weights,
            base weights rewritten beyond repeating, and a network inside torch.compile's wrapper.
    """
    adapters = tuple(sorted(_active_adapters(network), key=lambda adapter: (adapter.rank, adapter.in_features)))
    if not adapters:
        kinds = {type(module).__name__ for module in network.modules() if isinstance(module, BaseTunerLayer)}
        found = f"its PEFT layers are {', '.join(sorted(kinds))}" if kinds else "it has no PEFT layers"
        raise AdapterError(
            f"no LoRA-A matrix found in {type(network).__name__}: {found}. "
            "Wrap the model first: peft.get_peft_model(model, peft.LoraConfig(...))."
        )
    require_repeatable(network, {adapter.key for adapter in adapters})
    seen: dict[int, str] = {}
    for adapter in adapters:
        twin = seen.setdefault(id(adapter.linear.weight), adapter.name)
        if twin != adapter.name:
            raise UnsupportedAdapterError(
                f"adapters {twin!r} and {adapter.name!r} share one LoRA-A matrix, which would be sampled twice. "
                "Untie them, or leave one of them out of target_modules."
            )
    require_loaded(network)
    return adapters


def _active_adapters(network: nn.Module) -> Iterator[Adapter]:
    for path, layer in network.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if "_orig_mod" in path.split("."):
            raise UnsupportedAdapterError(
                f"{path}: torch.compile(module) has put the network, or a part of it, into a wrapper that renames its "
                "parameters, so that checkpoints and posteriors would fit no other network. Compile in place, before "
                "or after building BayesianLoRA: network.compile(...), which takes the same arguments."
            )
        name = path.removeprefix("base_model.model.")
        _check_layer(name, layer, network)
        keys = [key for key in layer.active_adapters if key in layer.lora_A]
        for key in keys:
            _check_factor(name, layer, key)
            yield Adapter(name if len(keys) == 1 else f"{name}[{key}]", layer, key)


def _check_layer(name: str, layer: LoraLayer, network: nn.Module) -> None:
    for kinds, reason in _REFUSED_LAYERS:
        if isinstance(layer, kinds):
            raise UnsupportedAdapterError(
                f"{name}: PEFT's {type(layer).__name__} adapter is not supported, since {reason}. {_remedy(network)}"
            )
    for key in layer.active_adapters:
        if key in layer.lora_A and isinstance(layer.lora_A[key], nn.Linear):
            require_whole(name, layer.lora_A[key])
    # Others may use the weight of lora_A without calling it, and so skip the noise.
    if not _is_supported(layer):
        kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
        raise UnsupportedAdapterError(
            f"{name}: LoRA layers of type {kind} are not supported; only PEFT's lora.Linear, and its Linear8bitLt and "
            "Linear4bit on bitsandbytes, are known to call the LoRA-A module. Leave the layer out of target_modules, "
            "or load the base model without this kind of quantization, for example with BitsAndBytesConfig."
        )
    check_state(name, layer)


def _is_supported(layer: LoraLayer) -> bool:
    return f"{type(layer).__module__}.{type(layer).__qualname__}" in _SUPPORTED_LAYERS


def _remedy(network: nn.Module) -> str:
    """What to adapt instead: "all-linear" takes experts and routers too, which their user never named."""
    found = {
        path.split(".")[-1] for path, of in network.named_modules() if isinstance(of, LoraLayer) and _is_supported(of)
    }
    if not found:
        return "Adapt Linear layers only, in target_modules."
    return f"Adapt Linear layers only, such as target_modules={sorted(found)}."


def check_state(name: str, layer: LoraLayer) -> None:
    """Raise AdapterError if the layer's adapters are merged or disabled: then no noise reaches the output."""
    if layer.merged:
        raise AdapterError(f"{name}: the adapter is merged into the base weight. Call net.unmerge_adapter() first.")
    if layer.disable_adapters:
        raise AdapterError(f"{name}: adapters are disabled. Call net.enable_adapter_layers() first.")


def _check_factor(name: str, layer: LoraLayer, key: str) -> None:
    variant = layer.lora_variant.get(key)
    if variant is not None:
        kind = type(variant).__name__.removesuffix("LinearVariant").removesuffix("Variant")
        raise UnsupportedAdapterError(
            f"{name}: adapter {key!r} is a {kind} adapter, whose forward pass is not B A x. "
            f"Use plain LoRA: drop use_dora, monteclora_config and the like from LoraConfig."
        )
    linear = layer.lora_A[key]
    if isinstance(linear, PerturbedLinear):
        raise AdapterError(
            f"{name}: adapter {key!r} already belongs to a BayesianLoRA model. "
            "Call bayes_lora.adapters.unwrap(net) before building another."
        )
    if type(linear) is not nn.Linear or "forward" in vars(linear):
        raise UnsupportedAdapterError(
            f"{name}: LoRA-A of adapter {key!r} is a {type(linear).__name__}"
            f"{' with a replaced forward' if 'forward' in vars(linear) else ''}, not a plain torch.nn.Linear, "
            "so the noise might be skipped. Build BayesianLoRA before hooks or wrappers are put on the network."
        )


def perturb_linears(network: nn.Module, adapters: tuple[Adapter, ...]) -> NoiseState:
    """Replace the Linear of every adapter by a `PerturbedLinear` that shares its weight; return the state they share.

    4-bit weights of the network keep the layout they have; see `bayes_lora.adapters.placement.keep_layout`.
    """
    keep_layout(network)
    noise_state = NoiseState()
    for adapter in adapters:
        adapter.layer.lora_A[adapter.key] = PerturbedLinear(adapter.linear, noise_state, adapter.name)
        fuse(adapter.layer)
    return noise_state


def unwrap(network: nn.Module) -> nn.Module:
    """Give the network its plain PEFT Linears back, in place, and return it. Weights stay where they are."""
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            unfuse(layer)
            for key, linear in layer.lora_A.items():
                if isinstance(linear, PerturbedLinear):
                    layer.lora_A[key] = linear.to_linear()
    release_layout(network)
    return network


@dataclass(frozen=True)
class AdapterGroup:
    """Consecutive adapters whose LoRA-A share a shape: they share a sample site, named with `suffix`."""

    rank: int
    in_features: int
    start: int
    stop: int

    @property
    def suffix(self) -> str:
        return f"_r{self.rank}_n{self.in_features}"

    def __len__(self) -> int:
        return self.stop - self.start


def group_by_shape(adapters: tuple[Adapter, ...]) -> tuple[AdapterGroup, ...]:
    """The runs of equal (rank, in_features) in adapters sorted as `find_adapters` returns them."""
    groups = []
    start = 0
    for (rank, width), run in groupby(adapters, key=lambda adapter: (adapter.rank, adapter.in_features)):
        stop = start + len(list(run))
        groups.append(AdapterGroup(rank, width, start, stop))
        start = stop
    return tuple(groups)
