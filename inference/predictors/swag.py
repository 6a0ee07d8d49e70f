"""SWAG: a Gaussian through the iterates of stochastic gradient descent."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from bayes_lora.checks import require_non_negative
from bayes_lora.choices import Draws
from bayes_lora.errors import ConfigurationError, PosteriorFileError
from bayes_lora.files import write_whole
from bayes_lora.inference.guides.draw_design import choose_design
from bayes_lora.inference.predictors.drawn_weights import DrawnWeights
from bayes_lora.inference.predictors.ensemble import require_fit
from bayes_lora.sealed_files import Format

_FORMAT = Format(PosteriorFileError, "Save it again.")


@dataclass(frozen=True, eq=False)
class SWAG:
    """A Gaussian over trained tensors, with a covariance of low rank plus diagonal:

        theta = mean + sqrt(scale) (sqrt(variance) * z1 + D z2 / sqrt(K - 1)),   z1, z2 ~ N(0, I)
        Cov(theta) = scale (diag(variance) + D D' / (K - 1))

    At scale 1/2 this is the paper's equation 1. K is the number of deviations that there are, which is less than was
    asked for where fewer iterates were collected.

    Attributes:
        mean: of the iterates, of every tensor that was trained, by name: the SWA solution.
        variance: ``mean(theta^2) - mean(theta)^2`` of the tensors that are drawn; the others stay at their mean.
        deviations: D of the same tensors, (deviation, *shape): the last K iterates, each minus the mean of those up
            to it.
        num_iterates: how many were collected.

    Raises:
        ConfigurationError: fewer than two iterates, or tensors that do not fit each other.

    Source: Maddox et al. 2019, A Simple Baseline for Bayesian Uncertainty in Deep Learning, section 3.2; `scale` is
    that of the authors' code. They divide by K - 1 for the K that was asked for, also where fewer are there. They
    update the statistics of batch normalization for every draw; transformers have none, so that nothing is to be done.
    """

    mean: dict[str, Tensor]
    variance: dict[str, Tensor]
    deviations: dict[str, Tensor]
    num_iterates: int

    def __post_init__(self) -> None:
        if self.num_iterates < 2:
            raise ConfigurationError(
                f"SWAG needs at least two iterates to have a covariance, and has {self.num_iterates}. Collect from an "
                "earlier step (start), or more often (every)."
            )
        counts = {len(columns) for columns in self.deviations.values()}
        fits = self.variance.keys() == self.deviations.keys() and self.variance.keys() <= self.mean.keys()
        fits = fits and len(counts) == 1 and counts.pop() >= 2
        if not fits or any(
            not self.mean[name].shape == variance.shape == self.deviations[name].shape[1:]
            for name, variance in self.variance.items()
        ):
            raise ConfigurationError(
                "mean, variance and deviations of SWAG do not belong together: every tensor in variance needs a mean "
                "and two deviations or more, of its shape. Take them from a SWAGCollector or SWAG.load."
            )

    def draw(self, seed: int, scale: float = 0.5) -> dict[str, Tensor]:
        """One draw of every tensor, on the CPU; at scale 0 the mean."""
        return self.at({name: scale**0.5 * value for name, value in self.noise(seed).items()})

    def at(self, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every tensor at so much from the mean."""
        return {**self.mean, **{name: self.mean[name] + value for name, value in noise.items()}}

    def noise(self, seed: int) -> dict[str, Tensor]:
        """What a draw at scale 1 adds to the mean of every tensor with a variance, on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        names = sorted(self.variance)  # whatever the order they were read in
        num_deviations = len(self.deviations[names[0]])
        z2 = torch.randn(num_deviations, generator=generator, dtype=torch.float64) / (num_deviations - 1) ** 0.5
        found = {}
        for name in names:
            mean, columns = self.mean[name], self.deviations[name]
            z1 = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
            low_rank = torch.einsum("k,k...->...", z2.to(columns), columns)
            found[name] = self.variance[name].sqrt() * z1 + low_rank
        return found

    def save(self, path: str | Path) -> None:
        """Write it as one safetensors file, whole or not at all, with a checksum of its tensors."""
        parts = {"mean": self.mean, "variance": self.variance, "deviations": self.deviations}
        tensors = {f"{part}/{name}": v.contiguous() for part, state in parts.items() for name, v in state.items()}
        facts = {"num_iterates": str(self.num_iterates), "sha256": _digest(tensors)}
        write_whole(Path(path), save(tensors, metadata=facts))

    @classmethod
    def load(cls, path: str | Path) -> "SWAG":
        """Read what `save` wrote.

        Raises:
            PosteriorFileError: missing, damaged, or no file of SWAG.
        """
        parts: dict[str, dict[str, Tensor]] = {"mean": {}, "variance": {}, "deviations": {}}
        facts, tensors = _FORMAT.read_tensors(Path(path), "Give the file that SWAG.save wrote.")
        if not facts.keys() >= {"sha256", "num_iterates"}:
            raise PosteriorFileError(f"{path} is no file that SWAG.save wrote, or it was damaged. {_FORMAT.remedy}")
        _FORMAT.require_checksum(Path(path), _digest(tensors), facts["sha256"])
        try:
            for name, value in tensors.items():
                part, _, rest = name.partition("/")
                parts[part][rest] = value
            return cls(**parts, num_iterates=int(facts["num_iterates"]))
        except (KeyError, ValueError) as error:
            raise PosteriorFileError(f"{path}: what it says cannot be used ({error!r}). {_FORMAT.remedy}") from error


@dataclass(frozen=True, eq=False)
class SWAGPredictor(DrawnWeights):
    """``p(y | x) = 1/S sum_s softmax(f(x; theta_s))`` with ``theta_s`` drawn from a `SWAG`.

    At scale 0 every draw is the SWA solution, so one is enough.

    Cost: see `DrawnWeights`; a draw is (K + 2) multiplications and one random number for each drawn tensor's entry.

    Args:
        network: the network whose iterates were collected, or one built like it.
        swag: the Gaussian.
        scale: of the covariance; 1/2 is the paper's.
        draws: a design, see `draw_design.source`; by default "tetrahedral" or "antithetic", as with `predict`.

    Raises:
        ConfigurationError: a scale below 0, no such draws, or a tensor that does not fit the network; names it.

    Source: Maddox et al. 2019, algorithm 1.

    Example:
        >>> prediction = SWAGPredictor(network, collector.swag())(loader, num_samples=16)  # doctest: +SKIP
    """

    network: nn.Module
    swag: SWAG
    scale: float = 0.5
    draws: Draws | None = None

    def __post_init__(self) -> None:
        require_non_negative("scale", self.scale)
        choose_design(self.draws, 1)  # for its check
        require_fit(self.network, self.swag.mean, "the SWAG")

    @property
    def weights(self) -> SWAG:
        """The Gaussian."""
        return self.swag

    @property
    def deviation(self) -> float:
        """Of the covariance's scale."""
        return float(self.scale**0.5)


def _digest(tensors: dict[str, Tensor]) -> str:
    """The checksum of tensors and their names; safetensors lays them out in an order of its own."""
    return hashlib.sha256(save(tensors)).hexdigest()
