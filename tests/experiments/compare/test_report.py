"""Tables, tests and figures of a comparison."""

import csv
import math
from pathlib import Path

import pytest
from numpy.testing import assert_allclose
from torch import Tensor

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.command_line.compare_results import short_names
from bayes_lora.experiments.compare.method_spec import Method
from bayes_lora.experiments.compare.methods import parse_methods
from bayes_lora.experiments.compare.report import _interval, latex, markdown, markdown_differences, over_seeds, scores
from bayes_lora.experiments.compare.running import Results
from bayes_lora.experiments.compare.significance import significance
from bayes_lora.inference import all_metrics
from bayes_lora.metrics.bootstrap import Difference
from bayes_lora.metrics.classification import example_losses
from bayes_lora.metrics.contrast import Contrast
from tests.experiments.compare.studies import named


def test_numbers_follow_from_the_stored_predictions(done: Results) -> None:
    found = scores(done)
    with (done.folder / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    method = done.methods[3]
    inside, outside = done.read(method, 1).prediction, done.read(method, 1, "outside").prediction
    expected = all_metrics(inside, outside)
    row = next(row for row in rows if row["method"] == method.label and row["seed"] == "1")
    for metric, value in expected.items():
        assert found[method][1][metric] == pytest.approx(value, nan_ok=True)
        assert float(row[metric]) == pytest.approx(value, nan_ok=True)
    assert "temperature=" in row["chosen"]


def test_the_overview_has_the_methods_that_were_picked(done: Results, tmp_path: Path) -> None:
    assert (done.folder / "overview.png").read_bytes().startswith(b"\x89PNG")
    found = scores(done)
    means = {method: _interval([numbers["nll"] for numbers in of.values()]) for method, of in found.items()}
    first, second = (found[named("map")][seed]["nll"] for seed in (0, 1))
    # Student's t of two seeds: 12.7 standard errors.
    half = 12.706 * abs(first - second) / 2
    assert means[named("map")] == pytest.approx(((first + second) / 2, half), rel=1e-4)
    assert math.isnan(_interval([1.0])[1])


def test_short_names_are_of_methods_that_are_compared() -> None:
    wanted = parse_methods("map,laplace[link=probit]")
    assert short_names(["Laplace = laplace[link=probit]"], wanted) == {wanted[1]: "Laplace"}
    for text in ("Laplace", "=map", "L=laplace"):
        with pytest.raises(ConfigurationError, match="must be NAME=METHOD, with one of the --methods"):
            short_names([text], wanted)


def test_tables(done: Results) -> None:
    found = scores(done)
    page = (done.folder / "table.md").read_text(encoding="utf-8")
    means, *_ = page.partition("\n## Minus")
    assert means == f"{markdown(found)}\n{over_seeds('per_seed')}\n"
    assert over_seeds("per_seed").startswith("Over seeds is over training and held-out rows")
    assert "what other ones would give, and what they would choose, is in no interval" in over_seeds("shared")
    means = markdown(found)
    lines = means.splitlines()
    assert len(lines) == 2 + 5
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    accuracies = [100 * found[named("map")][seed]["accuracy"] for seed in (0, 1)]
    assert f"{sum(accuracies) / 2:.1f}" in lines[2]
    assert "±" in lines[2]
    nll = {method: sum(of[seed]["nll"] for seed in (0, 1)) / 2 for method, of in found.items()}
    best = min(nll, key=lambda method: nll[method])
    line = next(line for line in lines if line.startswith(f"| {best.label} "))
    assert f"**{nll[best]:.3f}**" in line
    table = latex(found)
    assert table.count(r"\\") == 6
    assert r"mc\_dropout" in table


def test_significance_is_against_the_references(done: Results) -> None:
    found, measured = significance(done, [named("map")]), scores(done)
    assert found.keys() == {(method, named("map")) for method in done.methods[1:]}
    tested = {"accuracy", "nll", "brier", "aurc", "misclassification_auroc_entropy", "ood_auroc"}
    for (method, _), metrics in found.items():
        assert metrics.keys() == tested
        for metric, difference in metrics.items():
            means = [measured[of][seed][metric] for of in (method, named("map")) for seed in (0, 1)]
            assert difference.rows.estimate == pytest.approx((means[0] + means[1] - means[2] - means[3]) / 2)
    with (done.folder / "significance.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["minus"] for row in rows] == ["map"] * 4 * 6 + ["temperature"] * 4 * 6
    # One temperature leaves the order of the rows as it is.
    same = [row for row in rows if (row["method"], row["minus"]) == ("temperature", "map")]
    assert {row["metric"]: float(row["p_value"]) for row in same}["aurc"] == 1


def test_differences_for_people_to_read(done: Results) -> None:
    page = (done.folder / "table.md").read_text(encoding="utf-8")
    found = significance(done, [named("map"), named("temperature")])
    assert page.endswith(markdown_differences(found))
    assert [line for line in page.splitlines() if line.startswith("## ")] == ["## Minus map", "## Minus temperature"]
    assert {path.name for path in done.folder.glob("minus_*")} == {"minus_map.png", "minus_temperature.png"}
    table = page.partition("\n## Minus map\n")[2].partition("\n## ")[0]
    columns, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    assert [name for name, *_ in rows] == [method.label for method in done.methods[1:]]
    for method, (_, *cells) in zip(done.methods[1:], rows, strict=True):
        nll = found[method, named("map")]["nll"]
        of_seeds = [
            float(example_losses(probs, labels)["nll"].mean() - example_losses(plain, labels)["nll"].mean())
            for (probs, labels), (plain, _) in zip(judged(done, method), judged(done, named("map")), strict=True)
        ]
        assert_allclose(nll.of_seeds, of_seeds, rtol=1e-6, atol=1e-12)  # a temperature of 1 leaves rounding alone
        assert_allclose(nll.rows.estimate, sum(of_seeds) / 2, rtol=1e-6, atol=1e-12)
        error = abs(of_seeds[0] - of_seeds[1]) / 2
        text = f"{nll.rows.estimate:+.3f} ± {error:.3f} [{nll.rows.low:+.3f}, {nll.rows.high:+.3f}]"
        assert cells[columns.index("NLL") - 1].strip("*") == text


def judged(done: Results, method: Method) -> list[tuple[Tensor, Tensor]]:
    """Probabilities and labels under each seed."""
    predictions = [done.read(method, seed).prediction for seed in done.seeds]
    return [(found.mean_probs, found.labels) for found in predictions if found.labels is not None]


def test_what_is_better_and_what_is_worse_is_marked() -> None:
    numbers = {"accuracy": (0.02, 0.01, 0.03), "nll": (0.2, 0.1, 0.3), "brier": (-0.1, -0.2, 0.1)}
    metrics = {name: Contrast(Difference(*three, 0.01, 100), three[:1]) for name, three in numbers.items()}
    line = markdown_differences({(named("laplace"), named("map")): metrics}).splitlines()[-1]
    assert line == (
        "| laplace | **+2.0 [+1.0, +3.0]** | *+0.200 [+0.100, +0.300]* | -0.100 [-0.200, +0.100] |"
    )  # higher accuracy is better, higher NLL worse, and of the last one the sign is not known
