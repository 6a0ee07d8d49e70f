"""The energy of a row: how little its logits say, all together."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bayes_lora.checks import require_positive
from bayes_lora.inference.predictors.predictor import Predictor
from bayes_lora.metrics.prediction import Prediction


@dataclass(frozen=True, eq=False)
class EnergyScore:
    """Predicts as another predictor does, and tells foreign rows by their free energy:

        E(x) = -T log sum_c exp(f_c(x) / T),     the mean over samples

    Larger for rows from elsewhere. Unlike probabilities it changes with a number that is added to all logits of a row,
    so the predictor has to give logits as the network does: a `TemperatureScaled` gives logarithms of probabilities,
    and the energy of all of them is 0.

    Cost: that of the predictor.

    Args:
        predictor: of classes; published for a network at one point.
        temperature: T > 0; 1 is the paper's.

    Raises:
        ConfigurationError: a temperature that is not positive and finite.

    Source: Liu et al. 2020, Energy-based Out-of-distribution Detection (arXiv 2010.03759), without its fine-tuning
    on rows from elsewhere.

    Example:
        >>> prediction = EnergyScore(PointEstimate(network))(loader)  # doctest: +SKIP
        >>> prediction.foreignness  # doctest: +SKIP
    """

    predictor: Predictor
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require_positive("temperature", self.temperature)

    def __call__(
        self,
        loader: Iterable[Mapping[str, Any]],
        *,
        num_samples: int = 32,
        seed: int = 0,
        on_batch: Callable[[], None] | None = None,
    ) -> Prediction:
        found = self.predictor(loader, num_samples=num_samples, seed=seed, on_batch=on_batch)
        energy = -self.temperature * (found.logits.double() / self.temperature).logsumexp(-1)
        return replace(found, foreignness=energy.mean(0))
