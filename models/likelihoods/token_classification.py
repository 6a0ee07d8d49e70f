"""A class for each token of a row."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_lora.checks import require_class_ids
from bayes_lora.distributions.token_categorical import TokenCategorical
from bayes_lora.errors import LikelihoodError
from bayes_lora.labels import UNLABELLED
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.metrics.tokens import TokenPrediction
from bayes_lora.models.likelihoods.diagnosed import Variable, label_rates
from bayes_lora.models.likelihoods.labelled_tokens import count_labelled, require_labelled
from bayes_lora.models.likelihoods.likelihood import Likelihood
from bayes_lora.models.likelihoods.words import Words


class TokenClassification(Likelihood):
    """``y_it ~ Categorical(softmax(logits_it))`` for the labelled tokens t of row i, in the plate `data`.

    Tokens with the label -100 are passed over: padding, special tokens, and all pieces of a word but its first. The
    negative log-likelihood is the mean over labelled tokens, as in transformers, so that these are what
    `num_train_examples` counts.

    Args:
        label_names: (class,) what the classes mean, such as "B-person"; with them, entities are scored as a whole.
    """

    kind = "token_classification"
    label_dims = ("token",)
    named_dim = "class"
    statistics_called = "rate of labels"
    row_dims = 2

    def __init__(self, label_names: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.label_names = tuple(label_names)

    @classmethod
    def of_network(cls, network: nn.Module) -> Self:
        """With the names that the network's configuration has."""
        names = getattr(getattr(network, "config", None), "id2label", None) or {}
        return cls(tuple(str(names[index]) for index in sorted(names)))

    def settings(self) -> dict[str, Any]:
        """The names."""
        return {"label_names": list(self.label_names)}

    @classmethod
    def words(cls, settings: Mapping[str, Any]) -> Words:
        """Classes of tokens."""
        return Words(
            answer="a class for each word",
            shown=(
                "prediction.mean_probs)  # (example, token, class)",
                "prediction.mutual_information)  # (example, token), nats: how far the draws disagree",
            ),
        )

    def checked_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(row, token) classes, and -100.

        Raises:
            LikelihoodError: logits that are not (row, token, class); not one label for each token, or one outside.
        """
        if logits.dim() != 3:
            raise LikelihoodError(
                f"the network returned logits of shape {tuple(logits.shape)}; token classification has (row, token, "
                "class). Load it with AutoModelForTokenClassification."
            )
        if labels.shape != logits.shape[:2]:
            raise LikelihoodError(
                f"the labels have shape {tuple(labels.shape)}, the network's outputs {tuple(logits.shape)}. Pass a "
                "class for each token, and -100 where there is none, padded as the tokens are "
                "(DataCollatorForTokenClassification)."
            )
        if labels.is_floating_point():
            raise LikelihoodError(f"labels are {labels.dtype}; classes are integers. Convert them: labels.long().")
        if labels.device.type == "cpu":  # elsewhere the look would stall every step
            remedy = "Load the network with num_labels={needed}, or correct the labels; -100 is for tokens without one."
            require_class_ids(labels[labels != UNLABELLED], logits.shape[-1], LikelihoodError, remedy)
        return labels

    def distribution(self, logits: Tensor) -> TorchDistributionMixin:
        """Categorical for each token."""
        return TokenCategorical(logits)

    def num_observations(self, labels: Tensor) -> int:
        """Labelled tokens."""
        return int((labels != UNLABELLED).sum())

    def num_observations_in(self, dataset: Any) -> int | None:
        """Labelled tokens of all rows."""
        return count_labelled(dataset)

    def require_observations(self, dataset: Any) -> None:
        """Some token has a label.

        Raises:
            DataError: none has.
        """
        require_labelled(dataset)

    def prediction(self, logits: Tensor, labels: Tensor | None) -> TokenPrediction:
        """The tokens' class probabilities under every draw."""
        return TokenPrediction(logits, labels, self.label_names)

    def labelled(self, prediction: Any, labels: Tensor) -> TokenPrediction:
        """With these classes (row, word), -100 after the last, at the tokens that are to have one."""
        return prediction.with_words(labels)  # type: ignore[no-any-return]

    def summary(self, prediction: Any) -> Tensor:
        """Logits (row, token, sample, class): where tokens are second, the Trainer can pad them."""
        return prediction.logits.permute(1, 2, 0, 3)  # type: ignore[no-any-return]

    def of_summary(self, summary: Tensor, labels: Tensor | None) -> TokenPrediction:
        """All draws, which is what the summary has."""
        return self.prediction(summary.permute(2, 0, 1, 3), labels)

    def metrics(self, prediction: Any) -> dict[str, float]:
        """See `TokenPrediction.metrics`."""
        return prediction.metrics()  # type: ignore[no-any-return]

    def row_log_density(self, prediction: Any) -> Tensor:
        """See `TokenPrediction.log_density`."""
        return prediction.log_density  # type: ignore[no-any-return]

    def losses(self, prediction: Any) -> dict[str, Tensor]:
        """-ln p of all tokens of a row by the mean number of tokens, so that the mean over rows is that over tokens."""
        tokens = (prediction.labels >= 0).sum()
        return {"nll": -prediction.log_density * len(prediction.labels) / tokens}

    def draw_log_density(self, prediction: Any) -> Tensor:
        """Of all labelled tokens of a row together."""
        return prediction.draw_log_density  # type: ignore[no-any-return]

    def replicated(self, prediction: Any, draw: int, count: int, generator: torch.Generator) -> Tensor:
        """Classes of the tokens that have one; -100 for the others."""
        return prediction.drawn(draw, count, generator)  # type: ignore[no-any-return]

    def label_statistics(self, prediction: Any, labels: Tensor) -> dict[str, Tensor]:
        """Rates of the classes among the tokens that have one."""
        return label_rates(labels, prediction.logits.shape[-1])

    def predictive_variables(self, prediction: Any) -> dict[str, Variable]:
        """Probabilities; NaN for tokens without a class."""
        probs = prediction.probs.where(prediction.scored.unsqueeze(-1), torch.nan)
        return {"probs": Variable(probs, ("example", "token", "class"), "class probability")}

    def disagreement(self, prediction: Any) -> Tensor:
        """The sum over tokens that have a class."""
        return prediction.mutual_information.where(prediction.scored, 0.0).sum(-1)  # type: ignore[no-any-return]

    def uncertainty(self, prediction: Any) -> dict[str, Tensor]:
        """Entropy and mutual information, nats, in the mean over a row's tokens that have a class."""
        tokens = prediction.scored.sum(-1).clamp_min(1)
        entropy = prediction.total_entropy.where(prediction.scored, 0.0).sum(-1)
        return {"entropy": entropy / tokens, "mutual_information": self.disagreement(prediction) / tokens}

    def averaged(self, prediction: Any) -> Tensor:
        """Probabilities; 0 for tokens without a class."""
        return prediction.probs.where(prediction.scored.unsqueeze(-1), 0.0)  # type: ignore[no-any-return]

    def choices(self, prediction: Any) -> Prediction:
        """The labelled tokens of all rows."""
        return prediction.of_tokens  # type: ignore[no-any-return]

    def rescaled(self, prediction: Any, temperature: float) -> TokenPrediction:
        """``q(y) proportional to p(y)^(1 / T)`` for each token, p its mean probabilities; one sample."""
        mixed = prediction.logits.double().log_softmax(-1).logsumexp(0)
        return TokenPrediction((mixed / temperature).log_softmax(-1).unsqueeze(0), prediction.labels, self.label_names)
