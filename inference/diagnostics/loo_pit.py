"""Whether predicted probabilities are calibrated: the probability integral transform of the labels, left out or held
out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bayes_lora.checks import require_seed
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.diagnostics.importance import k_hat_threshold, leave_one_out_weights
from bayes_lora.inference.diagnostics.replicated_labels import require_labels
from bayes_lora.metrics.prediction import Prediction

_FEWEST_DRAWS = 25


@dataclass(frozen=True)
class LooPit:
    """The transform of every row's label, and a test that they are uniform.

    Attributes:
        values: (example,), from 0 to 1.
        p_value: Kolmogorov-Smirnov, two-sided.
        failure_rate: the p-value below which the test rejects.
        unreliable: rows whose leave-one-out weights have a k-hat above the threshold; 0 for rows held out.
    """

    values: NDArray[np.float64]
    p_value: float
    failure_rate: float
    unreliable: int

    @property
    def flagged(self) -> bool:
        """Whether the values are not uniform."""
        return self.p_value < self.failure_rate

    @property
    def message(self) -> str:
        """In words."""
        said = f"The labels' ranks are consistent with calibrated probabilities (p = {self.p_value:.2g})."
        if self.flagged:
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


def loo_pit(prediction: Prediction, *, held_out: bool = False, seed: int = 0, failure_rate: float = 0.01) -> LooPit:
    """Randomized probability integral transform of every row's label, by leave-one-out, and whether it is uniform.

    Classes have no order of their own, so they are put in that of their probability, the most probable first:

        u_i = sum_{c: p_ic > p_iy} p_ic + V_i * sum_{c: p_ic = p_iy} p_ic,    V_i ~ U(0, 1)

    which is uniform where y_i ~ Categorical(p_i). A small u is a label that was expected, a u near 1 one that was not:
    too many near 1 is overconfidence, too few is underconfidence. The randomization is needed since labels are
    discrete (ArviZ's `loo_pit` is for continuous ones; without V, the values of a perfect classifier are not uniform).
    p_i is the leave-one-out predictive,

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
        prediction: labelled rows: those trained on, or others with held_out=True; 100 draws or more are best.
        held_out: whether the rows were not trained on.
        seed: of V.
        failure_rate: probability that calibrated predictions of independent rows are flagged.

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
    labels = require_labels(prediction).numpy()
    require_seed("seed", seed)
    if not 0 < failure_rate < 1:
        raise ConfigurationError(f"failure_rate={failure_rate!r} must lie between 0 and 1, such as 0.01.")
    num_draws = len(prediction.logits)
    unreliable = 0
    if held_out:
        probs = prediction.mean_probs.numpy()
    elif num_draws < _FEWEST_DRAWS:
        raise ConfigurationError(
            f"{num_draws} draws leave no tail to smooth the leave-one-out weights with. Predict with num_samples="
            f"{_FEWEST_DRAWS} or more, 100 being better, or pass rows not trained on with held_out=True."
        )
    elif prediction.block_size > 1:
        raise ConfigurationError(
            "leaving rows out weighs draws one by one, and k-hat reads their tail, which takes independent draws; "
            "these depend on each other by design. Predict with draws='independent'."
        )
    elif prediction.kl_temperature is None:
        raise ConfigurationError(
            "rows can be left out of a posterior proportional to prior times likelihood^(1 / T), and these draws are "
            "of none, or nobody said which: objective='paper' has none, nor have dropout and ensembles. Fit with "
            "objective='elbo', or pass rows not trained on with held_out=True; draws of an exact posterior are "
            "Prediction(logits, labels, kl_temperature=1.0)."
        )
    else:
        log_likelihood = prediction.logits.double().log_softmax(-1)[:, range(len(labels)), labels]  # (draw, example)
        log_weights, k_hat = leave_one_out_weights(log_likelihood.T.numpy(), prediction.kl_temperature)
        unreliable = int((k_hat > k_hat_threshold(num_draws)).sum())
        probs = np.einsum("ns,snc->nc", np.exp(log_weights), prediction.probs.numpy())
    own = np.take_along_axis(probs, labels[:, None], axis=1)
    more, same = (np.where(chosen, probs, 0).sum(-1) for chosen in (probs > own, probs == own))
    values = more + np.random.default_rng(seed).uniform(size=len(labels)) * same
    return LooPit(values, float(stats.kstest(values, "uniform").pvalue), failure_rate, unreliable)
