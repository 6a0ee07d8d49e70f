"""Finding the LoRA-A matrices of a PEFT model, and refusing those whose noise would be skipped or wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import Embedding, LoraLayer, MultiheadAttention, ParamWrapper
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from bayes_lora.adapters.dora import perturb_dora, require_norm, restore_dora
from bayes_lora.adapters.experts import perturb_param, restore_param
from bayes_lora.adapters.fused import fuse, unfuse
from bayes_lora.adapters.initialization import require_repeatable
from bayes_lora.adapters.names import plain_name
from bayes_lora.adapters.perturbation import PERTURBED, LinearMap, NoiseState, Perturbed
from bayes_lora.adapters.placement import keep_layout, release_layout, require_loaded, require_whole
from bayes_lora.errors import AdapterError, UnsupportedAdapterError

# Known to call the LoRA-A module. By name, so that bitsandbytes is not imported where it is not in use.
_SUPPORTED_LAYERS = (
    "peft.tuners.lora.layer.Linear",
    "peft.tuners.lora.layer.Conv1d",
    "peft.tuners.lora.layer.Conv2d",
    "peft.tuners.lora.layer.Conv3d",
    "peft.tuners.lora.layer.ParamWrapper",
    "peft.tuners.lora.bnb.Linear8bitLt",
    "peft.tuners.lora.bnb.Linear4bit",
    "bayes_lora.adapters.fused.FusedLoraLinear",
    "bayes_lora.adapters.experts.PerturbedParam",
)
_REFUSED_LAYERS = (
    (MultiheadAttention, "torch's MultiheadAttention uses the merged weight, not the LoRA-A module"),
    (Embedding, "it looks LoRA-A, a bare parameter, up by token and has no module that multiplies with it"),
)


@dataclass(frozen=True, eq=False)
class Adapter:
    """One LoRA-A matrix, (rank, in_features): the weight of `layer.lora_A[key]`."""

    name: str
    layer: LoraLayer
    key: str

    @property
    def linear(self) -> LinearMap:
        """The linear map that holds mu as its weight, of a convolution as (rank, channels, *kernel)."""
        return self.layer.lora_A[self.key]  # type: ignore[no-any-return]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of LoRA-A and LoRA-B."""
        for factor in (self.layer.lora_A, self.layer.lora_B):
            yield from factor[self.key].parameters()

    @property
    def rank(self) -> int:
        return self.linear.weight.shape[0]

    @property
    def in_features(self) -> int:
        return self.linear.weight.shape[1:].numel()

    @property
    def mean(self) -> Tensor:
        """mu, (rank, in_features)."""
        return self.linear.weight.flatten(1)


def find_adapters(network: nn.Module) -> tuple[Adapter, ...]:
    """The active LoRA-A matrices of `network`, sorted by rank, then in_features, then module order.

    So adapters of one shape stand side by side, and a group's share of a tensor over all adapters is a slice. Names
    are module paths without PEFT's wrapping, such as ``bert.encoder.layer.0.attention.self.query``, with the name of
    the parameter where that is what has the adapter; where several adapters are active at once, the adapter's name
    follows in brackets.

    Raises:
        AdapterError: none found, or merged, disabled, or already Bayesian adapters, or weights without values.
        UnsupportedAdapterError: variants of LoRA besides DoRA, layers whose LoRA-A is not a plain Linear, tied or
            sharded weights, base weights rewritten beyond repeating, and a network inside torch.compile's wrapper.
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
    _require_untied(network, adapters)
    require_loaded(network)
    return adapters


def _require_untied(network: nn.Module, adapters: tuple[Adapter, ...]) -> None:
    """No adapted weight is that of the embeddings as well: merging the adapter would change these, too."""
    embeddings = {id(of.weight): path for path, of in network.named_modules() if isinstance(of, nn.Embedding)}
    for adapter in adapters:
        twin = embeddings.get(id(getattr(adapter.layer.get_base_layer(), "weight", None)))  # of experts there is none
        if twin is not None:
            raise UnsupportedAdapterError(
                f"{adapter.name}: its weight is that of {plain_name(twin)!r} as well (tied weights), which merging the "
                "adapter would change with it: the merged network would say something else than this one. Leave it out "
                "of target_modules, or load the network with tie_word_embeddings=False."
            )


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
        name = _name_of(path, layer)
        _check_layer(name, layer, network)
        keys = [key for key in layer.active_adapters if key in layer.lora_A]
        for key in keys:
            _check_factor(name, layer, key)
            yield Adapter(name if len(keys) == 1 else f"{name}[{key}]", layer, key)


def _name_of(path: str, layer: LoraLayer) -> str:
    """The module's path without PEFT's wrapping; of a bare parameter, that and its name."""
    name = path.removeprefix("base_model.model.")
    return f"{plain_name(name)}.{layer.parameter_name}" if isinstance(layer, ParamWrapper) else name


def _check_layer(name: str, layer: LoraLayer, network: nn.Module) -> None:
    for refused, reason in _REFUSED_LAYERS:
        if isinstance(layer, refused):
            raise UnsupportedAdapterError(
                f"{name}: PEFT's {type(layer).__name__} adapter is not supported, since {reason}. {_remedy(network)}"
            )
    for key in layer.active_adapters:
        if key in layer.lora_A and isinstance(layer.lora_A[key], LinearMap):
            require_whole(name, layer.lora_A[key])
    # Others may use the weight of lora_A without calling it, and so skip the noise.
    if not _is_supported(layer):
        kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
        raise UnsupportedAdapterError(
            f"{name}: LoRA layers of type {kind} are not supported; only PEFT's lora.Linear, its Linear8bitLt and "
            "Linear4bit on bitsandbytes, lora.Conv1d to Conv3d and lora.ParamWrapper are known to use the draw. Leave "
            "it out of target_modules, or load the base model without this kind of quantization, for example with "
            "BitsAndBytesConfig."
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
        return "Adapt Linear and convolution layers only, in target_modules."
    return f"Adapt Linear and convolution layers only, such as target_modules={sorted(found)}."


def check_state(name: str, layer: LoraLayer) -> None:
    """Raise AdapterError if the layer's adapters are merged or disabled: then no noise reaches the output."""
    if layer.merged:
        raise AdapterError(f"{name}: the adapter is merged into the base weight. Call net.unmerge_adapter() first.")
    if layer.disable_adapters:
        raise AdapterError(f"{name}: adapters are disabled. Call net.enable_adapter_layers() first.")


def _check_factor(name: str, layer: LoraLayer, key: str) -> None:
    variant = layer.lora_variant.get(key)
    if variant is not None and type(variant) is not DoraLinearVariant:
        kind = type(variant).__name__.removesuffix("LinearVariant").removesuffix("Variant")
        raise UnsupportedAdapterError(
            f"{name}: adapter {key!r} is a {kind} adapter; a posterior is over plain LoRA, or DoRA of Linear layers. "
            "Drop monteclora_config, alora_invocation_tokens and the like from LoraConfig, or leave the layer out."
        )
    linear = layer.lora_A[key]
    if isinstance(linear, Perturbed):
        raise AdapterError(
            f"{name}: adapter {key!r} already belongs to a BayesianLoRA model. "
            "Call bayes_lora.adapters.unwrap(net) before building another."
        )
    _require_plain(name, f"LoRA-A of adapter {key!r}", linear, *PERTURBED)
    if variant is not None:
        require_norm(name, layer)
        _require_plain(name, f"the magnitude of adapter {key!r}", layer.lora_magnitude_vector[key], DoraLinearLayer)


def _require_plain(name: str, part: str, module: nn.Module, *kinds: type[nn.Module]) -> None:
    replaced = "forward" in vars(module)
    if type(module) not in kinds or replaced:
        raise UnsupportedAdapterError(
            f"{name}: {part} is a {type(module).__name__}{' with a replaced forward' if replaced else ''}, not a plain "
            f"{' or '.join(kind.__name__ for kind in kinds)}, so the noise might be skipped. Build BayesianLoRA before "
            "hooks or wrappers are put on the network."
        )


def perturb_linears(network: nn.Module, adapters: tuple[Adapter, ...]) -> NoiseState:
    """Replace the LoRA-A of every adapter by its `Perturbed` twin on the same weight; return the state they share.

    4-bit weights of the network keep the layout they have; see `bayes_lora.adapters.placement.keep_layout`.
    """
    keep_layout(network)
    noise_state = NoiseState()
    for adapter in adapters:
        plain = adapter.linear
        adapter.layer.lora_A[adapter.key] = PERTURBED[type(plain)](plain, noise_state, adapter.name)
        perturb_dora(adapter.layer, adapter.key)
        perturb_param(adapter.layer)
        fuse(adapter.layer)
    return noise_state


def unwrap(network: nn.Module) -> nn.Module:
    """Give the network its plain PEFT modules back, in place, and return it. Weights stay where they are."""
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            unfuse(layer)
            restore_param(layer)
            restore_dora(layer)
            for key, linear in layer.lora_A.items():
                if isinstance(linear, Perturbed):
                    layer.lora_A[key] = linear.to_plain()
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
