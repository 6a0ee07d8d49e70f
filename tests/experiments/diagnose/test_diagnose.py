"""`bayes-lora diagnose`: its files, its numbers from the draws it writes, and what it refuses."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bayes_lora.errors import DataError, RunExistsError
from bayes_lora.experiments.command_line.diagnose import DATA_FILE, FINDINGS_FILE
from bayes_lora.experiments.runs.runs import load_run
from bayes_lora.inference import load_inference_data
from bayes_lora.inference.diagnostics.arviz_bridge import group, summary
from bayes_lora.metrics.classification import accuracy
from tests.experiments.commands import PAIRS, QUICK, run

NAMES = {"prior to posterior", "mixture", "uncertainty map", "rate of labels", "accuracy", "rank of the labels"}


@pytest.fixture(scope="module")
def diagnosed(rows_file: Path, base: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run on a tiny base model, and what diagnose printed of it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--base-model", base, "--sample-scale", "0.2", "--lr", "0.01", "--out", out]
    run("fit", "--train-file", rows_file, "--eval-file", rows_file, *PAIRS, *QUICK, *options)
    return out, json.loads(run("diagnose", out, "--num-samples", "12", "--json").stdout)


class Page(HTMLParser):
    """Every image's alternative text, and every address that the page names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.alts: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "img":
            self.alts.append(named.get("alt") or "")
        self.addresses += [value for name in ("src", "href") if (value := named.get(name))]


def test_the_report_is_one_page_with_everything_inside(diagnosed: tuple[Path, dict[str, Any]]) -> None:
    folder = diagnosed[0] / "diagnosis"
    assert diagnosed[1]["report"] == str(folder / "report.html")
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert len(page.alts) == 10
    assert all(len(alt) > 20 for alt in page.alts)
    assert all(address.startswith("data:") for address in page.addresses)
    pictures = {path.stem for path in folder.glob("*.png")}
    assert {"uncertainty_map", "covariances_r8", "integral_transforms", "risk_coverage"} <= pictures
    text = re.sub(r'src="data:[^"]*"', "", (folder / "report.html").read_text(encoding="utf-8"))
    for finding in diagnosed[1]["findings"].values():
        assert finding["message"].split(" (")[0][:40] in text.replace("&#39;", "'")


def test_numbers_follow_from_the_draws(diagnosed: tuple[Path, dict[str, Any]]) -> None:
    folder, printed = diagnosed
    assert json.loads((folder / "diagnosis" / FINDINGS_FILE).read_text(encoding="utf-8")).items() <= printed.items()
    assert printed["findings"].keys() >= NAMES
    data = load_inference_data(folder / "diagnosis" / DATA_FILE)
    probs = torch.from_numpy(group(data, "posterior_predictive")["probs"].to_numpy()).mean((0, 1))
    labels = torch.from_numpy(group(data, "observed_data")["y"].to_numpy())
    found = printed["metrics"]["posterior_predictive"]["accuracy"]
    assert found["value"] == pytest.approx(accuracy(probs, labels))
    assert found["low"] <= found["value"] <= found["high"]
    assert found["low"] < found["high"]
    own = load_run(folder)
    assert tuple(group(data, "posterior")["adapter"].to_numpy()) == own.model.sites.names
    weights = summary(data, ["pi"])
    assert np.isfinite(weights.to_numpy(dtype=float)).all()
    history = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert group(data, "sample_stats").sizes["step"] == len(history)


def test_an_earlier_diagnosis_is_kept(diagnosed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = diagnosed[0]
    with pytest.raises(RunExistsError, match="holds a diagnosis already"):
        run("diagnose", folder)
    shown = run("diagnose", folder, "--out", tmp_path / "other", "--num-samples", "12").stdout
    assert "look here" in shown or "no flag" in shown
    again = json.loads((tmp_path / "other" / FINDINGS_FILE).read_text(encoding="utf-8"))
    assert again["findings"] == diagnosed[1]["findings"]


def test_runs_that_cannot_be_diagnosed(diagnosed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a run"):
        run("diagnose", tmp_path)
    copied = tmp_path / "copied"
    shutil.copytree(diagnosed[0], copied)
    (copied / "metrics.json").unlink()
    with pytest.raises(DataError, match="unfinished"):
        run("diagnose", copied, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
