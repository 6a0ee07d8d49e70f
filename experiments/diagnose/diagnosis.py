"""Everything that is looked at to judge the posterior of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch.utils.data import DataLoader

from bayes_lora.errors import DataError, LikelihoodError
from bayes_lora.experiments.rows.rows import Row, read_rows
from bayes_lora.experiments.runs.device import CPU
from bayes_lora.experiments.runs.outputs import HISTORY_FILE
from bayes_lora.experiments.runs.predictions import own_rows
from bayes_lora.experiments.runs.runs import Run, load_run
from bayes_lora.inference import Prediction, to_inference_data
from bayes_lora.inference.diagnostics import (
    Convergence,
    EnoughDraws,
    LooPit,
    Mixture,
    PredictiveCheck,
    PriorToPosterior,
    UncertaintyMap,
    check_accuracy,
    check_confidence,
    check_label_rates,
    convergence,
    enough_draws,
    loo_pit,
    mixture,
    prior_to_posterior,
    uncertainty_map,
)
from bayes_lora.inference.diagnostics.arviz_bridge import InferenceData, group
from bayes_lora.models import Classification

# A map ablates every adapter in turn: it is made from fewer rows and draws, and by layers where adapters are many.
_MAP_ROWS, _MAP_DRAWS, _MOST_PARTS = 32, 8, 12
_FEWEST_ENTRIES = 20  # of a history, whose last half is tested for convergence


@dataclass(frozen=True)
class Diagnosis:
    """A run, its predictions of the rows it was evaluated on, and what the diagnostics say.

    Attributes:
        run: the fitted run.
        rows: labelled rows that it was not trained on.
        history: of its fit, one entry for each logged step.
        data: draws, prior, predictions and likelihoods, for ArviZ.
        predictive: the posterior predictive, from the draws in `data`.
        point: the prediction at the posterior mean.
        draws: how many of them the predictive takes.
        uncertainty: which adapters carry the predictive uncertainty.
        change: what each adapter learned.
        weights: how many components are in use.
        transforms: leave-one-out calibration; these rows are held out, so nothing is left out.
        checks: posterior predictive checks.
        settled: whether the loss had settled; None where too few steps were logged to tell.
    """

    run: Run
    rows: list[Row]
    history: list[Row]
    data: InferenceData
    predictive: Prediction
    point: Prediction
    draws: EnoughDraws
    uncertainty: UncertaintyMap
    change: PriorToPosterior
    weights: Mixture
    transforms: LooPit
    checks: tuple[PredictiveCheck, ...]
    settled: Convergence | None

    @property
    def findings(self) -> Mapping[str, Any]:
        """Every diagnostic by name; each has `flagged` and `message`."""
        named: dict[str, Any] = {} if self.settled is None else {"convergence": self.settled}
        named |= {"prior to posterior": self.change, "mixture": self.weights, "uncertainty map": self.uncertainty}
        named["number of draws"] = self.draws
        named |= {check.what: check for check in self.checks}
        return {**named, "rank of the labels": self.transforms}


def diagnose(folder: Path, *, num_samples: int, seed: int, console: Console, device: torch.device = CPU) -> Diagnosis:
    """Predict the rows a finished run was evaluated on, and look at its posterior from every side.

    Args:
        folder: of the run.
        num_samples: draws of the posterior and of the prior.
        seed: of the draws.
        console: where progress is shown.
        device: where the network runs.

    Raises:
        DataError: no finished run there, its rows are missing or damaged.
        LikelihoodError: its labels are no classes.
        PosteriorFileError: its posterior is missing or damaged.
    """
    run = load_run(folder, device)
    task = run.config.task
    rows = own_rows(folder, task)
    if type(run.model.likelihood) is not Classification:
        raise LikelihoodError(
            f"{folder} is a run of --task-type {task.task_type}, and a diagnosis is made of probabilities of classes. "
            f"How unsure each row's prediction is, 'bayes-lora predict {folder}' says."
        )
    if any(not isinstance(row.get(task.label_column), int) for row in rows):
        raise DataError(f"the rows that {folder} was evaluated on have no labels. Diagnose a run with labelled rows.")
    history = read_rows(folder / HISTORY_FILE)
    data, collate = run.encode(rows), task.family.inputs.collate(run.processor)
    loader: DataLoader[Any] = DataLoader(data, batch_size=run.config.training.batch_size, collate_fn=collate)
    some = data.select(range(min(_MAP_ROWS, len(rows))))
    parts = _parts(run)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        working = progress.add_task(f"{num_samples} draws of {len(rows)} rows", total=None)
        inference_data = to_inference_data(
            run.model, run.guide, loader, num_samples=num_samples, seed=seed, history=history
        )
        progress.remove_task(working)
        batches = list(DataLoader(some, batch_size=_MAP_ROWS, collate_fn=collate))
        ablating = progress.add_task("ablating adapters", total=(2 * len(parts) + 1) * len(batches))
        uncertainty = uncertainty_map(
            run.model,
            run.guide,
            batches,
            num_samples=_MAP_DRAWS,
            seed=seed,
            parts=parts,
            on_prediction=lambda: progress.advance(ablating),
        )
    point = run.predict(data, at_mean=True, console=console)
    draws = enough_draws(run.predict(data, num_samples="auto", console=console))
    # Only softmax(logits) counts, and that of a logarithm is the probability itself.
    probs = torch.from_numpy(group(inference_data, "posterior_predictive")["probs"].to_numpy()[0])
    predictive = Prediction(probs.clamp_min(torch.finfo(probs.dtype).tiny).log(), point.labels)
    logged = [entry for entry in history if "loss" in entry]
    return Diagnosis(
        run,
        rows,
        logged,
        inference_data,
        predictive,
        point,
        draws,
        uncertainty,
        prior_to_posterior(run.model, run.guide, seed=seed),
        mixture(run.model, run.guide, seed=seed),
        loo_pit(predictive, held_out=True, seed=seed),
        tuple(check(predictive, seed=seed) for check in (check_label_rates, check_accuracy, check_confidence)),
        convergence(logged) if len(logged) >= _FEWEST_ENTRIES else None,
    )


def _parts(run: Run) -> dict[str, list[str]]:
    """Each adapter; or where they are many, those of each layer, whose names agree up to the first number."""
    names = run.model.sites.names
    if len(names) <= _MOST_PARTS:
        return {name: [name] for name in names}
    layers: dict[str, list[str]] = {}
    for name in names:
        words = name.split(".")
        number = next((place for place, word in enumerate(words) if word.isdigit()), len(words) - 1)
        layers.setdefault(".".join(words[: number + 1]), []).append(name)
    return layers
