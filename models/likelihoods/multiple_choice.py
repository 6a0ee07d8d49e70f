"""One of a row's own options, by how a language model continues the question."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from bayes_lora.errors import ConfigurationError, LikelihoodError
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.models.likelihoods.classification import Classification
from bayes_lora.models.likelihoods.likelihood import network_logits
from bayes_lora.models.likelihoods.option_passes import OPTIONS, option_inputs, option_log_probs
from bayes_lora.models.likelihoods.words import Words

# What the Trainer fills narrower batches up with.
_TRAINER_PADDING = -100.0


class MultipleChoice(Classification):
    """``y_i ~ Categorical(softmax(s_i))``, s_ik the log-probability of option k of row i behind its question.

        s_ik = sum_t ln p(o_ikt | question_i, o_ik1 .. o_ik,t-1),    or that divided by the number of tokens

    A batch has `option_ids` beside the question's tokens, (row, option, token), with -100 where there is nothing. An
    option may be its letter, of a token as a rule, where the question lists all of them; or its text. In training the
    options of a row compete with each other, and with nothing else: the loss is the cross-entropy of the right one
    among them, the mean over rows.

    Rows may have different numbers of options. Those that a row lacks have logits of -inf, so that their probability is
    0, and a prediction is one of classes like any other.

    Args:
        per_token: whether log-probabilities are divided by the number of tokens of an option.

    Source: the letters are those of Yang et al. 2024, Bayesian Low-rank Adaptation for Large Language Models, section
    5.1; texts, as a sum and by their length, are as in Brown et al. 2020, section 2.4.
    """

    kind = "multiple_choice"
    batch_columns: ClassVar[tuple[str, ...]] = (OPTIONS,)

    def __init__(self, *, per_token: bool = False) -> None:
        super().__init__()
        if not isinstance(per_token, bool):
            raise ConfigurationError(f"per_token={per_token!r} must be True or False.")
        self.per_token = per_token

    @classmethod
    def of_network(cls, network: nn.Module) -> Self:
        """The same for every network."""
        return cls()

    @classmethod
    def from_settings(cls, network: nn.Module, settings: Mapping[str, Any]) -> Self:
        """With these settings."""
        return cls(**settings)

    def settings(self) -> dict[str, Any]:
        """How options are scored."""
        return {"per_token": self.per_token}

    @classmethod
    def words(cls, settings: Mapping[str, Any]) -> Words:
        """Options of rows."""
        return Words(
            answer="an option",
            label="option",
            shown=(
                "prediction.mean_probs)  # (example, option); 0 where an example has fewer",
                "prediction.mutual_information)  # (example,), nats: how far the draws disagree",
            ),
            point="network(**tokenizer(question, return_tensors='pt')).logits[0, -1].softmax(-1)[first])",
            num_outputs=0,
            batch=(
                'question = "Question: Which is hot?\\nA. ice\\nB. fire\\nAnswer:"',
                'batch = tokenizer([question], return_tensors="pt")',
                "# An option may as well be its text; of several tokens, -100 behind the end of the shorter ones.",
                'first = [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in (" A", " B")]',
                'batch["option_ids"] = torch.tensor([[[token] for token in first]])',
            ),
        )

    def inputs(
        self, network: nn.Module, batch: Mapping[str, Any], labels: Tensor | None = None, *, unseen: bool = False
    ) -> Mapping[str, Any]:
        """See `option_inputs`."""
        return option_inputs(network, batch)

    def logits(
        self, network: nn.Module, batch: Mapping[str, Any], labels: Tensor | None = None, *, unseen: bool = False
    ) -> Tensor:
        """s, (row, option).

        Raises:
            LikelihoodError: see `option_inputs`; or the network is no language model.
        """
        tokens = network_logits(network, self.inputs(network, batch))
        if tokens.dim() != 3:
            raise LikelihoodError(
                f"the network returned logits of shape {tuple(tokens.shape)}; multiple choice asks a language model, "
                "which has (row, token, vocabulary). Load it with AutoModelForCausalLM."
            )
        return option_log_probs(tokens, batch[OPTIONS], per_token=self.per_token)

    def checked_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(example,) options.

        Raises:
            LikelihoodError: see `Classification.checked_labels`; or an option that the row does not have.
        """
        labels = super().checked_labels(logits, labels)
        if labels.device.type == "cpu":
            lacking = logits.detach().gather(-1, labels.unsqueeze(-1)).squeeze(-1) == -torch.inf
            if lacking.any():
                row = int(lacking.nonzero()[0])
                raise LikelihoodError(
                    f"row {row} of the batch has the label {int(labels[row])}, an option that it does not have. Labels "
                    "are numbers of a row's own options, from 0 up."
                )
        return labels

    def of_summary(self, summary: Tensor, labels: Tensor | None) -> Prediction:
        """One draw with these log probabilities; what the Trainer filled up has none."""
        return super().of_summary(summary.masked_fill(summary == _TRAINER_PADDING, -torch.inf), labels)
