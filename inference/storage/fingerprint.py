"""By what a base model is known again."""

import hashlib
from collections.abc import Collection, Iterator

import torch
from torch import nn

from bayes_lora.adapters.names import plain_name
from bayes_lora.errors import AdapterError

# What PEFT adds to a network, by the beginning of its names.
_ADDED = ("lora_", "trainable_tokens_")


def base_fingerprint(network: nn.Module, carried: Collection[str] = (), rewritten: Collection[str] = ()) -> str:
    """A digest of a network's base weights: names, shapes, a few values of each and the sum of all.

    The same before and after PEFT has wrapped the network, and for float32 and bfloat16 copies of one checkpoint:
    values are rounded to bfloat16, and their bits are summed as integers, so that the order does not matter.

    Args:
        network: the base network, or a PEFT model of it.
        carried: names of tensors that travel with the adapter, as PEFT writes them: the task head, for example, is
            new at every load, so it does not count.
        rewritten: names, as before PEFT, of weights that the adapter's initialization changes; neither do they.

    Raises:
        AdapterError: a weight has no values here: it is on the meta device, or offloaded.
    """
    excluded = {plain_name(name) for name in carried} | set(rewritten)
    digest = hashlib.sha256()
    named = {plain_name(name): parameter for name, parameter in network.named_parameters()}
    owners = {id(own): module for module in network.modules() for own in module.parameters(recurse=False)}
    for name, parameter in sorted(named.items()):
        if name not in excluded and not any(part.startswith(_ADDED) for part in name.split(".")):
            if parameter.is_meta:
                raise AdapterError(
                    f"{name} is on the meta device or offloaded, so the base model cannot be told from another one. "
                    "Load it into memory: from_pretrained without offloading."
                )
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            for values in _values(parameter, owners[id(parameter)]):
                bits = values.reshape(-1).to(torch.bfloat16).view(torch.int16)
                digest.update(f"{bits[:16].tolist()}{_sum(bits)}".encode())
    return digest.hexdigest()


def _values(parameter: nn.Parameter, owner: nn.Module) -> Iterator[torch.Tensor]:
    """The tensor, and of one that bitsandbytes has quantized also the scales that belong to its codes."""
    yield parameter.detach().as_subclass(torch.Tensor)  # a quantized one has methods of its own
    # Of 8 bits; they move from the weight to its layer at the first pass.
    for holder in (parameter, getattr(owner, "state", None)):
        if getattr(holder, "SCB", None) is not None:
            yield holder.SCB  # type: ignore[union-attr]
    state = getattr(parameter, "quant_state", None)  # of 4 bits; where they are quantized in turn, state2 has theirs
    while state is not None:
        yield state.absmax
        state = getattr(state, "state2", None)


def _sum(bits: torch.Tensor) -> int:
    """The sum of int16 values (value,), read four at a time as one int64, which wraps around."""
    rest = len(bits) % 4
    fours = bits[: len(bits) - rest].clone() if bits.storage_offset() % 4 else bits[: len(bits) - rest]
    return int(fours.view(torch.int64).sum()) + int(bits[len(bits) - rest :].sum())
