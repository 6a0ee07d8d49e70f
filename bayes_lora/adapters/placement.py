"""Where weights must be to get a posterior: in memory, in one piece, and in the layout they were loaded in."""

from torch import nn

from bayes_lora.adapters.perturbation import LinearMap
from bayes_lora.errors import AdapterError, UnsupportedAdapterError

# bitsandbytes' switch of a Linear4bit for the layout below; read by name, so that nothing has to be imported.
_REPACKS = "support_avx512bf16_for_cpu"


def require_whole(name: str, linear: LinearMap) -> None:
    """Raise unless the weight of a LoRA-A module is a plain parameter, whole and with values.

    Raises:
        AdapterError: it is on the meta device.
        UnsupportedAdapterError: it is sharded or flattened.
    """
    weight = linear.weight
    if isinstance(linear, nn.Linear):
        whole: tuple[int, ...] = (linear.out_features, linear.in_features)
    else:
        whole = (linear.out_channels, linear.in_channels // linear.groups, *linear.kernel_size)
    if type(weight) is not nn.Parameter or weight.shape != whole:
        raise UnsupportedAdapterError(
            f"{name}: its LoRA-A is not one whole parameter but a {type(weight).__name__} of shape "
            f"{tuple(weight.shape)}: FSDP, fully_shard, tensor parallelism or ZeRO-3 has sharded it, and each process "
            "would draw noise for its part alone. Build BayesianLoRA on the network without them; on several GPUs, "
            "use data parallel training: torchrun with SVITrainer."
        )
    if weight.is_meta:
        raise AdapterError(
            f"{name}: its LoRA-A is on the meta device, without values, and the posterior would be lost with it. "
            "Load the base model with from_pretrained, not under torch.device('meta') or init_empty_weights, and "
            "without offloading layers that have adapters; then call get_peft_model without low_cpu_mem_usage, or "
            "PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=True), which fills it."
        )


def require_loaded(network: nn.Module) -> None:
    """Raise unless the weights of the network have values and the layout they were loaded in.

    Raises:
        AdapterError: weights on the meta device that accelerate does not bring in when they are needed, or 4-bit
            weights that bitsandbytes has repacked.
    """
    for path, module in network.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            if parameter.is_meta and not hasattr(module, "_hf_hook"):
                raise AdapterError(
                    f"{name} is on the meta device, without values. Load the network with from_pretrained, or fill it "
                    "first: load_state_dict(state, assign=True)."
                )
            if getattr(getattr(parameter, "quant_state", None), "packing_format_for_cpu", False):
                raise AdapterError(
                    f"{name}: bitsandbytes has repacked this 4-bit weight for inference on the CPU, as it does at the "
                    "first pass in evaluation mode. Gradients do not pass through it any more, and saving scrambles "
                    "it. Load the base model again, and build BayesianLoRA (or call load_posterior) before running it."
                )


def keep_layout(network: nn.Module) -> None:
    """Keep bitsandbytes from repacking the network's 4-bit weights for inference on a CPU.

    On CPUs with AVX512-BF16 it does so at the first pass in evaluation mode, for good: scales are rounded to
    bfloat16, no gradients pass any more, and the next state_dict() restores the weights with scales in the wrong
    order (bitsandbytes 0.50.2), so that training after an evaluation or a checkpoint would go on with another network.
    """
    for module in network.modules():
        if hasattr(module, _REPACKS):
            setattr(module, _REPACKS, False)


def release_layout(network: nn.Module) -> None:
    """Undo `keep_layout`."""
    for module in network.modules():
        if hasattr(module, _REPACKS):
            from bitsandbytes.functional import has_avx512bf16

            setattr(module, _REPACKS, has_avx512bf16())
