"""The demo: minilm on the embedded task, whose true probabilities tell how good an uncertainty is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.experiments.reports import plots
from bayes_lora.experiments.reports.page import Picture, Section, TableData, write_report
from bayes_lora.experiments.runs.machine import environment
from bayes_lora.experiments.runs.outputs import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    HISTORY_FILE,
    METRICS_FILE,
    POSTERIOR_FOLDER,
    PREDICTIONS_FILE,
    check_folder,
    claim_folder,
)
from bayes_lora.experiments.runs.predictions import described_rows
from bayes_lora.experiments.runs.run_card import write_run_card
from bayes_lora.experiments.runs.run_config import RunConfig
from bayes_lora.experiments.runs.runs import Run, new_run, train
from bayes_lora.experiments.tasks.embedded_task import EMBEDDED, EmbeddedTask, make_embedded_task
from bayes_lora.experiments.tasks.rows import Row, write_jsonl
from bayes_lora.files import write_json
from bayes_lora.inference import FitOptions, FitResult, Prediction, evaluate, save_posterior
from bayes_lora.metrics.uncertainty import out_of_distribution_auroc

# Without noise and KL, the same training is plain LoRA.
_PLAIN = MonteCLoRAConfig(sample_scale=0.0, kl_weight=0.0, cooperative_weight=0.0)
_POSTERIOR = MonteCLoRAConfig(sample_scale=0.02)


def run_demo(
    out: Path,
    *,
    seed: int,
    overwrite: bool,
    console: Console,
    num_train: int = 2000,
    num_validation: int = 400,
    num_out_of_distribution: int = 400,
    epochs: int = 3,
    num_samples: int = 16,
) -> dict[str, Any]:
    """Fit the posterior and plain LoRA on the embedded task, compare both with the truth, write a report.

    The folder is a run like `fit`'s, with `report.html` and its pictures besides. Returns the metrics.

    Raises:
        RunExistsError: `out` exists and `overwrite` was not said.
    """
    check_folder(out, overwrite=overwrite)
    config = RunConfig(
        task=EMBEDDED,
        base_model="minilm",
        posterior=_POSTERIOR,
        training=FitOptions(epochs=epochs, learning_rate=2e-3, seed=seed),
        num_samples=num_samples,
    )
    task = make_embedded_task(
        num_train=num_train,
        num_validation=num_validation,
        num_out_of_distribution=num_out_of_distribution,
        seed=seed,
    )
    plain, run = new_run(replace(config, posterior=_PLAIN)), new_run(config)
    data = run.encode(task.rows.train)
    # All that can fail early has been tried: now an old demo may go.
    claim_folder(out, overwrite=overwrite)
    write_json(out / CONFIG_FILE, config.to_json())
    write_json(out / ENVIRONMENT_FILE, environment())
    console.print("1 of 2: plain LoRA, for comparison")
    train(plain, data, console)
    console.print("2 of 2: LoRA with the MonteCLoRA posterior")
    result = train(run, data, console)
    save_posterior(run.model, run.guide, out / POSTERIOR_FOLDER)
    inside = _predictions(plain, run, task.rows.validation, console)
    outside = _predictions(plain, run, task.out_of_distribution, console)
    metrics = {name: _metrics(inside[name], outside[name], task.rows.validation) for name in inside}
    write_jsonl(out / HISTORY_FILE, result.history)
    write_jsonl(
        out / PREDICTIONS_FILE,
        described_rows(EMBEDDED, task.rows.validation, inside[_PREDICTIVE], inside[_POINT]),
    )
    write_run_card(out, config, metrics)
    write_json(out / METRICS_FILE, metrics)
    sections = _sections(run, result, task, inside, outside, metrics)
    write_report(out, "bayes_lora demo: how sure is a fine-tuned transformer?", sections)
    return metrics


_PLAIN_LORA, _POINT, _PREDICTIVE = "plain LoRA", "posterior mean", "posterior predictive"


def _predictions(plain: Run, run: Run, rows: Sequence[Row], console: Console) -> dict[str, Prediction]:
    data = run.encode(rows)
    return {
        _PLAIN_LORA: plain.predict(data, at_mean=True, console=console),
        _POINT: run.predict(data, at_mean=True, console=console),
        _PREDICTIVE: run.predict(data, console=console),
    }


def _metrics(inside: Prediction, outside: Prediction, rows: Sequence[Row]) -> dict[str, float]:
    assert inside.labels is not None
    truth = torch.tensor([row["true_prob"] for row in rows], dtype=torch.double)
    probs = inside.mean_probs.double()
    both = torch.stack([1 - truth, truth], dim=-1)
    divergence = (torch.special.xlogy(both, both) - torch.special.xlogy(both, probs)).sum(-1)
    return {
        **evaluate(inside.mean_probs, inside.labels),
        "kl_from_truth": divergence.mean().item(),
        "absolute_error": (probs[:, 1] - truth).abs().mean().item(),
        "ood_auroc": out_of_distribution_auroc(inside.total_entropy, outside.total_entropy),
    }


def _sections(
    run: Run,
    result: FitResult,
    task: EmbeddedTask,
    inside: Mapping[str, Prediction],
    outside: Mapping[str, Prediction],
    metrics: Mapping[str, Mapping[str, float]],
) -> list[Section]:
    posterior, training = run.config.posterior, run.config.training
    rows = task.rows.validation
    noise = ", ".join(f"{group} {100 * rate:.0f} %" for group, rate in task.noise_rates.items() if rate > 0)
    what = Section(
        "What was fitted",
        (
            "The task: do two sentences tell of the same event? The pairs are written from templates, and in each of "
            f"four topics a known part of the labels is flipped ({noise}). So the true probability of every label is "
            "known, which real data never grant, and a model can be asked not only whether it is right but whether "
            "it is as sure as it should be.",
            f"The model: all-MiniLM-L6-v2 with LoRA of rank {run.model.sites.adapters[0].rank} on queries, keys and "
            f"values, {len(task.rows.train)} training pairs, {training.epochs} epochs, learning rate "
            f"{training.learning_rate:g}. Once as plain LoRA, once with the MonteCLoRA posterior over the LoRA-A "
            f"matrices (N = {posterior.num_components} components, sample scale {posterior.sample_scale:g}). The "
            f"posterior is evaluated at its mean, and as the posterior predictive with {run.config.num_samples} draws.",
        ),
    )
    return [what, _results(rows, inside, metrics), _uncertainty(inside, outside, metrics), _learned(run, result)]


def _results(
    rows: Sequence[Row], inside: Mapping[str, Prediction], metrics: Mapping[str, Mapping[str, float]]
) -> Section:
    table = TableData(
        f"{len(rows)} held-out pairs. Lower is better everywhere but for accuracy. KL and error are against the true "
        "probabilities.",
        ("", "accuracy %", "NLL (nats)", "ECE %", "Brier", "KL from truth (nats)", "mean |p - truth|"),
        tuple(
            (
                name,
                f"{100 * found['accuracy']:.1f}",
                f"{found['nll']:.4f}",
                f"{100 * found['ece']:.1f}",
                f"{found['brier']:.4f}",
                f"{found['kl_from_truth']:.4f}",
                f"{found['absolute_error']:.4f}",
            )
            for name, found in metrics.items()
        ),
    )
    best = min(metrics, key=lambda name: metrics[name]["kl_from_truth"])
    words = (
        f"Closest to the truth in this run (smallest KL) is {best}. This is one seed on one small task; differences in "
        "the last digits are within what another seed would change.",
    )
    labels = {name: prediction.labels for name, prediction in inside.items()}
    calibration = Picture(
        "reliability",
        plots.reliability({name: (p.mean_probs, _known(labels[name])) for name, p in inside.items()}),
        "Accuracy against confidence for plain LoRA, posterior mean and posterior predictive, beside the diagonal.",
        "A point below the diagonal is overconfident: it is right less often than it says. Below: examples per bin.",
    )
    truth = Picture(
        "truth",
        plots.truth_by_group(rows, {name: p.mean_probs for name, p in inside.items()}, ("different", "paraphrase")),
        "Boxes of predicted probabilities at each of the eight true probabilities, with the truth as a dashed line.",
        "A model that knows how noisy each topic is has its boxes on the dashed lines. Boxes are quartiles, whiskers "
        "reach 1.5 quartile ranges further.",
    )
    return Section("Against the truth", words, (table,), (truth, calibration))


def _uncertainty(
    inside: Mapping[str, Prediction], outside: Mapping[str, Prediction], metrics: Mapping[str, Mapping[str, float]]
) -> Section:
    known, unknown = inside[_PREDICTIVE], outside[_PREDICTIVE]
    picture = Picture(
        "entropy",
        plots.entropies(
            {"total entropy": known.total_entropy, "mutual information": known.mutual_information},
            {"total entropy": unknown.total_entropy, "mutual information": unknown.mutual_information},
        ),
        "Histograms of total entropy and mutual information for pairs in and out of distribution.",
        "Total entropy is all of the uncertainty; mutual information is the part that comes from not knowing the "
        "adapters, which draws of the posterior disagree about.",
    )
    aurocs = tuple((name, f"{found['ood_auroc']:.3f}") for name, found in metrics.items())
    by_disagreement = out_of_distribution_auroc(known.mutual_information, unknown.mutual_information)
    table = TableData(
        "Telling the two sets apart by entropy: area under the ROC curve (0.5 is chance, 1 perfect).",
        ("", "AUROC"),
        (*aurocs, (f"{_PREDICTIVE}, by mutual information", f"{by_disagreement:.3f}")),
    )
    words = (
        "The second set of pairs has topics, words and sentence forms that no training pair had. A model that knows "
        "what it does not know is less sure there.",
    )
    return Section("In and out of distribution", words, (table,), (picture,))


def _learned(run: Run, result: FitResult) -> Section:
    losses = Picture(
        "loss_terms",
        plots.loss_terms(result.history),
        "Contribution of each loss term over the optimizer's steps, on a logarithmic axis.",
        "The KL terms are weighted with eta, so they are small by design; the cooperative term pulls the mixture "
        "weights of each adapter together.",
    )
    weights = Picture(
        "mixture_weights",
        plots.mixture_weights(run.guide.concentration, run.model.sites.names),
        "Heat map of the mean mixture weight of each component in each adapter, with the sum of alpha beside it.",
        "Each row is an adapter (layer and projection). The larger the sum of alpha, the less the weights vary.",
    )
    words = (f"Training took {result.seconds:.0f} seconds.",)
    return Section("What the guide learned", words, (), (losses, weights))


def _known(labels: Tensor | None) -> Tensor:
    assert labels is not None
    return labels
