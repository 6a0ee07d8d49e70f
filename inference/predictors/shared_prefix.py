"""Many draws, one network below them: blocks under the first adapted one give the same under every draw."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bayes_lora.models import BayesianLoRA


class _Reached(Exception):
    pass


@dataclass(frozen=True)
class SharedPrefix:
    """The blocks of a network below the first one that has an adapter.

    Attributes:
        below: these blocks, in order.
        first_adapted: the block after them.
    """

    below: Sequence[nn.Module]
    first_adapted: nn.Module

    @classmethod
    def of(cls, model: BayesianLoRA) -> "SharedPrefix | None":
        """The blocks of the ModuleList that all adapters are in; None where there is none, or its first block has one.

        Blocks that somebody has compiled, hooked or given another forward pass are left alone.
        """
        linears: set[nn.Module] = {adapter.linear for adapter in model.sites.adapters}
        for blocks in model.network.modules():
            if not isinstance(blocks, nn.ModuleList):
                continue
            adapted = [linears & set(block.modules()) for block in blocks]
            if set().union(*adapted) != linears:
                continue
            first = next(index for index, found in enumerate(adapted) if found)
            below = list(blocks)[:first]
            return cls(below, blocks[first]) if below and not any(map(_is_touched, below)) else None
        return None

    def outputs(self, run: Callable[[], object]) -> list[Any] | None:
        """What each block below gives in a pass, which is not gone on with after them.

        None where they are not run once each, in order, the last one's output going into the first adapted block.
        """
        found: list[tuple[nn.Module, Any]] = []
        received: list[Any] = []

        def keep(block: nn.Module, _: Any, output: Any) -> None:
            found.append((block, output))

        def stop(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            received.extend([*arguments, *named.values()])
            raise _Reached

        hooks = [block.register_forward_hook(keep) for block in self.below]
        hooks.append(self.first_adapted.register_forward_pre_hook(stop, with_kwargs=True))
        try:
            run()
            return None
        except _Reached:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        if [block for block, _ in found] != list(self.below):
            return None
        last = found[-1][1]
        passed_on = last if isinstance(last, Tensor) else last[0]
        if not any(value is passed_on for value in received):
            return None
        return [output for _, output in found]

    @contextmanager
    def giving(self, outputs: Sequence[Any], num_examples: int, times: int) -> Iterator[None]:
        """Inside, the blocks below do nothing but give these outputs, their rows repeated for stacked draws."""

        def repeated(value: Any) -> Any:
            stacks = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == num_examples and times > 1
            return value.repeat(times, *(1,) * (value.dim() - 1)) if stacks else value

        for block, output in zip(self.below, outputs, strict=True):
            given = pytree.tree_map(repeated, output)
            block.__dict__["forward"] = lambda *_, _given=given, **__: _given
        try:
            yield
        finally:
            for block in self.below:
                del block.__dict__["forward"]


def _is_touched(block: nn.Module) -> bool:
    hooks = block._forward_hooks or block._forward_pre_hooks
    return bool(hooks or "forward" in block.__dict__ or getattr(block, "_compiled_call_impl", None))
