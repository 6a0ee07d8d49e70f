"""The diagnosis of a run as a page."""

import math
from pathlib import Path
from typing import Any

import torch

from bayes_lora.experiments.diagnose import plots as diagnostic_plots
from bayes_lora.experiments.diagnose.diagnosis import Diagnosis
from bayes_lora.experiments.diagnose.measures import Interval, intervals
from bayes_lora.experiments.diagnose.predictions import examples, how_good, labels_drawn
from bayes_lora.experiments.reports import plots
from bayes_lora.experiments.reports.page import Picture, Section, TableData, write_report
from bayes_lora.inference.diagnostics.arviz_bridge import group


def write_diagnosis(diagnosis: Diagnosis, folder: Path) -> Path:
    """Write `report.html` and its pictures; returns the page's path."""
    parts = (_fitted, _verdicts, how_good, labels_drawn, _map, _learned, examples)
    sections = [section for part in parts if (section := part(diagnosis)) is not None]
    return write_report(folder, f"The posterior of a fit to {diagnosis.run.config.task.name}", sections)


def _fitted(diagnosis: Diagnosis) -> Section:
    run = diagnosis.run
    config, posterior, sites = run.config, run.config.posterior, run.model.sites
    ranks = ", ".join(str(rank) for rank in sites.ranks)
    settings = {
        "method": config.method,
        "objective": posterior.objective,
        "sample scale (eps)": f"{run.model.sample_scale.mean().item():.4g}",
        "components (N), mixture": f"{posterior.num_components}, {posterior.mixture}",
        "outer draws (M)": str(posterior.num_outer_samples),
        "epochs, batch size": f"{config.training.epochs}, {config.training.batch_size}",
        "learning rate, of the posterior": f"{config.training.learning_rate:g}, "
        f"{config.training.posterior_learning_rate:g}",
        "seed": str(config.training.seed),
    }
    words = (
        f"{config.base_model} with LoRA adapters of rank {ranks} on {len(sites.adapters)} layers, fitted to the task "
        f"{config.task.name}. Everything below is about {len(diagnosis.rows)} rows that it was not trained on, under "
        f"{diagnosis.num_samples} draws of the posterior.",
    )
    table = TableData("The settings that shape the posterior.", ("setting", "value"), tuple(settings.items()))
    return Section("What was fitted", words, (table,))


def _verdicts(diagnosis: Diagnosis) -> Section:
    findings = diagnosis.findings
    flagged = {name: found for name, found in findings.items() if found.flagged}
    words = [f"{name.capitalize()}: {found.message}" for name, found in flagged.items()]
    if not flagged:
        words = ["No diagnostic raised a flag. That is no proof of a good posterior: each sees one kind of fault."]
    if diagnosis.settled is None:
        words.append("Too few steps were logged to tell whether the loss had settled.")
    words += [f"Left out: {reason}" for reason in diagnosis.left_out]
    rows = tuple((name, "look here" if found.flagged else "no flag", found.message) for name, found in findings.items())
    table = TableData(
        "Every diagnostic, and what it found.", ("diagnostic", "verdict", "in words"), rows, of_words=True
    )
    return Section("Warnings", tuple(words), (table,))


def _map(diagnosis: Diagnosis) -> Section | None:
    found = diagnosis.uncertainty
    if found is None:
        return None
    whole = found.whole.mutual_information
    words = (
        f"With all noise the mutual information of a row's labels and the draw is {whole:.3g} nats on average, over "
        "the first rows and a few draws. Each part is ablated in turn, and each is left alone; the effects do not add "
        "up.",
    )
    ablated = torch.tensor([whole - part.without.mutual_information for part in found.parts])
    alone = torch.tensor([part.alone.mutual_information for part in found.parts])
    picture = Picture(
        "uncertainty_map",
        diagnostic_plots.uncertainty_map([part.part for part in found.parts], ablated, alone),
        "For each adapter, the mutual information lost when its noise is ablated, and left when it is the only noise.",
        "Long bars: adapters that the uncertainty of the predictions comes from.",
    )
    return Section("Where the uncertainty comes from", words, (), (picture,))


def _learned(diagnosis: Diagnosis) -> Section:
    run, posterior = diagnosis.run, group(diagnosis.data, "posterior")
    names = run.model.sites.names
    change = {
        "pi (Dirichlet)": torch.tensor([adapter.kl_dirichlet for adapter in diagnosis.change.adapters]),
        "Sigma (Wishart)": torch.tensor([adapter.kl_wishart for adapter in diagnosis.change.adapters]),
        "columns (normal)": torch.tensor([adapter.kl_normal for adapter in diagnosis.change.adapters]),
    }
    relative = torch.from_numpy(posterior["relative_noise"].to_numpy()[0])
    pictures = [
        Picture(
            "loss_terms",
            plots.loss_terms(diagnosis.history),
            "Contribution of each loss term over the optimizer's steps, on a logarithmic axis.",
            "The terms as they are weighted in the loss.",
        ),
        Picture(
            "information",
            diagnostic_plots.information(names, change),
            "Divergence of posterior from prior of every adapter, in three terms, on a logarithmic axis.",
            "What the fit changed. Under objective paper the last term is of the noise, not of A.",
        ),
        Picture(
            "relative_noise",
            diagnostic_plots.spreads(names, relative, "|A - mu| / |mu|", "Size of the noise beside the mean"),
            "Median and central 90 % of the relative size of the noise in every adapter.",
            "At 1 the noise is as large as the trained LoRA-A itself.",
        ),
    ]
    if "num_components" in run.guide.unused_options:  # pi and Sigma keep their prior
        return Section("What was learned", (diagnosis.change.message,), (), tuple(pictures))
    mixture = Picture(
        "mixture_weights",
        plots.mixture_weights(run.guide.concentration, names),
        "Heat map of the mean mixture weight of each component in each adapter, with the sum of alpha beside it.",
        "Each row is an adapter (layer and projection). The larger the sum of alpha, the less the weights vary.",
    )
    pictures.insert(1, mixture)
    for rank, members in run.model.sites.ranks.items():
        means = torch.from_numpy(posterior[f"Sigma_r{rank}"].to_numpy()[0])
        means = means.flatten(0, -4).mean(0)  # over draws, and outer draws where there are several
        pictures.append(
            Picture(
                f"covariances_r{rank}",
                diagnostic_plots.covariances(names[members], means, f"Mean covariance Sigma, rank {rank}"),
                f"A heat map of the posterior mean of the rank-{rank} covariance of every adapter.",
                "Diagonal entries off the common value are directions in which more, or less, noise was learned.",
            )
        )
    return Section("What was learned", (diagnosis.change.message,), (), tuple(pictures))


def described(found: Diagnosis) -> dict[str, Any]:
    """Findings and metrics in plain data, and what was left out."""
    likelihood = found.run.model.likelihood
    return {
        "findings": {
            name: {"flagged": bool(finding.flagged), "message": finding.message}
            for name, finding in found.findings.items()
        },
        "metrics": {
            name: {metric: _plain(of) for metric, of in metrics.items()}
            for name, metrics in (
                ("posterior_mean", intervals(likelihood, found.point)),
                ("posterior_predictive", intervals(likelihood, found.predictive)),
            )
        },
        "left_out": list(found.left_out),
    }


def _plain(interval: Interval) -> dict[str, float | None]:
    """JSON has no NaN."""
    named = zip(("value", "low", "high"), interval, strict=True)
    return {name: None if math.isnan(value) else value for name, value in named}
