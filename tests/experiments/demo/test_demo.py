"""The demo in small: the same code as the full one, on fewer rows."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from bayes_lora.errors import ConfigurationError, RunExistsError
from bayes_lora.experiments.demo.demo import run_demo
from bayes_lora.experiments.runs.predictions import own_rows
from bayes_lora.experiments.runs.runs import load_run
from bayes_lora.inference import evaluate

METRICS = ("accuracy", "nll", "ece", "brier")
PICTURES = {"truth.png", "reliability.png", "entropy.png", "loss_terms.png", "mixture_weights.png"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    run_demo(
        out,
        seed=0,
        overwrite=False,
        console=Console(quiet=True),
        num_train=64,
        num_validation=32,
        num_out_of_distribution=16,
        epochs=1,
        num_samples=2,
    )
    return out


class Page(HTMLParser):
    """Collects what a page would fetch, and its images' alt texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.alts: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [value for name in ("src", "href") if (value := values.get(name))]
        if tag == "img":
            self.alts.append(values.get("alt"))


def test_the_report_stands_alone(demo: Path) -> None:
    text = (demo / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert {path.name for path in demo.glob("*.png")} == PICTURES
    assert len(page.alts) == len(PICTURES)
    assert all(page.alts)
    assert all(link.startswith("data:") for link in page.links)
    assert not re.search(r"@import|url\(|<script", text)


def test_metrics_compare_three_predictors_with_the_truth(demo: Path) -> None:
    metrics = json.loads((demo / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics) == {"plain LoRA", "posterior mean", "posterior predictive"}
    for found in metrics.values():
        assert set(found) == {"accuracy", "nll", "ece", "brier", "kl_from_truth", "absolute_error", "ood_auroc"}
        assert found["kl_from_truth"] > 0


def test_the_demo_is_a_run(demo: Path) -> None:
    run = load_run(demo)
    rows = own_rows(demo, run.config.task)
    assert len(rows) == 32
    prediction = run.predict(run.encode(rows))
    metrics = json.loads((demo / "metrics.json").read_text(encoding="utf-8"))["posterior predictive"]
    assert prediction.labels is not None
    assert evaluate(prediction.mean_probs, prediction.labels) == {name: metrics[name] for name in METRICS}


def test_an_old_demo_stays_until_the_new_one_can_start(demo: Path, tmp_path: Path) -> None:
    before = sorted(demo.rglob("*"))
    with pytest.raises(RunExistsError, match="exists already"):
        run_demo(demo, seed=0, overwrite=False, console=Console(quiet=True))
    with pytest.raises(ConfigurationError, match="num_train=0"):
        run_demo(demo, seed=0, overwrite=True, console=Console(quiet=True), num_train=0)
    with pytest.raises(ConfigurationError, match="seed=-1"):
        run_demo(tmp_path / "new", seed=-1, overwrite=False, console=Console(quiet=True))
    assert sorted(demo.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []
