"""Batch normalization while adapters are trained."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def with_running_statistics(network: nn.Module) -> list[nn.Module]:
    """The layers that keep a mean and a variance of what they have seen, such as ``nn.BatchNorm2d``.

    In training mode they normalize by the batch, and move what they keep, which no adapter file holds: a network that
    was saved and opened again would be another one. With draws side by side in a batch it would be wrong besides. So
    whatever is trained here, they stay in evaluation mode (`hold`), with the statistics of the base model.
    """
    return [module for module in network.modules() if isinstance(module, _NormBase) and module.running_mean is not None]


def hold(layers: list[nn.Module]) -> None:
    """Put these layers in evaluation mode; to be called after the network's ``train()``."""
    for layer in layers:
        layer.eval()
