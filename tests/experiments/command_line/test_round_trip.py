"""Every family of posterior, from the command line to its card: fitted, killed, resumed, predicted, diagnosed."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import Trainer

from bayes_lora.errors import BayesLoRAError, ConfigurationError
from bayes_lora.experiments.rows.rows import read_rows
from bayes_lora.experiments.runs.runs import load_run
from bayes_lora.inference.guides.lora_guide import guide_kinds
from tests.experiments.commands import QUICK, fit_arguments, run

ELBO = ["--objective", "elbo", "--kl-temperature", "0.01", "--rank", "2"]
SETTINGS: dict[str, list[str]] = {
    "mean_field": ["mean_field", "mean_field[init_scale=0.002]"],
    "autoguide": [
        "autoguide[autoguide=AutoNormal]",
        "autoguide[autoguide=AutoDiagonalNormal,init_scale=0.01]",
        "autoguide[autoguide=AutoLowRankMultivariateNormal,rank=2]",
        "autoguide[autoguide=AutoDelta]",
    ],
}
GUIDES = [written for kind in guide_kinds() for written in SETTINGS.get(kind, [kind])]


class Killed(BayesLoRAError):
    """As a process is that is killed."""


@pytest.mark.parametrize("guide", GUIDES)
def test_a_posterior_goes_all_the_way(
    guide: str, rows_file: Path, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*ELBO, *QUICK, "--base-model", base, "--guide", guide, "--save-every", "2", "--lr", "1e-1"]
    options += ["--epochs", "2"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    run(*fit_arguments(rows_file), "--out", whole, *options)

    step, taken = Trainer.training_step, []

    def killed(*args: Any, **kwargs: Any) -> Any:
        taken.append(1)
        if len(taken) == 4:
            raise Killed
        return step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", killed)
        with pytest.raises(Killed):
            run(*fit_arguments(rows_file), "--out", out, *options)
    assert (out / "checkpoints" / "checkpoint-2" / "complete.json").is_file()
    run("fit", "--resume", out)
    for name in ("adapter_model.safetensors", "posterior.safetensors"):
        first, second = (load_file(folder / "posterior" / name) for folder in (whole, out))
        assert first.keys() == second.keys()
        assert all(first[key].equal(value) for key, value in second.items()), name

    loaded = load_run(out)
    assert loaded.guide.kind == guide.partition("[")[0] == loaded.config.guide.kind
    before = read_rows(out / "predictions.jsonl")
    for arguments, column in (([], "probs"), (["--mean"], "point_probs")):
        run("predict", out, *arguments, "--output", tmp_path / f"{column}.jsonl")
        again = read_rows(tmp_path / f"{column}.jsonl")
        assert [row["probs"] for row in again] == [row[column] for row in before]
    varies = any(row["mutual_information"] > 1e-12 for row in before)
    assert varies is ("AutoDelta" not in guide)

    run("diagnose", out, "--num-samples", "8")
    assert "What was learned" in (out / "diagnosis" / "report.html").read_text(encoding="utf-8")
    card = (out / "posterior" / "README.md").read_text(encoding="utf-8")
    assert loaded.guide.family in card


def test_the_mean_adapter_is_the_centre_of_the_guide(rows_file: Path, base: str, tmp_path: Path) -> None:
    """An autoguide has a location of its own, which is what its mean predicts with."""
    guide = "autoguide[autoguide=AutoDiagonalNormal,init_scale=0.01]"
    run(*fit_arguments(rows_file), "--out", tmp_path / "run", *ELBO, *QUICK, "--base-model", base, "--guide", guide)
    loaded = load_run(tmp_path / "run")
    sites, median = loaded.model.sites, loaded.guide.median()
    for group in sites.groups:
        assert sites.means(group).allclose(median[sites.column_site(group)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--guide", "flow"], r"the guides are autoguide, mean_field, monteclora; write name"),
        (["--guide", "mean_field["], "write name, or name"),
        (
            ["--guide", "mean_field", "--num-components", "8"],
            "--guide mean_field does not use what --num-components says",
        ),
        (["--guide", "autoguide[autoguide=AutoNormal]", "--sample-scale", "0.1"], "--sample-scale"),
        (["--guide", "mean_field[width=2]"], "'mean_field' cannot have the settings {'width': 2}"),
        (["--guide", "autoguide"], "autoguide=None is none of"),
    ],
)
def test_refusals(options: list[str], message: str, rows_file: Path, base: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run(*fit_arguments(rows_file), "--out", tmp_path / "run", "--base-model", base, "--objective", "elbo", *options)
    assert not (tmp_path / "run").exists()


def test_an_adapter_guide_needs_the_elbo(rows_file: Path, base: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="MeanFieldGuide is a posterior over A itself"):
        run(*fit_arguments(rows_file), "--out", tmp_path / "run", "--base-model", base, "--guide", "mean_field")
