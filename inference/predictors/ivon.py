"""The posterior that IVON leaves, and its predictive."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bayes_lora.checks import require_non_negative
from bayes_lora.choices import Draws
from bayes_lora.errors import ConfigurationError, PosteriorFileError
from bayes_lora.inference.guides.draw_design import choose_design
from bayes_lora.inference.predictors.drawn_weights import DrawnWeights
from bayes_lora.inference.predictors.ensemble import require_fit
from bayes_lora.sealed_files import Format, write_sealed_tensors

_FORMAT = Format(PosteriorFileError, "Save it again.")


@dataclass(frozen=True, eq=False)
class IVONPosterior:
    """q(theta) = prod_i N(theta_i; mean_i, scale_i^2) over everything that was trained.

    Attributes:
        mean: of every trained tensor, by its name in the network.
        scale: standard deviations, 1 / sqrt(ess (h + weight decay)), of the same tensors.

    Raises:
        ConfigurationError: tensors that do not fit each other.
    """

    mean: dict[str, Tensor]
    scale: dict[str, Tensor]

    def __post_init__(self) -> None:
        same = self.mean.keys() == self.scale.keys()
        if not same or any(value.shape != self.scale[name].shape for name, value in self.mean.items()):
            raise ConfigurationError(
                "mean and scale of an IVONPosterior do not belong together: each tensor needs both, of one shape. Take "
                "them from IVONTraining.posterior or IVONPosterior.load."
            )

    def noise(self, seed: int) -> dict[str, Tensor]:
        """scale * z, z ~ N(0, I), on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: self.scale[name]
            * torch.randn(self.scale[name].shape, generator=generator, dtype=self.scale[name].dtype)
            for name in sorted(self.scale)  # whatever the order they were read in
        }

    def save(self, path: str | Path) -> None:
        """Write it as one safetensors file, whole or not at all, with a checksum of its tensors."""
        write_sealed_tensors(Path(path), {"mean": self.mean, "scale": self.scale})

    @classmethod
    def load(cls, path: str | Path) -> "IVONPosterior":
        """Read what `save` wrote.

        Raises:
            PosteriorFileError: missing, damaged, or no file of an IVON posterior.
        """
        return cls(**_FORMAT.read_sealed_tensors(Path(path), ("mean", "scale"), "IVONPosterior.save"))


@dataclass(frozen=True, eq=False)
class IVONPredictor(DrawnWeights):
    """The predictive of an `IVONPosterior`: see `DrawnWeights`. At temperature 0 every draw is its mean, bit by bit.

    Args:
        network: that was trained, or one built like it.
        posterior: of its tensors.
        temperature: T that the covariance is multiplied by; 1 is the paper's.
        draws: a design, see `draw_design.source`; by default "tetrahedral" or "antithetic", as with `predict`.

    Raises:
        ConfigurationError: a temperature below 0, no such draws, or a tensor that does not fit the network; names it.

    Source: Shen et al. 2024, Variational Learning is Effective for Large Deep Networks (arXiv 2402.17641); Cong et al.
    2024, Variational Low-Rank Adaptation Using IVON (arXiv 2411.04421).

    Example:
        >>> prediction = IVONPredictor(network, training.posterior())(loader, num_samples=16)  # doctest: +SKIP
    """

    network: nn.Module
    posterior: IVONPosterior
    temperature: float = 1.0
    draws: Draws | None = None

    def __post_init__(self) -> None:
        require_non_negative("temperature", self.temperature)
        choose_design(self.draws, 1)  # for its check
        require_fit(self.network, self.posterior.mean, "the posterior")

    @property
    def weights(self) -> IVONPosterior:
        """The posterior."""
        return self.posterior

    @property
    def deviation(self) -> float:
        """sqrt(T)."""
        return float(self.temperature**0.5)
