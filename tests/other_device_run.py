"""What is done on a device other than the CPU, and there: `python -m tests.other_device_run FOLDER DATA BASE`."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

import bayes_lora.adapters.finding
from bayes_lora.experiments.command_line.main import app
from bayes_lora.experiments.compare.methods import METHODS, parse_methods
from bayes_lora.experiments.compare.running import run_study
from bayes_lora.inference import (
    Ensemble,
    FitOptions,
    LaplaceOptions,
    LaplacePredictor,
    PointEstimate,
    SWAGCollector,
    SWAGPredictor,
    fit,
    fit_laplace,
    fit_network,
    predict,
    trainable_state,
    tune_prior_precision,
)
from tests import other_device
from tests.experiments.compare.studies import QUIET, make_study
from tests.networks import build_network, build_pair, make_batch


def logits(device: str) -> dict[str, Tensor]:
    """Of small networks without dropout, trained and not."""
    batch = make_batch()
    rows = [{name: value[row] for name, value in batch.items()} for row in range(5)] * 4
    options = FitOptions(epochs=2, batch_size=4, learning_rate=1e-2)
    model, guide = build_pair(build_network(dtype=torch.float32), sample_scale=0.1)
    network = build_network(dtype=torch.float32).to(device)
    found = {"map": PointEstimate(network)([batch])}
    for structure in ("kfac_reduce", "diagonal"):
        laplace = tune_prior_precision(fit_laplace(network, [batch], LaplaceOptions(structure=structure)))
        found[structure] = LaplacePredictor(network, laplace)([batch], num_samples=3, seed=0)
    found["probit"] = LaplacePredictor(network, laplace, "probit")([batch])
    state, collector = trainable_state(network), SWAGCollector(network, every=2)
    fit_network(network, rows, options, callbacks=[collector])
    found["ensemble"] = Ensemble(network, [state, trainable_state(network)])([batch])
    found["swag"] = SWAGPredictor(network, collector.swag())([batch], num_samples=3, seed=0)
    fit(model.to(device), guide.to(device), rows, options)
    found["predictive"] = predict(model, guide, [batch], num_samples=3, seed=0)
    found["mean"] = predict(model, guide, [batch], at_mean=True)
    return {name: prediction.logits for name, prediction in found.items()}


def command_line(folder: Path, data_dir: Path, base: str) -> None:
    """Fit a run, predict with it, diagnose it."""
    rows = ["--task", "mrpc", "--data-dir", str(data_dir), "--base-model", base, "--epochs", "1", "--rank", "2"]
    there = ["--device", other_device.NAME]
    run = str(folder / "run")
    for arguments in (["fit", *rows, "--out", run], ["predict", run], ["diagnose", run, "--num-samples", "4"]):
        done = CliRunner().invoke(app, [*arguments, *there])
        if done.exception is not None:
            raise done.exception


if __name__ == "__main__":
    folder, data_dir, base = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    other_device.install()
    # Parameters there are of a class of their own, as those of sharded networks are.
    bayes_lora.adapters.finding.require_whole = lambda *_: None  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="two devices"):
        build_network().to(other_device.NAME)(**make_batch())
    save_file(logits(other_device.NAME), folder / "logits.safetensors")
    command_line(folder, data_dir, base)
    place = torch.device(other_device.NAME)
    # Each operation goes through Python there: no more rows than a method needs.
    study = make_study(data_dir, base, train_rows=24, eval_rows=6, num_samples=2, held_out=0.25)
    results = run_study(study, parse_methods(",".join(METHODS)), folder / "study", console=QUIET, device=place)
    for (method, _), why in results.failed.items():
        print(method.label, why)
    sys.exit(bool(results.missing))
