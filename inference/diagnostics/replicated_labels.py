"""Labels drawn from the posterior predictive, and observed labels compared with them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayes_lora.checks import require_count, require_seed
from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.metrics.classification import accuracy
from bayes_lora.metrics.prediction import Prediction

_REPLICATES = 4000

Statistics = Callable[[Tensor], Tensor]  # labels (replicate, row, ...) -> (replicate, statistic)
Drawn = Callable[[int, int, torch.Generator], Tensor]  # draw, count -> labels (count, row, ...)


@dataclass(frozen=True)
class PredictiveCheck:
    """Statistics of the observed labels beside those of labels drawn from the posterior predictive.

    Attributes:
        what: what the statistics are of.
        names: of the statistics.
        counts: rows that each is taken over, or labels where a row has several.
        observed: value of each.
        replicated: mean of each over replicates.
        low, high: 2.5 % and 97.5 % quantiles of each over replicates.
        p_values: two-sided posterior predictive p-value of each.
        failure_rate: probability that a model which is right is flagged, at most, over all statistics together.
    """

    what: str
    names: tuple[str, ...]
    counts: tuple[int, ...]
    observed: tuple[float, ...]
    replicated: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    p_values: tuple[float, ...]
    failure_rate: float

    @property
    def flagged(self) -> bool:
        """Whether some statistic is out of line, by Bonferroni's bound over all of them."""
        return min(self.p_values) < self.failure_rate / len(self.p_values)

    @property
    def message(self) -> str:
        """In words, of the statistic that is most out of line."""
        worst = min(range(len(self.p_values)), key=self.p_values.__getitem__)
        verdict = "is not what the model predicts" if self.flagged else "is in line with the model"
        return (
            f"The {self.what} {verdict}: for {self.names[worst]} it is {self.observed[worst]:.3f}, predicted are "
            f"{self.low[worst]:.3f} to {self.high[worst]:.3f} (p = {self.p_values[worst]:.2g})."
        )


def require_labels(prediction: Prediction) -> Tensor:
    """The labels of a prediction that a check can be made of.

    Raises:
        DataError: there are none, or `metrics.evaluate` would refuse labels or probabilities.
    """
    if prediction.labels is None:
        raise DataError(
            "the predicted rows have no labels to check the model against. Predict from a loader whose batches have "
            "'labels'."
        )
    accuracy(prediction.mean_probs, prediction.labels)  # for its checks
    return prediction.labels


def against_replicates(
    what: str,
    names: tuple[str, ...],
    counts: tuple[int, ...],
    statistics: Statistics,
    prediction: Any,
    num_replicates: int | None,
    seed: int,
    failure_rate: float,
    drawn: Drawn | None = None,
) -> PredictiveCheck:
    """Statistics of the observed labels against those of replicated ones; see `check_label_rates` for the p-values.

    Args:
        what, names, counts: see `PredictiveCheck`.
        statistics: of labels (replicate, row, ...): (replicate, statistic).
        prediction: labelled rows, their labels checked.
        num_replicates: replicates; None is as many as the failure rate needs, and no fewer than 4000.
        seed: of the replicates.
        failure_rate: probability that a model which is right is flagged, at most.
        drawn: how labels are drawn; by default as the prediction says.

    Raises:
        ConfigurationError: draws that are not joint, too few replicates for the failure rate, or an option out of
            range.
    """
    if not getattr(prediction, "joint", True):
        raise ConfigurationError(
            "the draws of each row are independent of those of other rows, as dropout masks and Laplace's "
            "link='monte_carlo' make them, so replicates of all rows would vary too little. Predict with a posterior, "
            "or LaplacePredictor(network, posterior, link='joint')."
        )
    require_seed("seed", seed)
    if not 0 < failure_rate < 1:
        raise ConfigurationError(f"failure_rate={failure_rate!r} must lie between 0 and 1, such as 0.01.")
    needed = int(2 * len(names) / failure_rate) + 1
    if num_replicates is None:
        num_replicates = max(needed, _REPLICATES)
    require_count("num_replicates", num_replicates)
    if num_replicates < needed:
        raise ConfigurationError(
            f"{num_replicates} replicates cannot show a p-value below {failure_rate:g} / {len(names)} statistics. "
            f"Give num_replicates={needed} or more."
        )
    observed = statistics(prediction.labels.unsqueeze(0))[0].numpy()
    replicated = _replicate(drawn or prediction.drawn, len(prediction.logits), statistics, num_replicates, seed)
    # The observed labels count as one more replicate, so that no p-value is 0 and the test keeps its rate.
    above, below = (
        (1 + side.sum(0)) / (num_replicates + 1) for side in (replicated >= observed, replicated <= observed)
    )
    low, high = np.quantile(replicated, (0.025, 0.975), axis=0)
    return PredictiveCheck(
        what,
        names,
        counts,
        tuple(observed.tolist()),
        tuple(replicated.mean(0).tolist()),
        tuple(low.tolist()),
        tuple(high.tolist()),
        tuple(np.minimum(1, 2 * np.minimum(above, below)).tolist()),
        failure_rate,
    )


def _replicate(
    drawn: Drawn, num_draws: int, statistics: Statistics, num_replicates: int, seed: int
) -> NDArray[np.float64]:
    """Statistics (replicate, statistic) of drawn labels; every draw of the posterior serves equally many replicates."""
    generator, found = torch.Generator().manual_seed(seed), []
    for draw in range(min(num_draws, num_replicates)):
        share = len(range(draw, num_replicates, num_draws))
        found.append(statistics(drawn(draw, share, generator)))
    return torch.cat(found).numpy()
