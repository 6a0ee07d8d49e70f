"""Independent answers: each of one draw, and what they say together."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.inference import (
    Sampling,
    discrete_semantic_entropy,
    generate,
    generate_answers,
    semantic_entropy,
    write_scores,
)
from bayes_lora.inference.guides.draw_design import designed_noises
from bayes_lora.metrics.language import LanguagePrediction
from bayes_lora.randomness import Part
from tests.inference.generation.networks import PROMPTS, sharpened
from tests.small_tokenizers import byte_pairs


def test_every_answer_is_that_of_its_draw_alone() -> None:
    model, guide = sharpened()
    found = generate_answers(
        model, guide, PROMPTS, num_answers=3, max_new_tokens=5, sampling=None, num_samples=2, seed=4
    )
    together = generate_answers(
        model, guide, PROMPTS, num_answers=3, max_new_tokens=5, sampling=None, num_samples=2, seed=4, batch_size=3
    )
    assert len(found) == len(PROMPTS)
    noises = list(designed_noises(model, guide, "independent", Part.ANSWERS.seed(4), range(3)))
    distinct = set()
    for prompt, answers, other in zip(PROMPTS, found, together, strict=True):
        assert other.written.tokens == answers.written.tokens
        for index, noise in enumerate(noises):
            tokens = list(prompt)
            log_probs = []
            for _ in range(answers.written.num_tokens[index]):
                with torch.no_grad(), model.perturbed(noise):
                    of_next = model.network_logits({"input_ids": torch.tensor([tokens])})[0, -1].log_softmax(-1)
                tokens.append(int(of_next.argmax()))
                log_probs.append(of_next.max())
            assert answers.written.tokens[index] == tokens[len(prompt) :]
            kept = answers.written.scored[index]
            assert answers.written.log_probs is not None
            torch.testing.assert_close(answers.written.log_probs[0, index, kept], torch.stack(log_probs))
            distinct.add((tuple(prompt), *tokens))
    assert len(distinct) > len(PROMPTS)  # draws disagree


def test_at_the_mean_answers_are_samples_of_the_plain_network() -> None:
    """Its own probabilities, whoever asks: so there is nothing that draws could disagree about."""
    model, guide = sharpened()
    (answers,) = generate_answers(model, guide, PROMPTS[:1], num_answers=6, max_new_tokens=4, at_mean=True, seed=2)
    assert len({tuple(tokens) for tokens in answers.written.tokens}) > 1
    for index, tokens in enumerate(answers.written.tokens):
        row = torch.tensor([[*PROMPTS[0], *tokens]])
        with torch.no_grad():
            log_probs = model.network_logits({"input_ids": row})[0].log_softmax(-1)
        each = log_probs[len(PROMPTS[0]) - 1 : -1].gather(-1, torch.tensor(tokens).unsqueeze(-1)).sum()
        assert float(answers.log_probs[index]) == pytest.approx(float(each), abs=1e-6)
    assert abs(answers.mutual_information) < 1e-6


def test_answers_are_scored_by_the_posterior_predictive() -> None:
    model, guide = sharpened()
    answers, *_ = generate_answers(model, guide, PROMPTS[:1], num_answers=3, max_new_tokens=4, num_samples=4, seed=2)
    noises = list(designed_noises(model, guide, "tetrahedral", 2, range(4)))
    for index, tokens in enumerate(answers.written.tokens):
        row = torch.tensor([[*PROMPTS[0], *tokens]])
        at = torch.arange(len(PROMPTS[0]) - 1, row.shape[1] - 1)
        found = []
        for noise in noises:
            with torch.no_grad(), model.perturbed(noise):
                log_probs = model.network_logits({"input_ids": row})[0].log_softmax(-1)
            found.append(log_probs[at, tokens].sum())
        expected = torch.stack(found).exp().mean().log()
        torch.testing.assert_close(answers.log_probs[index], expected, rtol=1e-9, atol=0)
    assert answers.predictive_entropy == pytest.approx(-float(answers.log_probs.mean()))
    own = answers.written.log_density
    assert answers.mutual_information == pytest.approx(float(own.mean() - answers.log_probs.mean()))


def test_sampled_answers_are_independent_of_each_other() -> None:
    model, guide = sharpened()
    options: dict[str, Any] = {"max_new_tokens": 6, "num_samples": 1, "sampling": Sampling(temperature=2.0)}
    answers, same, *_ = generate_answers(model, guide, [PROMPTS[0], PROMPTS[0]], num_answers=4, **options)
    assert len({tuple(tokens) for tokens in answers.written.tokens + same.written.tokens}) == 8
    fewer, *_ = generate_answers(model, guide, PROMPTS[:1], num_answers=2, **options)
    assert fewer.written.tokens == answers.written.tokens[:2]


def three_answers(tokens: list[list[int]], texts: list[str], log_probs: list[float]) -> Any:
    """Answers of two draws, as if they had been written."""
    from bayes_lora.inference import Answers, Generation

    width = max(map(len, tokens))
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in tokens])
    scored = labels != -100
    each = torch.tensor(log_probs).double()[:, None] * scored / scored.sum(-1, keepdim=True)
    zeros = torch.zeros_like(each)
    written = Generation(each[None] / 2, zeros, zeros, scored, labels, scored.any(-1), tuple(texts))
    return Answers(written, LanguagePrediction(each[None], zeros, zeros, scored, labels))


def test_what_answers_say_together_by_hand() -> None:
    probs = [0.3, 0.3, 0.2, 0.1]
    log_probs = torch.tensor(probs).double().log()
    answers = three_answers([[5], [5], [6, 7], [8]], ["yes", "yes", "Yes!", "hm"], log_probs.tolist())

    def parse(text: str) -> str | None:
        return "yes" if text.lower().startswith("yes") else None

    agreement = answers.agreement(parse)
    assert (agreement.answer, agreement.share, agreement.num_unparsed) == ("yes", 0.75, 1)
    nothing = answers.agreement(lambda text: None)
    assert (nothing.answer, nothing.share, nothing.num_unparsed) == (None, 0.0, 4)
    assert answers.parsed(parse) == ["yes", "yes", "yes", None]
    assert answers.predictive_entropy == pytest.approx(-float(log_probs.mean()))
    assert answers.aleatoric_entropy == pytest.approx(-float(log_probs.mean()) / 2)
    # The first two are one sequence, which counts once among probabilities and twice among answers.
    clusters = [0, 0, 0, 1]
    found = answers.semantic_entropies(lambda texts: clusters)
    assert found["semantic_entropy"] == pytest.approx(semantic_entropy(log_probs[1:], clusters[1:]))
    assert found["discrete_semantic_entropy"] == discrete_semantic_entropy(clusters)
    each = answers.semantic_entropies(lambda texts: clusters, per_token=True)
    assert each["semantic_entropy"] == pytest.approx(
        semantic_entropy(log_probs[1:] / torch.tensor([1, 2, 1]), clusters[1:])
    )


def test_tables(tmp_path: Path) -> None:
    tokenizer = byte_pairs()
    model, guide = sharpened()
    model.network.resize_token_embeddings(len(tokenizer))
    options: dict[str, Any] = {"tokenizer": tokenizer, "max_new_tokens": 4, "num_samples": 2}
    found = generate_answers(model, guide, ["the", 'a "house", old'], num_answers=2, **options)
    rows = [row for index, answers in enumerate(found) for row in answers.table(index)]
    write_scores(rows, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert [(row["prompt"], row["answer"]) for row in read] == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    assert [row["text"] for row in read] == [text for answers in found for text in answers.texts]
    assert float(read[3]["predictive_nll"]) == -float(found[1].log_probs[1])
    assert float(read[3]["nll"]) == pytest.approx(-float(found[1].written.log_density[1]))
    texts = generate(model, guide, ["the"], **options).table()
    with pytest.raises(DataError, match="all with the same columns"):
        write_scores([*rows, *texts], tmp_path / "mixed.csv")
    with pytest.raises(DataError, match="a table needs rows"):
        write_scores([], tmp_path / "none.csv")


def test_refused() -> None:
    model, guide = sharpened()
    with pytest.raises(ConfigurationError, match="num_answers=0"):
        generate_answers(model, guide, PROMPTS, num_answers=0)
    answers, *_ = generate_answers(model, guide, PROMPTS[:1], num_answers=1, max_new_tokens=1, num_samples=1)
    with pytest.raises(DataError, match=r"there was no tokenizer\. Pass tokenizer="):
        answers.agreement(str)
