"""What is told, on made-up scores whose worth is known, and questions in the forms that files have."""

import math

import pytest
import torch
from torch import Tensor

from bayes_lora.errors import DataError
from bayes_lora.experiments.asking.questions import Question, read_questions
from bayes_lora.experiments.asking.report import Told, table_rows, telling
from bayes_lora.experiments.asking.scores import BASELINE, OF_DRAWS, TITLES
from bayes_lora.experiments.asking.study import PLAIN, POSTERIOR
from bayes_lora.experiments.asking.telling import NO_ANSWER, WRONG, Asked, interval, targets_of
from bayes_lora.experiments.rows.rows import Row
from bayes_lora.inference import AnswerParser
from bayes_lora.metrics.uncertainty import auroc

COUNT = 120


def made_up(seed: int, strength: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, right, answerable: a third has no answer, half of the others is wrong, and the score says so a little."""
    generator = torch.Generator().manual_seed(seed)
    answerable = torch.arange(COUNT) % 3 != 0
    right = torch.rand(COUNT, generator=generator) < 0.5
    noise = torch.randn(COUNT, generator=generator, dtype=torch.double)
    return noise + strength * (~right | ~answerable), right, answerable


def rows(seed: int, strength: float, *names: str) -> list[Row]:
    scores, right, answerable = made_up(seed, strength)
    return [
        {"text": "", "right": bool(right[index]) if answerable[index] else None, "scores": dict.fromkeys(names, value)}
        for index, value in enumerate(scores.tolist())
    ]


def test_each_target_is_about_its_own_questions() -> None:
    scores, right, answerable = made_up(0, 1.0)
    asked = Asked({"score": scores}, right, answerable)
    assert targets_of([asked]) == [WRONG, NO_ANSWER]
    assert asked.auroc(WRONG, "score") == auroc(scores[answerable], ~right[answerable])
    assert asked.auroc(NO_ANSWER, "score") == auroc(scores, ~answerable)
    # What the answers to questions without one are called does not matter.
    other = Asked({"score": scores}, right ^ ~answerable, answerable)
    for target in (WRONG, NO_ANSWER):
        assert torch.equal(asked.resampled(target, "score"), other.resampled(target, "score"))
        own, low, high = interval(asked.resampled(target, "score"))
        assert 0.5 < low < own < high < 1
        assert own == asked.auroc(target, "score")
    assert targets_of([Asked({"score": scores}, right | True, answerable | True)]) == []
    assert targets_of([Asked({"score": scores}, right, answerable | True)]) == [WRONG]
    assert targets_of([Asked({"score": scores}, right & False, answerable)]) == [NO_ANSWER]


def test_a_score_is_compared_with_plain_entropy_on_the_same_questions() -> None:
    found = {
        PLAIN: [rows(1, 0.5, BASELINE, "nll"), rows(2, 0.5, BASELINE, "nll")],
        POSTERIOR: [rows(1, 0.5, BASELINE, "mutual_information_max"), rows(2, 3.0, BASELINE, "mutual_information_max")],
    }
    told = {(one.target, one.predictor, one.score): one for one in telling(found, num_resamples=400)}
    assert len(told) == 2 * 4
    for target in (WRONG, NO_ANSWER):
        baseline = told[target, PLAIN, BASELINE]
        assert (baseline.minus.estimate, baseline.minus.low, baseline.minus.p_value) == (0, 0, 1)
        ours = told[target, POSTERIOR, "mutual_information_max"]
        assert ours.minus.estimate == pytest.approx(ours.auroc - baseline.auroc)
        assert ours.minus.low > 0
        assert (ours.num_runs, ours.num_questions) == (2, COUNT if target == NO_ANSWER else 80)
        # The interval of a difference of two that go together is narrower than that of either.
        assert ours.minus.high - ours.minus.low < (ours.high - ours.low) + (baseline.high - baseline.low)
        head, *lines = table_rows(list(told.values()), target)
        assert len(head) == 5
        assert [line[0] for line in lines] == [TITLES[BASELINE], TITLES["nll"], TITLES["mutual_information_max"]]
        assert lines[0][2] == ""  # the baseline itself
        assert lines[2][1:3] == ["", ""]  # one network cannot disagree with itself
        assert lines[2][4].endswith("] better")


def test_a_score_that_says_nothing_is_not_found_better() -> None:
    """The negative control: noise, in 20 made-up studies, at the interval's own rate of failure."""
    better = 0
    for seed in range(20):
        found = {PLAIN: [rows(seed, 0.0, BASELINE)], POSTERIOR: [rows(100 + seed, 0.0, BASELINE)]}
        for row, other in zip(found[PLAIN][0], found[POSTERIOR][0], strict=True):
            other["right"] = row["right"]
        told: list[Told] = telling(found, num_resamples=200)
        better += sum(one.minus.low > 0 for one in told if one.predictor == POSTERIOR and one.target == WRONG)
    assert better <= 4  # 2.5 % each; more than 4 of 20 happen once in 10,000


def test_what_no_network_alone_has() -> None:
    assert {
        *("joint_nll", "joint_nll_per_token", "aleatoric_entropy_per_token", "aleatoric_entropy_max"),
        *("mutual_information_per_token", "mutual_information_max", "answer_mutual_information"),
    } == OF_DRAWS


def test_questions_and_what_answers_them() -> None:
    written: list[Row] = [
        {"prompt": "a", "answer": ["Oslo", "Kristiania"], "completion": " Bergen"},
        {"prompt": "b", "completion": " Oslo"},
        {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "Oslo."}]},
        {"instruction": "d", "output": "the correct answer is answer1", "answer": "answer1"},
        {"prompt": "e"},
        {"prompt": "f", "answer": [], "completion": "none"},
        {"prompt": "g", "answer": "", "completion": None},
    ]
    found = read_questions(written, "rows.jsonl")
    assert [question.answers for question in found] == [
        *(("Oslo", "Kristiania"), (" Oslo",), ("Oslo.",), ("answer1",)),
        *((), (), ()),
    ]
    assert found[0].is_right(" kristiania.\n")
    assert not found[0].is_right("Bergen")
    assert not found[0].is_right("Oslo is the capital")
    assert not found[0].is_right("")
    assert not found[4].is_right("Oslo")
    pattern = AnswerParser(r"answer is (\w+)")
    assert found[3].is_right("So the correct answer is answer1, since", pattern)
    assert not found[3].is_right("answer1", pattern)  # nothing can be told of it
    assert Question("d", ("the correct answer is answer1",)).is_right("answer is ANSWER1", pattern)
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2: the answer 3 must be a text, or a list"):
        read_questions([{"prompt": "a"}, {"prompt": "b", "answer": 3}], "rows.jsonl")
    with pytest.raises(DataError, match=r"rows\.jsonl has no rows"):
        read_questions([], "rows.jsonl")


def test_nothing_to_tell_is_no_number() -> None:
    own, low, high = interval(torch.tensor([math.nan, math.nan]))
    assert all(math.isnan(value) for value in (own, low, high))
