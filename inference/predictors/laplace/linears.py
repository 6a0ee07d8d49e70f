"""The Linears whose weights a Laplace posterior is about."""

from collections.abc import Iterator
from dataclasses import dataclass

from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from bayes_lora.adapters import check_state
from bayes_lora.adapters.names import plain_name
from bayes_lora.errors import AdapterError, ConfigurationError, UnsupportedAdapterError

_NOT_A_HEAD = {"lora_A", "lora_B", "original_module"}


@dataclass(frozen=True, eq=False)
class NamedLinear:
    """A Linear and its name, the module path without PEFT's wrapping.

    Its parameters are one matrix (out, in): the weight, and the bias, where there is one, as the last column.
    """

    name: str
    module: nn.Linear

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the matrix of its parameters."""
        return self.module.out_features, self.module.in_features + (self.module.bias is not None)

    def squared_norm(self) -> float:
        """The sum of the squares of its parameters."""
        return sum(float(parameter.detach().double().square().sum()) for parameter in self.parameters())

    def parameters(self) -> Iterator[Tensor]:
        yield self.module.weight
        if self.module.bias is not None:
            yield self.module.bias


def select_linears(network: nn.Module, parameters: str, head: str | None = None) -> tuple[NamedLinear, ...]:
    """The Linears that `LaplaceOptions.parameters` means: "all", "all_and_head" or "last_layer".

    LoRA weights count whether or not they require a gradient: a trained adapter is loaded with them frozen.

    Raises:
        AdapterError: no LoRA Linear where they were asked for, or merged or disabled adapters.
        UnsupportedAdapterError: adapters that are not the product of two Linears, DoRA, or two that share a weight.
        ConfigurationError: no Linear to take for the head, or none of the name given.
    """
    lora = [] if parameters == "last_layer" else _lora_linears(network)
    found = (*lora, *([] if parameters == "all" else [find_head(network, head)]))
    seen: dict[int, str] = {}
    for linear in found:
        twin = seen.setdefault(id(linear.module.weight), linear.name)
        if twin != linear.name:
            raise UnsupportedAdapterError(
                f"{twin} and {linear.name} share one weight, which would be counted twice. Untie them, or leave one "
                "of them out of target_modules."
            )
    return found


def find_head(network: nn.Module, name: str | None = None) -> NamedLinear:
    """The last Linear of the classification head: the last one registered that is neither LoRA's nor put aside by PEFT.

    Args:
        network: a network with a task head.
        name: of the Linear, where the last one registered is not the one that gives the logits.

    Raises:
        ConfigurationError: there is none, or none of that name.
    """
    unused = {
        id(module)
        for wrapper in network.modules()
        if isinstance(wrapper, ModulesToSaveWrapper)
        for key, copy in wrapper.modules_to_save.items()
        if key not in wrapper.active_adapters
        for module in copy.modules()
    }
    candidates = [
        NamedLinear(plain_name(path), module)
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in unused and not _NOT_A_HEAD & set(path.split("."))
    ]
    matching = [linear for linear in candidates if name is None or linear.name == plain_name(name)]
    if matching:
        return matching[-1]
    if name is None:
        raise ConfigurationError(
            f"{type(network).__name__} has no Linear besides LoRA's, so there is no last layer to take. Use "
            "LaplaceOptions(parameters='all'), or a network with a classification head."
        )
    raise ConfigurationError(
        f"head={name!r} names no Linear of {type(network).__name__}; its last ones are "
        f"{', '.join(linear.name for linear in candidates[-3:]) or 'none'}. Give one of the names of "
        "network.named_modules()."
    )


def _lora_linears(network: nn.Module) -> list[NamedLinear]:
    found = []
    for path, layer in network.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        name = plain_name(path)
        check_state(name, layer)
        for key in layer.active_adapters:
            special = key in layer.lora_embedding_A or layer.lora_variant.get(key) is not None
            if special or (isinstance(layer, ParamWrapper) and key in layer.lora_A):
                raise UnsupportedAdapterError(
                    f"{name}: adapter {key!r} is not the plain product B A x of two Linears (an embedding's, a bare "
                    "parameter's, or DoRA or another variant). Use plain LoRA, leave embeddings out of "
                    "target_modules, and drop target_parameters."
                )
            for factor in ("lora_A", "lora_B"):
                factors = getattr(layer, factor)
                if key not in factors:
                    continue
                if not isinstance(factors[key], nn.Linear):
                    raise UnsupportedAdapterError(
                        f"{name}: {factor} of adapter {key!r} is a {type(factors[key]).__name__}, and the curvature "
                        "is of Linears. Leave the layer out of target_modules."
                    )
                found.append(NamedLinear(f"{name}.{factor}.{key}", factors[key]))
    if not found:
        raise AdapterError(
            f"no LoRA Linear found in {type(network).__name__}. Wrap the model first: peft.get_peft_model(model, "
            "peft.LoraConfig(...)), or use LaplaceOptions(parameters='last_layer')."
        )
    return found
