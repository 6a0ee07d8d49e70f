"""Whether the tokens of texts are as surprising as a language model says they are."""

from dataclasses import dataclass

from scipy import stats

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.metrics.labels import known_labels
from bayes_lora.metrics.language import LanguagePrediction


@dataclass(frozen=True)
class Surprise:
    """The surprise of label tokens beside what the model expects of it.

    Attributes:
        observed: mean of -ln p(y_t) over label tokens, nats.
        expected: mean entropy of the distributions that they were predicted with, nats.
        standard_error: of the difference.
        num_tokens: label tokens.
        p_value: two-sided.
        failure_rate: the p-value below which the test rejects.
    """

    observed: float
    expected: float
    standard_error: float
    num_tokens: int
    p_value: float
    failure_rate: float

    @property
    def flagged(self) -> bool:
        """Whether tokens surprise the model more, or less, than it says."""
        return self.p_value < self.failure_rate

    @property
    def message(self) -> str:
        """In words."""
        said = f"{self.observed:.3f} nats a token, {self.expected:.3f} expected (p = {self.p_value:.2g})"
        if not self.flagged:
            return f"The tokens are as surprising as predicted: {said}."
        how, why = ("more", "over") if self.observed > self.expected else ("less", "under")
        return f"The tokens are {how} surprising than predicted: {said}; the model is {why}confident."


def check_surprise(prediction: LanguagePrediction, *, failure_rate: float = 0.01) -> Surprise:
    """Mean surprise of the label tokens against the entropy that the model gives them.

        e_t = -ln p(y_t | y_<t) - H[p(. | y_<t)],    z = sum_t e_t / sqrt(sum_t e_t^2)

    with p the mean over draws. Were y_t drawn from p, each e_t would have mean 0 whatever came before it, so that they
    are uncorrelated and z is standard normal for many tokens: texts need no independent tokens for that.

    It can tell overconfidence from underconfidence, over all tokens together. It cannot tell where, nor whether the
    probabilities are sharp: those of a model that says how often each token occurs are calibrated. All tokens share the
    one LoRA-A that is not known exactly, which z leaves out: where the draws disagree much, a right posterior is
    flagged more often than `failure_rate`.

    Args:
        prediction: of rows with labels, best held out.
        failure_rate: probability that a calibrated model is flagged.

    Raises:
        DataError: no token has a label.
        ConfigurationError: a failure rate out of range.

    Source: Braverman et al. 2020, Calibration, Entropy Rates, and Memory in Language Models, for the comparison; Hall
    and Heyde 1980, Martingale Limit Theory, theorem 3.2, for z.

    Example:
        >>> check_surprise(predict(model, guide, held_out)).message  # doctest: +SKIP
        'The tokens are as surprising as predicted: 3.210 nats a token, 3.195 expected (p = 0.71).'
    """
    if not 0 < failure_rate < 1:
        raise ConfigurationError(f"failure_rate={failure_rate!r} must lie between 0 and 1, such as 0.01.")
    known_labels(prediction.labels)
    count = int(prediction.num_tokens.sum())
    if count == 0:
        raise DataError("no token of the predicted rows has a label. Predict rows with a completion.")
    observed = -prediction.token_log_probs[prediction.scored]
    expected = prediction.total_entropy[prediction.scored]
    excess = observed - expected
    error = float(excess.square().sum().sqrt())
    p_value = float(2 * stats.norm.sf(abs(float(excess.sum())) / error)) if error > 0 else 1.0
    means = (float(observed.mean()), float(expected.mean()))
    return Surprise(*means, error / count, count, p_value, failure_rate)
