"""What `--device` stands for."""

import torch

from bayes_lora.errors import ConfigurationError

CPU = torch.device("cpu")


def resolve_device(name: str) -> torch.device:
    """The device of this name: `auto`, or as torch writes it.

    Raises:
        ConfigurationError: torch knows no such device, or sees none on this machine.
    """
    if name == "auto":
        return torch.device("cuda") if torch.cuda.is_available() else CPU
    try:
        device = torch.device(name)
        available = torch.get_device_module(device).is_available()
    except RuntimeError as error:
        raise ConfigurationError(f"--device {name!r} is no device that torch knows. Say auto, cpu or cuda.") from error
    if not available:
        raise ConfigurationError(
            f"--device {name!r}: torch {torch.__version__} sees no such device here. Say --device cpu, or install a "
            "build of torch for it."
        )
    return device
