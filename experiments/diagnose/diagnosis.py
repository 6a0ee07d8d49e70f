"""Everything that is looked at to judge the posterior of a run, whatever its labels are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

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
from bayes_lora.inference import predict
from bayes_lora.inference.diagnostics import (
    ELPD,
    Convergence,
    EnoughDraws,
    LooPit,
    Mixture,
    PredictiveCheck,
    PriorToPosterior,
    Surprise,
    UncertaintyMap,
    check_accuracy,
    check_confidence,
    check_intervals,
    check_labels,
    check_surprise,
    convergence,
    draws_needed,
    elpd_held_out,
    loo_pit,
    mixture,
    prior_to_posterior,
    uncertainty_map,
)
from bayes_lora.inference.diagnostics.arviz_bridge import InferenceData
from bayes_lora.inference.diagnostics.inference_data import of_prediction
from bayes_lora.models import Likelihood

T = TypeVar("T")

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
        num_samples: draws of the posterior.
        data: draws, prior, predictions and likelihoods, for ArviZ.
        predictive: the posterior predictive, whose draws are those in `data`.
        point: the prediction at the posterior mean.
        density: log density of the rows.
        draws: how many draws the predictive takes.
        uncertainty: which adapters carry the predictive uncertainty.
        change: what each adapter learned.
        weights: how many components are in use.
        labels: labels drawn beside those observed.
        calibration: whether it is right, or sure, as often as it says.
        ranks: the labels' among what was predicted; these rows are held out, so nothing is left out.
        settled: whether the loss had settled; None where too few steps were logged to tell.
        left_out: why other attributes are None.
    """

    run: Run
    rows: list[Row]
    history: list[Row]
    num_samples: int
    data: InferenceData
    predictive: Any
    point: Any
    density: ELPD
    draws: EnoughDraws | None
    uncertainty: UncertaintyMap | None
    change: PriorToPosterior
    weights: Mixture
    labels: PredictiveCheck | None
    calibration: tuple[PredictiveCheck | Surprise, ...]
    ranks: LooPit | None
    settled: Convergence | None
    left_out: tuple[str, ...]

    @property
    def findings(self) -> Mapping[str, Any]:
        """Every diagnostic by name; each has `flagged` and `message`."""
        named: dict[str, Any] = {
            "convergence": self.settled,
            "prior to posterior": self.change,
            "mixture": self.weights,
            "uncertainty map": self.uncertainty,
            "number of draws": self.draws,
        }
        for check in (self.labels, *self.calibration):
            if isinstance(check, PredictiveCheck):
                named[check.what] = check
            elif check is not None:
                named["surprise of the tokens"] = check
        named["rank of the labels"] = self.ranks
        return {name: found for name, found in named.items() if found is not None}


def diagnose(folder: Path, *, num_samples: int, seed: int, console: Console, device: torch.device = CPU) -> Diagnosis:
    """Predict the rows a finished run was evaluated on, and look at its posterior from every side.

    Args:
        folder: of the run.
        num_samples: draws of the posterior and of the prior, at least 2.
        seed: of the draws.
        console: where progress is shown.
        device: where the network runs.

    Raises:
        ConfigurationError: a single draw.
        DataError: no finished run there, its rows are missing or damaged.
        LikelihoodError: its predictions say nothing of how likely labels are.
        PosteriorFileError: its posterior is missing or damaged.
    """
    run = load_run(folder, device)
    task, likelihood = run.config.task, run.model.likelihood
    likelihood.require_density()
    rows = own_rows(folder, task)
    if any(task.family.label_fault(row.get(task.label_column), task.label_names) for row in rows):
        raise DataError(f"the rows that {folder} was evaluated on have no labels. Diagnose a run with labelled rows.")
    history = read_rows(folder / HISTORY_FILE)
    data, collate = run.encode(rows), task.family.inputs.collate(run.processor)
    training = run.config.training
    batch_size = training.micro_batch_size or training.batch_size
    loader: DataLoader[Any] = DataLoader(data, batch_size=batch_size, collate_fn=collate)
    some = data.select(range(min(_MAP_ROWS, len(rows))))
    batches = list(DataLoader(some, batch_size=min(_MAP_ROWS, batch_size), collate_fn=collate))
    parts, left_out = _parts(run), _LeftOut()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        working = progress.add_task(f"{num_samples} draws of {len(rows)} rows", total=len(loader))
        predictive = predict(
            run.model,
            run.guide,
            loader,
            num_samples=num_samples,
            draws="independent",
            seed=seed,
            on_batch=lambda: progress.advance(working),
        )
        inference_data = of_prediction(
            run.model,
            run.guide,
            predictive,
            num_samples=num_samples,
            seed=seed,
            history=history,
            label_names=task.label_names or None,
        )
        progress.remove_task(working)
        ablating = progress.add_task("ablating adapters", total=(2 * len(parts) + 1) * len(batches))
        uncertainty = left_out.where_it_can(
            lambda: uncertainty_map(
                run.model,
                run.guide,
                batches,
                num_samples=_MAP_DRAWS,
                seed=seed,
                parts=parts,
                on_prediction=lambda: progress.advance(ablating),
            )
        )
        progress.remove_task(ablating)
        progress.add_task("as many draws as it takes", total=None)
        draws = left_out.where_it_can(
            lambda: draws_needed(run.model, run.guide, loader, draws=run.config.draws, seed=training.seed)
        )
    labels = left_out.where_it_can(lambda: check_labels(predictive, likelihood, seed=seed))
    if labels is not None and likelihood.choices(predictive) is not None:
        labels = replace(labels, names=tuple(task.family.class_names(task.label_names, predictive.logits.shape[-1])))
    logged = [entry for entry in history if "loss" in entry]
    return Diagnosis(
        run=run,
        rows=rows,
        history=logged,
        num_samples=num_samples,
        data=inference_data,
        predictive=predictive,
        point=run.predict(data, at_mean=True, console=console),
        density=elpd_held_out(inference_data),
        draws=draws,
        uncertainty=uncertainty,
        change=prior_to_posterior(run.model, run.guide, seed=seed),
        weights=mixture(run.model, run.guide, seed=seed),
        labels=labels,
        calibration=_calibration(likelihood, predictive, seed),
        ranks=_ranks(likelihood, predictive, seed),
        settled=convergence(logged) if len(logged) >= _FEWEST_ENTRIES else None,
        left_out=tuple(left_out.reasons),
    )


class _LeftOut:
    """Why parts of a diagnosis are left out: what a likelihood says nothing of."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def where_it_can(self, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except LikelihoodError as error:
            self.reasons.append(str(error))
            return None


def _calibration(likelihood: Likelihood, predictive: Any, seed: int) -> tuple[PredictiveCheck | Surprise, ...]:
    """Whether it is right, or sure, as often as it says, by what it predicts."""
    found: list[PredictiveCheck | Surprise] = []
    if (choices := likelihood.choices(predictive)) is not None:
        accuracy = replace(check_accuracy(choices, seed=seed), names=(f"all {chosen(likelihood)}",))
        found += [accuracy, check_confidence(choices, seed=seed)]
    if (numbers := likelihood.numbers(predictive)) is not None:
        found.append(check_intervals(numbers, seed=seed))
    if (texts := likelihood.texts(predictive)) is not None:
        found.append(check_surprise(texts))
    return tuple(found)


def chosen(likelihood: Likelihood) -> str:
    """What is right or wrong where a likelihood makes choices."""
    return {(): "rows", ("token",): "words", ("label",): "labels"}.get(likelihood.label_dims, "choices")


def _ranks(likelihood: Likelihood, predictive: Any, seed: int) -> LooPit | None:
    """Of classes in the order of their probability, or their own, and of numbers."""
    ranked = likelihood.numbers(predictive) or likelihood.choices(predictive)
    return None if ranked is None else loo_pit(ranked, held_out=True, seed=seed, ordered=likelihood.ordered)


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
