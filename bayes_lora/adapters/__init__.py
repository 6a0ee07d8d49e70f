"""LoRA adapters of a network: found, grouped by shape, and made to see noise."""

from bayes_lora.adapters.finding import (
    Adapter,
    AdapterGroup,
    check_state,
    find_adapters,
    group_by_shape,
    perturb_linears,
    unwrap,
)

__all__ = ["Adapter", "AdapterGroup", "check_state", "find_adapters", "group_by_shape", "perturb_linears", "unwrap"]
