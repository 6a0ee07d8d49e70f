"""Whether a fit had stopped learning when it ended: the slope of the last part of its loss."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from bayes_lora.checks import require_count, require_fraction, require_positive
from bayes_lora.errors import ConfigurationError, DataError

Verdict = Literal["converged", "still falling", "rising", "too noisy to tell"]
_FEWEST_BATCHES = 4


@dataclass(frozen=True)
class Convergence:
    """Slope of one term of the loss over the last part of a fit.

    Attributes:
        term: "loss", or the term looked at.
        verdict: "converged", "still falling", "rising" or "too noisy to tell".
        slope: change per step, by least squares.
        standard_error: of the slope.
        change: slope times the steps looked at.
        low: the confidence interval of the change runs from here
        high: to here.
        tolerance: the change that would not matter.
        first_step: the part looked at begins with this step
        last_step: and ends with this one.
    """

    term: str
    verdict: Verdict
    slope: float
    standard_error: float
    change: float
    low: float
    high: float
    tolerance: float
    first_step: float
    last_step: float

    @property
    def flagged(self) -> bool:
        """Whether the fit cannot be said to have converged: also where the loss is too noisy to tell."""
        return self.verdict != "converged"

    @property
    def message(self) -> str:
        """The verdict in words."""
        advice = {
            "converged": "",
            "still falling": " Train longer, or with a larger learning rate.",
            "rising": " Lower the learning rate.",
            "too noisy to tell": " Log more of it, average over larger batches, or say what change matters.",
        }
        return (
            f"{self.term}: {self.verdict}. From step {self.first_step:g} to {self.last_step:g} it changed by "
            f"{self.change:.3g} (between {self.low:.3g} and {self.high:.3g}); up to {self.tolerance:g} does not "
            f"matter.{advice[self.verdict]}"
        )


def convergence(
    history: Sequence[Mapping[str, float]],
    *,
    term: str = "loss",
    last: float = 0.5,
    tolerance: float = 0.01,
    failure_rate: float = 0.01,
    num_batches: int = 10,
) -> Convergence:
    """Least-squares slope of the last part of a loss, and whether it could still matter.

    The entries of that part are cut into `num_batches` runs, and the line is fitted to their means,

        mean_b = a + slope * step_b + noise,        change = slope * (last step - first step)

    so that noise which entries near each other share does not pass for certainty: standard error and interval (Student
    t, num_batches - 2 degrees of freedom) hold wherever a run is long beside the memory of the noise. The verdict is a
    test of equivalence, since a slope that is not significant may only be noisy, and one that is may be negligible:

        converged           the whole interval of the change lies within the tolerance
        still falling       the whole interval lies below 0, and it reaches beyond the tolerance
        rising              the same above 0
        too noisy to tell   anything else

    It can tell that the optimizer still moved the loss. It cannot tell that the optimum is a good one, nor a global
    one, nor that the posterior is right: a guide that cannot express the posterior converges as well. Nor can it see
    a fit that stands still because its learning rate has decayed to nothing: the part that it looks at should have
    been trained at a rate that could have moved it.

    Args:
        history: of a `FitResult`; entries without the term, as those of a phase that has none, are left out.
        term: "loss", or one of the terms that sum to it.
        last: part of the entries looked at, from the end.
        tolerance: change over that part that does not matter, in the term's own unit: nats per example for "loss".
        failure_rate: 1 - confidence of the interval, two-sided.
        num_batches: runs; more give a smaller error, fewer a more honest one where the noise has a long memory.

    Raises:
        DataError: fewer entries with this term than runs, or some that are not finite.
        ConfigurationError: an option out of range.

    Source: batch means as in Law & Kelton, "Confidence intervals for steady-state simulations", Operations Research
    32 (1984); two one-sided tests as in Schuirmann (1987).

    Example:
        >>> history = [{"step": float(s), "loss": 1.0 + 0.001 * (s % 2)} for s in range(100)]
        >>> convergence(history).verdict
        'converged'
    """
    require_fraction("last", last)
    require_positive("tolerance", tolerance)
    if not 0 < failure_rate < 1:
        raise ConfigurationError(f"failure_rate={failure_rate!r} must lie between 0 and 1, such as 0.01.")
    require_count("num_batches", num_batches)
    if num_batches < _FEWEST_BATCHES:
        raise ConfigurationError(
            f"num_batches={num_batches} leaves no error to estimate. Give {_FEWEST_BATCHES} or more."
        )
    steps, values = _last_part(history, term, last, num_batches)
    x, y = (np.array([part.mean() for part in np.array_split(of, num_batches)]) for of in (steps, values))
    line = stats.linregress(x, y)
    slope, error = float(line.slope), float(line.stderr) if np.ptp(y) > 0 else 0.0  # of a constant scipy has no error
    length = float(steps[-1] - steps[0])
    margin = float(stats.t.ppf(1 - failure_rate / 2, num_batches - 2)) * error * length
    change = slope * length
    low, high = change - margin, change + margin
    verdict: Verdict = "too noisy to tell"
    if max(-low, high) <= tolerance:
        verdict = "converged"
    elif high < 0:
        verdict = "still falling"
    elif low > 0:
        verdict = "rising"
    return Convergence(term, verdict, slope, error, change, low, high, tolerance, float(steps[0]), float(steps[-1]))


def _last_part(
    history: Sequence[Mapping[str, float]], term: str, last: float, num_batches: int
) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the last entries that have the term."""
    entries = [(entry["step"], entry[term]) for entry in history if term in entry]
    if not entries:
        known = sorted({name for entry in history for name in entry} - {"step", "epoch", "learning_rate"})
        raise DataError(f"no entry of the history has a term {term!r}. It has: {', '.join(known) or 'no entries'}.")
    kept = entries[-math.ceil(last * len(entries)) :] if last > 0 else []
    if len(kept) < num_batches:
        raise DataError(
            f"the last {last:g} of the history has {len(kept)} entries of {term!r}, and {num_batches} runs were asked "
            "for. Fit with a smaller FitOptions.log_every, or give a smaller num_batches."
        )
    steps, values = np.array(kept, dtype=float).T
    if not np.isfinite(values).all():
        raise DataError(f"{term!r} is NaN or infinite in the last part of the history. Lower the learning rate.")
    return steps, values
