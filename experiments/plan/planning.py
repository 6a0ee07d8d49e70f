"""What an adaptation of a causal language model will need, counted on the meta device, where tensors have no values."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from bayes_lora.checks import require_count
from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.networks.base_models import resolve_base_model
from bayes_lora.files import read_json
from bayes_lora.inference.finetuning.lora import LoRAOptions, add_lora

SHAPES = Path(__file__).resolve().parent / "shapes"
"""Configurations that come with the library, NAME.json."""

Dtype = Literal["bf16", "fp16", "fp32"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_FLOAT = 4  # bytes: PEFT keeps adapters in float32, and with them gradients, Adam's two moments, and the noise


@dataclass(frozen=True)
class Batch:
    """What one device is given in a step.

    Attributes:
        rows: in one pass of the network.
        length: tokens of each row.
        checkpointing: whether the backward pass computes each layer's activations anew.
    """

    rows: int = 1
    length: int = 256
    checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("rows", "length"):
            require_count(name, getattr(self, name))


@dataclass(frozen=True)
class Memory:
    """Bytes on each device; activations are an estimate, all else is counted.

    Attributes:
        weights: of the base model.
        adapters: LoRA, with the posterior's own parameters.
        gradients: of those.
        optimizer: Adam's two moments of those.
        noise: of one draw, and as much again while it is made.
        activations: kept for the backward pass.
        gathered: weights of one layer that FSDP brings together at a time; 0 under DDP.
    """

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    noise: int
    activations: int
    gathered: int = 0

    @property
    def total(self) -> int:
        """Of all; what the allocator keeps beside it, and the buffers of collectives, are not in it."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Plan:
    """What an adaptation needs.

    Attributes:
        parameters: of the base model.
        adapters: LoRA-A matrices.
        trainable: parameters of the adapters.
        posterior: parameters that the posterior adds: rank + N for each adapter.
        noise: numbers in one draw; of each process.
        attention: bytes of attention weights that are kept where attention is not fused; not in `activations`.
        devices: that `ddp` and `fsdp` are of.
        ddp: everything on each device.
        fsdp: weights, gradients and optimizer in parts.
    """

    parameters: int
    adapters: int
    trainable: int
    posterior: int
    noise: int
    attention: int
    devices: int
    ddp: Memory
    fsdp: Memory

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        totals = {name: {**asdict(memory), "total": memory.total} for name, memory in self.memories.items()}
        return {**asdict(self), **totals}

    @property
    def memories(self) -> dict[str, Memory]:
        """By name."""
        return {"ddp": self.ddp, "fsdp": self.fsdp}


def shape_names() -> list[str]:
    """Of the configurations that come with the library."""
    return sorted(path.stem for path in SHAPES.glob("*.json"))


def read_shape(name: str) -> dict[str, Any]:
    """A model's configuration.

    Args:
        name: one of `shape_names`, a JSON file such as a model's own config.json, a base model's short name, or a
            folder with one.

    Raises:
        ConfigurationError: there is none, or it says no model_type.
        BaseModelError: see `resolve_base_model`.
    """
    path = SHAPES / f"{name}.json"
    if not path.is_file():
        path = Path(name) if name.endswith(".json") else Path(resolve_base_model(name)) / "config.json"
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"--model-config {name!r} cannot be read ({error}). Give a model's config.json, or one of "
            f"{', '.join(shape_names())}."
        ) from error
    if not isinstance(found, dict) or "model_type" not in found:
        raise ConfigurationError(f"{path} has no model_type, so it is no model's configuration.")
    return found


def meta_network(shape: dict[str, Any], lora: LoRAOptions, dtype: Dtype = "bf16") -> tuple[Any, int]:
    """The model with new LoRA adapters on the meta device, and the base model's parameters.

    Raises:
        ConfigurationError: transformers has no causal language model of the type, or see `add_lora`.
    """
    kind, options = shape["model_type"], {key: value for key, value in shape.items() if key != "model_type"}
    try:
        config = AutoConfig.for_model(kind, **options)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, dtype=_DTYPES[dtype])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"the configuration is of no causal language model ({error}).") from error
    count = sum(parameter.numel() for parameter in network.parameters())
    with torch.device("meta"):
        return add_lora(network, (), lora), count


def plan(
    shape: dict[str, Any],
    lora: LoRAOptions,
    posterior: MonteCLoRAConfig,
    batch: Batch,
    *,
    dtype: Dtype = "bf16",
    devices: int = 1,
) -> Plan:
    """Count what `BayesianLoRA` with `MonteCLoRAGuide` and Adam will need.

    Args:
        shape: see `read_shape`.
        lora: the adapters.
        posterior: of it the number of components and of outer draws, and the sampler.
        batch: of each device.
        dtype: of the base model.
        devices: that share the work.

    Raises:
        ConfigurationError: see `meta_network`.
    """
    require_count("devices", devices)
    network, parameters = meta_network(shape, lora, dtype)
    factors = [
        layer.lora_A[name].weight
        for layer in network.modules()
        if isinstance(layer, LoraLayer)
        for name in layer.active_adapters
    ]
    added = sum(weight.shape[0] + posterior.num_components for weight in factors)
    trainable = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    # One draw collapsed, or each component's; of the explicit sampler they are kept apart.
    draws = posterior.num_outer_samples * (posterior.num_components if posterior.sampler == "explicit" else 1)
    noise = draws * sum(weight.numel() for weight in factors)
    kept, attention = _kept(network, batch)
    sizes = [_bytes(parameter) for parameter in network.parameters() if not parameter.requires_grad]
    learned = _FLOAT * (trainable + added)
    ddp = Memory(sum(sizes), learned, learned, 2 * learned, _FLOAT * noise, kept)
    part = math.ceil(learned / devices)
    # The posterior needs every LoRA-A whole: they are gathered, and the noise is made in every process.
    gathered = 0 if devices == 1 else _largest_layer(network)
    fsdp = Memory(math.ceil(sum(sizes) / devices), part, part, 2 * part, ddp.noise, kept, gathered)
    return Plan(parameters, len(factors), trainable, added, noise, attention, devices, ddp, fsdp)


def _kept(network: Any, batch: Batch) -> tuple[int, int]:
    """Bytes that a forward pass keeps for the backward pass, without and of attention weights.

    Autograd is asked, on the meta device; there attention runs unfused, so that its weights are counted apart.
    """
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    seen: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            seen[tensor.untyped_storage()._cdata] = tensor
        return tensor

    tokens = torch.zeros(batch.rows, batch.length, dtype=torch.long, device="meta")
    # A mask as attention takes it: making one of a list of lengths needs values.
    mask = torch.ones(batch.rows, 1, batch.length, batch.length, dtype=torch.bool, device="meta")
    network.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(input_ids=tokens, attention_mask=mask, labels=tokens, use_cache=False)
    squares = {key for key, tensor in seen.items() if tensor.shape[-2:] == (batch.length, batch.length)}
    sizes = {key: tensor.untyped_storage().nbytes() for key, tensor in seen.items()}
    attention = sum(sizes[key] for key in squares)
    total = sum(sizes.values()) - attention
    if not batch.checkpointing:
        return total, attention
    config = network.config
    of_head = sum(sizes[key] for key, tensor in seen.items() if tensor.shape[-1:] == (config.vocab_size,))
    layers = config.num_hidden_layers
    inputs = layers * batch.rows * batch.length * config.hidden_size * network.get_input_embeddings().weight.itemsize
    return inputs + of_head + (total - of_head) // layers, attention // layers


def _largest_layer(network: Any) -> int:
    """Bytes of the largest unit that FSDP gathers: a layer, or the embeddings."""
    layers = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    units = [layer for found in layers for layer in found]
    units += [module for module in network.modules() if isinstance(module, nn.Embedding)]
    return max(sum(map(_bytes, unit.parameters())) for unit in units)


def _bytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.itemsize
