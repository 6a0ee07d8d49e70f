"""Whether predicted probabilities are calibrated: the probability integral transform of the labels, left out or held
out."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from bayes_lora.checks import require_seed
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.diagnostics.importance import Array, k_hat_threshold, leave_one_out_weights
from bayes_lora.inference.diagnostics.replicated_labels import require_labels
from bayes_lora.metrics.labels import known_labels
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.metrics.regression import RegressionPrediction

_FEWEST_DRAWS = 25


@dataclass(frozen=True)
class LooPit:
    """The transform of every row's label, and a test that they are uniform.

    Attributes:
        values: (example,), from 0 to 1.
        p_value: Kolmogorov-Smirnov, two-sided.
        failure_rate: the p-value below which the test rejects.
        unreliable: rows whose leave-one-out weights have a k-hat above the threshold; 0 for rows held out.
        ordered: whether labels have an order of their own, as grades and numbers do; else they are in that of their
            probability.
    """

    values: NDArray[np.float64]
    p_value: float
    failure_rate: float
    unreliable: int
    ordered: bool = False

    @property
    def flagged(self) -> bool:
        """Whether the values are not uniform."""
        return self.p_value < self.failure_rate

    @property
    def message(self) -> str:
        """In words."""
        said = f"The labels' ranks are consistent with calibrated probabilities (p = {self.p_value:.2g})."
        if self.flagged and self.ordered:
            said = (
                f"What is predicted is not calibrated (p = {self.p_value:.2g}): the labels' ranks have a mean of "
                f"{self.values.mean():.2f} instead of .5, above which labels are higher than predicted, and a standard "
                f"deviation of {self.values.std():.2f} instead of .29, above which they are further off than predicted."
            )
        elif self.flagged:
            surprise = "more" if self.values.mean() > 0.5 else "less"
            said = (
                f"The probabilities are not calibrated (p = {self.p_value:.2g}): on average the labels are {surprise} "
                f"surprising than predicted (mean rank {self.values.mean():.2f} instead of .5)."
            )
        if self.unreliable:
            said += (
                f" For {self.unreliable} of {len(self.values)} rows the leave-one-out weights are not reliable: take "
                "more draws, or rows held out."
            )
        return said


def loo_pit(
    prediction: Prediction | RegressionPrediction,
    *,
    held_out: bool = False,
    seed: int = 0,
    failure_rate: float = 0.01,
    ordered: bool = False,
) -> LooPit:
    """Randomized probability integral transform of every row's label, by leave-one-out, and whether it is uniform.

    Classes have no order of their own, so they are put in that of their probability, the most probable first:

        u_i = sum_{c: p_ic > p_iy} p_ic + V_i * sum_{c: p_ic = p_iy} p_ic,    V_i ~ U(0, 1)

    which is uniform where y_i ~ Categorical(p_i). A small u is a label that was expected, a u near 1 one that was not:
    too many near 1 is overconfidence, too few is underconfidence. The randomization is needed since labels are
    discrete (ArviZ's `loo_pit` is for continuous ones; without V, the values of a perfect classifier are not uniform).
    Grades have an order of their own (`ordered`): ``u_i = P(y < y_i) + V_i P(y = y_i)``; and so have numbers, whose
    ``u_i = F_i(y_i)`` of every output needs no V. A mean of u above 1/2 is then a bias downwards, and too many near 0
    and 1 are overconfidence. p_i is the leave-one-out predictive,

        p_ic = sum_s w_is p(c | x_i, draw s),    w_is proportional to p(y_i | x_i, draw s)^(-1 / T), smoothed

    as the rows trained on have been seen already; T is the posterior's `kl_temperature`, which `predict` leaves in its
    prediction. At a small T a row counts many times, and leaving it out changes the posterior so much that draws of it
    say little about what is left: k-hat tells. For rows held out p_i is the plain mean over draws.

    It can tell whether labels surprise the model as often as it says they do, over all rows together. It cannot tell
    whether its probabilities are sharp: the class frequencies, the same for every row, are calibrated. Errors in
    opposite directions in different rows can cancel; see `check_confidence`. Leave-one-out weights correct for rows
    that the *posterior* saw: where mu and B were fitted to them as points, no weights can undo that, and rows held out
    are the only honest ones. Those share the one LoRA-A that is not known exactly, so their values are not independent:
    with few rows to train on and many more held out, a right posterior is flagged more often than `failure_rate`.

    Args:
        prediction: labelled rows: those trained on, or others with held_out=True; 100 draws or more are best. Of words,
            and of several labels for a row, ``likelihood.choices(prediction)``.
        held_out: whether the rows were not trained on.
        seed: of V.
        failure_rate: probability that calibrated predictions of independent rows are flagged.
        ordered: whether classes are grades; numbers always are in order.

    Raises:
        DataError: rows without labels, or probabilities or labels that make no sense.
        ConfigurationError: fewer than 25 draws of rows trained on, or antithetic ones, draws of no density that rows
            can be left out of (objective "paper", dropout, an ensemble), or an option out of range.

    Source: Czado, Gneiting & Held, "Predictive model assessment for count data", Biometrics 65 (2009), section 2;
    order by probability as in Romano, Sesia & Candes, "Classification with valid and adaptive coverage", NeurIPS 2020,
    equation 5; leave-one-out by Vehtari, Gelman & Gabry, Statistics and Computing 27 (2017), section 2.

    Example:
        >>> drawn = predict(model, guide, train_loader, num_samples=200, draws="independent")  # doctest: +SKIP
        >>> loo_pit(drawn).p_value  # doctest: +SKIP
        0.41
    """
    require_seed("seed", seed)
    if not 0 < failure_rate < 1:
        raise ConfigurationError(f"failure_rate={failure_rate!r} must lie between 0 and 1, such as 0.01.")
    if isinstance(prediction, RegressionPrediction):
        labels = known_labels(prediction.labels)
        log_weights, unreliable = _weights(prediction, held_out, lambda: prediction.draw_log_density)
        of_draws = np.stack([prediction.draw_cdf(draw, labels).numpy() for draw in range(len(prediction.logits))])
        values = np.einsum("ns,sno->no", np.exp(log_weights), of_draws).reshape(-1)
    else:
        classes = require_labels(prediction)
        log_weights, unreliable = _weights(
            prediction, held_out, lambda: prediction.logits.double().log_softmax(-1)[:, range(len(classes)), classes]
        )
        probs = np.einsum("ns,snc->nc", np.exp(log_weights), prediction.probs.numpy())
        values = _randomized_ranks(probs, classes.numpy(), np.random.default_rng(seed), ordered)
    ordered = ordered or isinstance(prediction, RegressionPrediction)
    return LooPit(values, float(stats.kstest(values, "uniform").pvalue), failure_rate, unreliable, ordered)


def _randomized_ranks(probs: Array, labels: NDArray[np.int64], random: np.random.Generator, ordered: bool) -> Array:
    """u (example,) of labels under probabilities (example, class)."""
    own = np.take_along_axis(probs, labels[:, None], axis=1)
    places = np.arange(probs.shape[1])
    before, same = (places < labels[:, None], places == labels[:, None]) if ordered else (probs > own, probs == own)
    more, equal = (np.where(chosen, probs, 0).sum(-1) for chosen in (before, same))
    return more + random.uniform(size=len(labels)) * equal  # type: ignore[no-any-return]


def _weights(
    prediction: Prediction | RegressionPrediction, held_out: bool, log_likelihood: Callable[[], Tensor]
) -> tuple[Array, int]:
    """Logarithms of the draws' weights (example, draw), and for how many rows they are not reliable.

    Raises:
        ConfigurationError: see `loo_pit`.
    """
    num_draws, num_rows = prediction.logits.shape[:2]
    if held_out:
        return np.full((num_rows, num_draws), -np.log(num_draws)), 0
    if num_draws < _FEWEST_DRAWS:
        raise ConfigurationError(
            f"{num_draws} draws leave no tail to smooth the leave-one-out weights with. Predict with num_samples="
            f"{_FEWEST_DRAWS} or more, 100 being better, or pass rows not trained on with held_out=True."
        )
    if prediction.block_size > 1:
        raise ConfigurationError(
            "leaving rows out weighs draws one by one, and k-hat reads their tail, which takes independent draws; "
            "these depend on each other by design. Predict with draws='independent'."
        )
    if prediction.kl_temperature is None:
        raise ConfigurationError(
            "rows can be left out of a posterior proportional to prior times likelihood^(1 / T), and these draws are "
            "of none, or nobody said which: objective='paper' has none, nor have dropout and ensembles. Fit with "
            "objective='elbo', or pass rows not trained on with held_out=True; draws of an exact posterior are "
            "Prediction(logits, labels, kl_temperature=1.0)."
        )
    log_weights, k_hat = leave_one_out_weights(log_likelihood().T.numpy(), prediction.kl_temperature)
    return log_weights, int((k_hat > k_hat_threshold(num_draws)).sum())
