"""Several independent answers to a prompt, each written by a draw of the posterior of its own."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bayes_lora.checks import require_count, require_seed
from bayes_lora.errors import DataError
from bayes_lora.inference.generation.decoding import Decoder, Noise
from bayes_lora.inference.generation.generated import Generation, table_of
from bayes_lora.inference.generation.sampling import Sampling
from bayes_lora.inference.generation.semantic_entropy import Clustering, discrete_semantic_entropy, semantic_entropy
from bayes_lora.inference.guides.draw_design import designed_noises
from bayes_lora.inference.guides.posterior_draw import require_own_guide
from bayes_lora.inference.predictors.predictive import predict
from bayes_lora.labels import UNLABELLED
from bayes_lora.metrics.language import LanguagePrediction
from bayes_lora.models import BayesianLoRA
from bayes_lora.randomness import Part

_AS_IT_IS = Sampling()


@dataclass(frozen=True)
class Answers:
    """The answers to one prompt: y_i ~ p(y | A_i), A_i ~ q, so that they are draws of the posterior predictive p(y).

    Attributes:
        written: the answers; its `log_probs` (1, answer, token) are each under the one draw that wrote it.
        scored: the same answers under other draws, the same for all; its `log_density` is ln p(y_i).
    """

    written: Generation
    scored: LanguagePrediction

    @property
    def texts(self) -> tuple[str, ...]:
        """Without special tokens.

        Raises:
            DataError: there was no tokenizer.
        """
        if self.written.texts is None:
            raise DataError("the answers are tokens, since there was no tokenizer. Pass tokenizer= to have texts.")
        return self.written.texts

    @property
    def log_probs(self) -> Tensor:
        """ln p(y_i) = ln 1/S sum_s p(y_i | A_s), (answer,), nats: of the posterior predictive."""
        return self.scored.log_density

    @cached_property
    def predictive_entropy(self) -> float:
        """H[p(y)] as the mean of -ln p(y_i), nats: over whole answers. Unbiased for sampling as it is by default, but
        for what the S draws of p(y) lack of all."""
        return -float(self.log_probs.mean())

    @cached_property
    def aleatoric_entropy(self) -> float:
        """E H[p(y | A)] as the mean of -ln p(y_i | A_i), nats: what would stay if the adapters were known."""
        return -float(self.written.log_density.mean())

    @property
    def mutual_information(self) -> float:
        """Of answer and adapters, the difference of the two, nats. An estimate: it may come out below 0."""
        return self.predictive_entropy - self.aleatoric_entropy

    def parsed(self, parse: Callable[[str], Hashable | None]) -> list[Hashable | None]:
        """What each answer says, None where that cannot be told."""
        return [parse(text) for text in self.texts]

    def agreement(self, parse: Callable[[str], Hashable | None]) -> "Agreement":
        """How far the answers agree on what they say.

        Args:
            parse: takes from a text what it says; None where it cannot be told: such an answer agrees with no other.
        """
        found = self.parsed(parse)
        counts = Counter(value for value in found if value is not None)
        value, most = counts.most_common(1)[0] if counts else (None, 0)
        return Agreement(value, most / len(found), sum(value is None for value in found))

    def semantic_entropies(self, clustering: Clustering, *, per_token: bool = False) -> dict[str, float]:
        """Entropies over what the answers mean, nats: by probabilities and by frequencies.

            semantic_entropy            `semantic_entropy` of the distinct answers' ln p(y_i)
            discrete_semantic_entropy   `discrete_semantic_entropy` of all answers

        Args:
            clustering: `by_relation(same)`, `by_embedding(encoder, tokenizer)`, or any function that says which texts
                belong together, such as ``lambda texts: [parse(text) for text in texts]``.
            per_token: whether ln p(y_i) is divided by the answer's number of tokens.
        """
        clusters = list(clustering(self.texts))
        discrete = discrete_semantic_entropy(clusters)
        log_probs = self.log_probs / self.scored.num_tokens if per_token else self.log_probs
        first = {tuple(tokens): index for index, tokens in reversed(list(enumerate(self.written.tokens)))}
        kept = sorted(first.values())
        return {
            "semantic_entropy": semantic_entropy(log_probs[kept], [clusters[index] for index in kept]),
            "discrete_semantic_entropy": discrete,
        }

    def table(self, prompt: int = 0) -> list[dict[str, Any]]:
        """One row an answer: numbers of prompt and answer, text, scores as in `Generation.table`, each under the draw
        that wrote it, and -ln p(y_i) of the posterior predictive as `predictive_nll`."""
        names = [{"prompt": prompt, "answer": index} for index in range(len(self.log_probs))]
        rows = table_of(self.written, names)
        return [{**row, "predictive_nll": -value} for row, value in zip(rows, self.log_probs.tolist(), strict=True)]


@dataclass(frozen=True)
class Agreement:
    """How far several answers agree.

    Attributes:
        answer: what most of them say, of equally many the first; None where nothing could be told of any.
        share: of all answers, those that say so.
        num_unparsed: answers of which nothing could be told.
    """

    answer: Hashable | None
    share: float
    num_unparsed: int


def generate_answers(
    model: BayesianLoRA,
    guide: Callable[..., Any],
    inputs: Any,
    *,
    num_answers: int = 10,
    tokenizer: Any | None = None,
    max_new_tokens: int = 64,
    sampling: Sampling | None = _AS_IT_IS,
    num_samples: int = 8,
    seed: int = 0,
    at_mean: bool = False,
    batch_size: int = 1,
) -> list[Answers]:
    """Several answers to each prompt, as independent as answers can be: every one has a draw of the adapters.

    The draws run as one batch, see `generate`. Afterwards each answer is scored by `predict`, under `num_samples`
    draws which wrote none of them: under these it has the probability of the posterior predictive, which no draw alone
    knows.

    Args:
        model, guide, inputs, tokenizer, max_new_tokens: see `generate`. The likelihood is a `CausalLanguageModel`.
        num_answers: to each prompt.
        sampling: of the tokens; None takes the likeliest, so that answers differ by their draws alone. Entropies over
            whole answers are estimates of what they are called for ``Sampling()`` only.
        num_samples: S, draws that score the answers.
        seed: of the draws, those that write and those that score.
        at_mean: all answers are of the network at ``A = mu``, the plain PEFT model, and differ by their tokens alone.
        batch_size: prompts that are answered together, as num_answers x batch_size rows.

    Raises:
        See `generate`.

    Example:
        >>> first, *_ = generate_answers(model, guide, prompts, tokenizer=tokenizer)  # doctest: +SKIP
        >>> first.semantic_entropies(by_relation(str.__eq__))  # doctest: +SKIP
    """
    require_count("num_answers", num_answers)
    require_count("num_samples", num_samples)
    require_seed("seed", seed)
    require_own_guide(model, guide)
    decoder = Decoder(model, inputs, tokenizer, max_new_tokens, batch_size)
    found = []
    with decoder.running():
        if num_answers > 1:
            decoder.require_stackable()
        noises: list[Noise] = list(
            designed_noises(model, guide, "independent", Part.ANSWERS.seed(seed), range(num_answers))
        )
        if at_mean:
            noises = [[torch.zeros_like(group) for group in noise] for noise in noises]
        for prompts in decoder.batches():
            together = decoder.write(prompts, noises, sampling, together=False)
            written = Generation.of(together, decoder.ends, tokenizer)
            for place, prompt in enumerate(prompts):
                answers = written.texts_of(slice(place, None, len(prompts)))
                batch = _labelled(decoder.rows[prompt], answers.tokens)
                scored: Any = predict(
                    model, guide, [batch], num_samples=1 if at_mean else num_samples, seed=seed, at_mean=at_mean
                )
                found.append(Answers(answers, scored))
    return found


def _labelled(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """A batch of the prompt with each answer behind it, whose tokens are the labels."""
    width = len(prompt) + max(map(len, answers))
    tokens = torch.zeros(len(answers), width, dtype=torch.long)
    mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, UNLABELLED)
    for index, answer in enumerate(answers):
        row = torch.tensor([*prompt, *answer])
        tokens[index, : len(row)], mask[index, : len(row)] = row, 1
        labels[index, len(prompt) : len(row)] = row[len(prompt) :]
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}
