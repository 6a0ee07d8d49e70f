"""One of a row's own options, by what a language model writes when it is asked."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_lora.checks import require_count
from bayes_lora.errors import LikelihoodError
from bayes_lora.labels import UNLABELLED
from bayes_lora.metrics.classification import evaluate
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.models.likelihoods.class_likelihood import ClassLikelihood
from bayes_lora.models.likelihoods.likelihood import Likelihood
from bayes_lora.models.likelihoods.multiple_choice import MultipleChoice
from bayes_lora.models.likelihoods.network_arguments import GREEDY
from bayes_lora.models.likelihoods.option_passes import OPTIONS, to_the_right
from bayes_lora.models.likelihoods.words import Words

NAMES = "name_ids"
"""Key of a batch: the tokens by which a written answer names each option, (row, option, token), padded with -100."""
NONE = 26
"""The class of an answer that names no option; all before it are options, as many as there are letters."""
WRITTEN_TOKENS = 32
"""Tokens that are written at most, unless something else is said, as LLM-Adapters has it."""
# Of what was not written; its probability is the least that there is, and not 0, whose logarithm would be infinite.
_LEAST = -708.0
_SURE = 1 - 1e-6  # a probability that all options have together, beyond which that of no option is not differentiable


class GeneratedChoice(ClassLikelihood):
    """``p(y_i = k) = p(text_k | prompt_i)``, and that of no option is all else that might be written.

    In training the density is that of a language model: the right answer's tokens behind the prompt, summed over
    tokens, and the loss is the mean over rows. A prediction is what the network writes, under every draw the likeliest
    token after token, and the first option that the text names. So probabilities are frequencies over draws. An answer
    that names none has a class of its own, `NONE`: it is wrong, and `unparsed` says how often that is.

    A batch has the prompts, `option_ids` with each option's whole answer, and `name_ids` with what names it.

    Args:
        max_new_tokens: that are written at most.

    Source: the way in which Hu et al. 2023, LLM-Adapters, section 4, train on commonsense tasks and read answers.
    """

    kind = "generated_choice"
    batch_columns: ClassVar[tuple[str, ...]] = (OPTIONS, NAMES)
    one_pass: ClassVar[bool] = False
    rescaled = Likelihood.rescaled  # a frequency of 0 stays 0 at every temperature

    def __init__(self, max_new_tokens: int = WRITTEN_TOKENS) -> None:
        super().__init__()
        require_count("max_new_tokens", max_new_tokens)
        self.max_new_tokens = max_new_tokens
        self._of_texts = MultipleChoice()

    @classmethod
    def of_network(cls, network: nn.Module) -> Self:
        """The same for every network."""
        return cls()

    def settings(self) -> dict[str, Any]:
        """How much is written."""
        return {"max_new_tokens": self.max_new_tokens}

    @classmethod
    def words(cls, settings: Mapping[str, Any]) -> Words:
        """Options that are written."""
        return Words(
            answer="an option",
            label="option",
            shown=("prediction.mean_probs[:, :2])  # (example, option): how often draws of the posterior wrote it",),
            point="tokenizer.decode(network.generate(question['input_ids'], max_new_tokens=16)[0]))",
            num_outputs=0,
            batch=(
                'question = tokenizer("Is ice cold? answer1: yes, answer2: no.", return_tensors="pt")',
                'names = [tokenizer(f" answer{number}", add_special_tokens=False)["input_ids"] for number in (1, 2)]',
                'batch = {**question, "option_ids": torch.tensor([names]), "name_ids": torch.tensor([names])}',
            ),
        )

    def logits(
        self, network: nn.Module, batch: Mapping[str, Any], labels: Tensor | None = None, *, unseen: bool = False
    ) -> Tensor:
        """(row, 27): with labels, log-probabilities of the options' answers; without, of the option that was written.

        Raises:
            LikelihoodError: see `MultipleChoice.logits`; too many options, or no `name_ids` of these.
        """
        names, others = batch.get(NAMES), {key: value for key, value in batch.items() if key != NAMES}
        options = batch.get(OPTIONS)
        if not isinstance(names, Tensor) or not isinstance(options, Tensor) or names.shape[:2] != options.shape[:2]:
            raise LikelihoodError(
                f"the batch has {', '.join(batch)}; answers that are written need {OPTIONS} and {NAMES}, both (row, "
                "option, token): each option's answer, and what names it there."
            )
        if options.shape[1] > NONE:
            raise LikelihoodError(f"a row has {options.shape[1]} options, and there may be {NONE}. Leave the row out.")
        if labels is None and torch.is_grad_enabled():
            raise LikelihoodError(
                "what a network writes has no gradient. Without labels, call it under torch.no_grad(); with labels it "
                "gives the log-probabilities of the options' answers."
            )
        if labels is None:
            return self._written(network, others, names)
        scores = self._of_texts.logits(network, others)
        total = scores.logsumexp(-1, keepdim=True).exp().clamp_max(_SURE)
        missing = scores.new_full((len(scores), NONE - scores.shape[1]), -torch.inf)
        return torch.cat([scores, missing, torch.log1p(-total)], dim=-1)

    def _written(self, network: Any, batch: Mapping[str, Any], names: Tensor) -> Tensor:
        """Under the draw that is on, as one token after the other is written."""
        question, there = to_the_right(batch["input_ids"], batch.get("attention_mask"))
        ends = _ends(batch[OPTIONS])
        tokens = network.generate(
            input_ids=question,
            attention_mask=there.long(),
            max_new_tokens=self.max_new_tokens,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
            use_cache=True,
            **GREEDY,
        )[:, question.shape[1] :]
        exists = torch.nn.functional.pad(names[..., 0] != UNLABELLED, (0, NONE - names.shape[1]), value=False)
        chosen = torch.tensor([named(*of) for of in zip(tokens.tolist(), names.tolist(), strict=True)])
        logits = torch.full((len(tokens), NONE), _LEAST, device=tokens.device).masked_fill(~exists, -torch.inf)
        logits = torch.nn.functional.pad(logits, (0, 1), value=_LEAST)
        return logits.scatter(-1, chosen.to(tokens.device).unsqueeze(-1), 0.0)

    def checked_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `MultipleChoice.checked_labels`."""
        return self._of_texts.checked_labels(logits, labels)

    def distribution(self, logits: Tensor) -> TorchDistributionMixin:
        """Categorical over the options, and none of them."""
        return dist.Categorical(logits=logits, validate_args=False)

    def prediction(self, logits: Tensor, labels: Tensor | None) -> Prediction:
        """What was written under every draw."""
        return Prediction.of(logits, labels)

    def metrics(self, prediction: Any) -> dict[str, float]:
        """Those of `evaluate`, and `unparsed`, the share of answers that name no option."""
        return evaluate(prediction.mean_probs, prediction.labels) | _unparsed(prediction)

    def all_metrics(self, prediction: Any, outside: Any = None) -> dict[str, float]:
        """Those of classes, and `unparsed`."""
        return super().all_metrics(prediction, outside) | _unparsed(prediction)

    def require_density(self) -> None:
        """There is none: a draw writes one answer, and says nothing of the others.

        Raises:
            LikelihoodError: always.
        """
        raise LikelihoodError(
            "a prediction of written answers is how often draws write each, which is no density of the labels, and "
            "diagnoses are of such. Fit with --scoring letter or likelihood (MultipleChoice) to diagnose."
        )

    def choices(self, prediction: Any) -> None:
        """None: a temperature is not to be had."""


def named(tokens: Sequence[int], names: Sequence[Sequence[int]]) -> int:
    """The first option whose name stands in a text, of several at one place that with the longest name; or `NONE`.

    Args:
        tokens: of the text.
        names: tokens of each option's name, padded with -100.

    Example:
        >>> named([3, 7, 2, 7, 1], [[7, 1], [7, 2], [-100, -100]])
        1
    """
    known = [[token for token in name if token != UNLABELLED] for name in names]
    for start in range(len(tokens)):
        found = [
            (len(name), -option)
            for option, name in enumerate(known)
            if name and list(tokens[start : start + len(name)]) == name
        ]
        if found:
            return -max(found)[1]
    return NONE


def _ends(options: Tensor) -> list[int]:
    """The token with which every answer ends, where there is one."""
    last = (options != UNLABELLED).sum(-1) - 1
    ends = options.gather(-1, last.clamp_min(0).unsqueeze(-1)).squeeze(-1)[last >= 0].unique().tolist()
    return ends if len(ends) == 1 else []


def _unparsed(prediction: Any) -> dict[str, float]:
    return {"unparsed": float(prediction.mean_probs[:, NONE].mean()) if prediction.mean_probs.shape[-1] > NONE else 0.0}
