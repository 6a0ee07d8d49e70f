"""Whether a ratio got worse is told from made-up results."""

from dataclasses import replace
from typing import Any

import pytest

from bayes_lora.errors import BenchError, DataError
from bayes_lora.experiments.bench.check import check_against
from bayes_lora.experiments.bench.results import Record, Results
from bayes_lora.experiments.bench.timing import Estimate


def results_of(*ratios: float, contender: str = "paper", ours: bool = True, **settings: Any) -> Results:
    """Made-up results: one case for each ratio to LoRA."""
    records = [
        Record(
            "steps",
            {"batch": batch, "tokens": 8},
            contender,
            contender,
            ours,
            "step",
            "s",
            Estimate(0.1, 0.1, 0.1, 0.95, 21),
            {"lora": Estimate(ratio, ratio, ratio, 0.95, 21)},
        )
        for batch, ratio in enumerate(ratios)
    ]
    return Results({"base_model": "minilm", "quick": False, "rounds": 21, "threads": 2, **settings}, {}, records)


def test_the_check_names_each_ratio_that_is_worse() -> None:
    old = results_of(1.0, 1.0, 1.0)
    assert check_against(old, old) == 3
    assert check_against(results_of(1.09, 0.5, 1.0), old) == 3
    with pytest.raises(BenchError, match="2 of 3 ratios are more than 10% worse") as caught:
        check_against(results_of(1.2, 1.0, 1.11), old)
    named = str(caught.value).splitlines()[1:]
    assert named == [
        "steps, 0 x 8 tokens: paper, step against lora: 1.200, before 1.000 (+20%)",
        "steps, 2 x 8 tokens: paper, step against lora: 1.110, before 1.000 (+11%)",
    ]


def test_the_check_compares_like_with_like() -> None:
    old = results_of(1.0)
    with pytest.raises(DataError, match=r"threads=2, these with 1\. .*OMP_NUM_THREADS"):
        check_against(results_of(1.0, threads=1), old)
    with pytest.raises(DataError, match="base_model='minilm', these with 'other'"):
        check_against(results_of(1.0, base_model="other"), old)
    with pytest.raises(DataError, match="nothing to compare: the results have the suites steps"):
        check_against(results_of(1.0, contender="elbo"), old)
    # Others may be as slow as they like.
    theirs = results_of(1.2, contender="full", ours=False)
    both = replace(old, records=[*old.records, *results_of(1.0, contender="full", ours=False).records])
    assert check_against(replace(old, records=[*old.records, *theirs.records]), both) == 1
