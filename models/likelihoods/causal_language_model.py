"""The next token after each token of a row: a language model."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn.functional import pad

from bayes_lora.checks import require_class_ids
from bayes_lora.distributions.next_token_categorical import NextTokenCategorical
from bayes_lora.errors import LikelihoodError
from bayes_lora.labels import UNLABELLED
from bayes_lora.metrics.language import LanguagePrediction
from bayes_lora.models.likelihoods.diagnosed import Variable
from bayes_lora.models.likelihoods.labelled_tokens import count_labelled, require_labelled
from bayes_lora.models.likelihoods.likelihood import Likelihood
from bayes_lora.models.likelihoods.network_arguments import arguments_of, text_config
from bayes_lora.models.likelihoods.next_token_reduction import NextTokenReduction, num_last, scored_tokens
from bayes_lora.models.likelihoods.words import Words


class CausalLanguageModel(Likelihood):
    """``y_it ~ Categorical(softmax(logits_i,t-1))`` for the labelled tokens t > 0 of row i, in the plate `data`.

    Labels are tokens, each in its own place as in `input_ids`; the shift by one is made here, as transformers makes it
    in a network's own loss. Tokens with the label -100 are passed over: the prompt and padding, on either side. The
    negative log-likelihood is the mean over labelled tokens of all batches of a step, so that these are what
    `num_train_examples` counts.

    Logits may be of a row's last tokens only (`logits_to_keep`). Those of all draws are never held at once: predictions
    are reduced to `LanguagePrediction` in the pass that makes them.
    """

    kind = "causal_language_model"
    label_dims = ("token",)
    averaged_called = "probability of a label token"
    row_dims = 2
    reduces = True

    @classmethod
    def of_network(cls, network: nn.Module) -> Self:
        """The same for every network."""
        return cls()

    @classmethod
    def words(cls, settings: Mapping[str, Any]) -> Words:
        """The next tokens of a text."""
        return Words(
            answer="a completion",
            label="token",
            shown=(
                "prediction.log_density)  # (example,), nats: of all labelled tokens of a row together",
                "prediction.mutual_information)  # (example, token), nats: how far the draws disagree",
            ),
            point="network(**batch).loss)  # nats, by the number of labelled tokens",
            num_outputs=0,
        )

    def inputs(
        self, network: nn.Module, batch: Mapping[str, Any], labels: Tensor | None = None, *, unseen: bool = False
    ) -> Mapping[str, Any]:
        """With `position_ids` that count from a row's first token, and without a cache of keys and values.

        Positions from the edge of the batch would make of a row something else wherever padding is on the left, as
        soon as a network knows positions by number (GPT-2). Where nobody sees them, logits in front of the first label
        are not made: for a prompt, the product with the vocabulary is a good part of a small network's pass.

        Raises:
            LikelihoodError: not one label for each token.
        """
        known, found = arguments_of(network), dict(batch)
        _require_aligned(batch, labels)
        mask = batch.get("attention_mask")
        if "position_ids" in known and batch.get("position_ids") is None and mask is not None and mask.dim() == 2:
            found["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0)
        if "use_cache" in known:
            found.setdefault("use_cache", False)
        # On an accelerator the look for the first label would stall every step.
        if unseen and labels is not None and labels.device.type == "cpu" and "logits_to_keep" in known:
            found.setdefault("logits_to_keep", num_last(scored_tokens(batch, labels)))
        return found

    def checked_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(row, token), of the tokens that there are logits of; -100 for the first, which has none before it.

        Raises:
            LikelihoodError: logits that are not (row, token, vocabulary); not one label for each token, or one outside
                the vocabulary, or of a token without logits.
        """
        if logits.dim() != 3:
            raise LikelihoodError(
                f"the network returned logits of shape {tuple(logits.shape)}; a language model has (row, token, "
                "vocabulary). Load it with AutoModelForCausalLM."
            )
        if labels.dim() != 2 or len(labels) != len(logits) or labels.shape[1] < logits.shape[1]:
            raise _misaligned(labels, "the network's outputs", logits)
        if labels.is_floating_point():
            raise LikelihoodError(f"labels are {labels.dtype}; tokens are integers. Convert them: labels.long().")
        first = labels.shape[1] - logits.shape[1]
        if labels.device.type == "cpu":  # elsewhere the look would stall every step
            if first and (labels[:, 1 : first + 1] != UNLABELLED).any():
                raise _misaligned(labels, "the network's outputs", logits)
            _require_in_vocabulary(labels[:, first + 1 :], logits.shape[-1])
        return pad(labels[:, first + 1 :], (1, 0), value=UNLABELLED)

    def distribution(self, logits: Tensor) -> TorchDistributionMixin:
        """Categorical for each token but the first."""
        return NextTokenCategorical(logits)

    def num_observations(self, labels: Tensor) -> int:
        """Labelled tokens but for a row's first."""
        return int((labels[:, 1:] != UNLABELLED).sum())

    def num_observations_in(self, dataset: Any) -> int | None:
        """Labelled tokens of all rows, but for the first of each."""
        return count_labelled(dataset, first=1)

    def require_observations(self, dataset: Any) -> None:
        """Some token behind the first of a row has a label.

        Raises:
            DataError: none has.
        """
        require_labelled(dataset, first=1)

    def reduction(self, network: nn.Module, inputs: Mapping[str, Any], labels: Tensor | None) -> NextTokenReduction:
        """What takes in the logits of a batch, draw by draw.

        Raises:
            LikelihoodError: not one label for each token, or one outside the vocabulary.
        """
        _require_aligned(inputs, labels)
        keeps_last = "logits_to_keep" in arguments_of(network)
        vocabulary = getattr(text_config(network), "vocab_size", None)
        if labels is not None and vocabulary is not None:
            _require_in_vocabulary(labels[:, 1:], vocabulary)
        return NextTokenReduction(
            scored_tokens(inputs, labels), labels, inputs, keeps_last=keeps_last, vocabulary=vocabulary or 1
        )

    def joined(self, parts: Sequence[Any]) -> LanguagePrediction:
        """The predictions of several batches as one."""
        return LanguagePrediction.joined(parts)

    def prediction(self, logits: Tensor, labels: Tensor | None) -> LanguagePrediction:
        """Of logits (sample, row, token, vocabulary) that are all there, as of small networks."""
        scored = scored_tokens({"input_ids": logits[0, ..., 0]}, labels)
        reduction = NextTokenReduction(scored, labels)
        reduction.add(logits)
        return reduction.prediction()

    def labelled(self, prediction: Any, labels: Tensor) -> Any:
        """Not to be had.

        Raises:
            LikelihoodError: always: probabilities of tokens that were not asked for are gone.
        """
        raise LikelihoodError(
            "labels of a language model are tokens of the rows themselves, and have to be in the batches that are "
            "predicted: the probabilities of all other tokens are not kept. Predict batches with 'labels'."
        )

    def summary(self, prediction: Any) -> Tensor:
        """(row, token, sample + 3): where tokens are second, the Trainer can pad them."""
        parts = [prediction.total_entropy, prediction.aleatoric_entropy, prediction.scored.to(torch.double)]
        of_draws = [] if prediction.log_probs is None else list(prediction.log_probs)
        return torch.stack([*of_draws, *parts], dim=-1)

    def of_summary(self, summary: Tensor, labels: Tensor | None) -> LanguagePrediction:
        """All that the summary was made of."""
        scored = summary[..., -1] == 1  # the Trainer's padding is -100
        kept = summary.where(scored.unsqueeze(-1), 0.0).movedim(-1, 0)
        return LanguagePrediction(None if labels is None else kept[:-3], kept[-3], kept[-2], scored, labels)

    def metrics(self, prediction: Any) -> dict[str, float]:
        """See `LanguagePrediction.metrics`."""
        return prediction.metrics()  # type: ignore[no-any-return]

    def pack(self, prediction: Any) -> Tensor:
        """(sample, row, token, 4): ln p of the label under the draw; H[E p], E H[p] and what is scored, of all draws.

        Without labels there is one sample, and the first of these is 0.
        """
        log_probs = prediction.log_probs
        of_all = (prediction.total_entropy, prediction.aleatoric_entropy, prediction.scored.to(torch.double))
        if log_probs is None:
            log_probs = torch.zeros_like(prediction.total_entropy).unsqueeze(0)
        return torch.stack([log_probs, *(of.expand_as(log_probs) for of in of_all)], dim=-1)

    def unpack(self, packed: Tensor, labels: Tensor | None) -> LanguagePrediction:
        """All that was packed; of a part of the samples, entropies are still those of all."""
        log_probs, total, aleatoric, scored = packed.unbind(-1)
        known = None if labels is None else log_probs
        return LanguagePrediction(known, total[0], aleatoric[0], scored[0] == 1, labels)

    def row_log_density(self, prediction: Any) -> Tensor:
        """See `LanguagePrediction.log_density`."""
        return prediction.log_density  # type: ignore[no-any-return]

    def draw_log_density(self, prediction: Any) -> Tensor:
        """Of all labelled tokens of a row together."""
        return prediction.draw_log_density  # type: ignore[no-any-return]

    def replicated(self, prediction: Any, draw: int, count: int, generator: torch.Generator) -> None:
        """Probabilities of other tokens than the labels are gone."""

    def predictive_variables(self, prediction: Any) -> dict[str, Variable]:
        """Of each scored token the log probability of its label under every draw, where it has one, and the entropies;
        NaN for other tokens."""
        dims, found = ("example", "token"), {}
        if prediction.log_probs is not None:
            log_probs = prediction.log_probs.where(prediction.scored, torch.nan)
            found["log_probs"] = Variable(log_probs, dims, "log probability of the token", "nats")
        for name in ("total_entropy", "aleatoric_entropy"):
            values = getattr(prediction, name).where(prediction.scored, torch.nan)
            found[name] = Variable(values, dims, name.replace("_", " "), "nats", of_draws=False)
        return found

    def disagreement(self, prediction: Any) -> Tensor:
        """The sum over scored tokens."""
        return prediction.mutual_information.sum(-1)  # type: ignore[no-any-return]

    def texts(self, prediction: Any) -> LanguagePrediction:
        """The prediction itself."""
        return prediction  # type: ignore[no-any-return]

    def losses(self, prediction: Any) -> dict[str, Tensor]:
        """Of rows by the mean number of tokens, so that the mean over rows is that over tokens; and of whole rows."""
        per_token = len(prediction.scored) / int(prediction.num_tokens.sum())
        return {
            "nll": -per_token * prediction.log_density,
            "token_nll": -per_token * prediction.token_log_probs.sum(-1),
            "sequence_nll": -prediction.log_density,
        }

    def uncertainty(self, prediction: Any) -> dict[str, Tensor]:
        """Entropy of the predictive, and mutual information, in the mean over a row's scored tokens, nats."""
        tokens = prediction.num_tokens.clamp_min(1)
        return {
            "entropy": prediction.total_entropy.sum(-1) / tokens,
            "mutual_information": prediction.mutual_information.sum(-1) / tokens,
        }

    def averaged(self, prediction: Any) -> Tensor:
        """Probabilities of label tokens.

        Raises:
            LikelihoodError: there are none.
        """
        if prediction.log_probs is None:
            raise LikelihoodError(
                "num_samples='auto' looks at the probabilities of the tokens that are labels, and these rows have "
                "none. Predict batches with 'labels', or say how many draws to take, such as num_samples=16."
            )
        return prediction.log_probs.exp()  # type: ignore[no-any-return]


def _require_aligned(batch: Mapping[str, Any], labels: Tensor | None) -> None:
    tokens = batch.get("input_ids")
    if labels is not None and tokens is not None and labels.shape != tokens.shape:
        raise _misaligned(labels, "the tokens", tokens)


def _misaligned(labels: Tensor, what: str, other: Tensor) -> LikelihoodError:
    return LikelihoodError(
        f"the labels have shape {tuple(labels.shape)}, {what} {tuple(other.shape)}. Pass the row's tokens as its "
        "labels, and -100 where a token is not to be learned, padded as the tokens are "
        "(DataCollatorForTokenClassification)."
    )


def _require_in_vocabulary(labels: Tensor, vocabulary: int) -> None:
    remedy = "The tokenizer is another network's, or the embeddings want {needed} rows: resize_token_embeddings."
    require_class_ids(labels[labels != UNLABELLED], vocabulary, LikelihoodError, remedy)
