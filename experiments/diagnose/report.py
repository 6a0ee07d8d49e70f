"""The diagnosis of a run as a page."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayes_lora.experiments.diagnose import plots as diagnostic_plots
from bayes_lora.experiments.diagnose.diagnosis import Diagnosis
from bayes_lora.experiments.reports import plots
from bayes_lora.experiments.reports.page import Picture, Section, TableData, write_report
from bayes_lora.inference import Prediction, evaluate, metric_difference, one_by_one
from bayes_lora.inference.diagnostics.arviz_bridge import group
from bayes_lora.metrics.bootstrap import Statistic
from bayes_lora.metrics.uncertainty import risk_coverage_curve, uncertainty_scores

_SHOWN_ROWS = 5  # most and least certain ones
_METRICS = {
    "accuracy": ("accuracy %", 100, 1),
    "nll": ("NLL (nats)", 1, 3),
    "ece": ("ECE %", 100, 1),
    "brier": ("Brier", 1, 3),
}


def write_diagnosis(diagnosis: Diagnosis, folder: Path) -> Path:
    """Write `report.html` and its pictures; returns the page's path."""
    parts = (_fitted, _verdicts, _predictions, _checks, _map, _learned, _examples)
    task = diagnosis.run.config.task.name
    return write_report(folder, f"The posterior of a fit to {task}", [part(diagnosis) for part in parts])


def intervals(prediction: Prediction) -> dict[str, tuple[float, float, float]]:
    """Each metric with its 95 % bootstrap interval over rows: (value, low, high)."""
    labels = _known(prediction)

    def statistic(metric: str) -> Statistic:
        return one_by_one(lambda rows: evaluate(prediction.mean_probs[rows], labels[rows])[metric])

    found = {}
    for metric in _METRICS:
        # Against a method whose metric is 0, the difference is the metric itself.
        of = metric_difference(
            [statistic(metric)], [lambda rows: torch.zeros(len(rows))], len(labels), num_resamples=500
        )
        found[metric] = (of.estimate, of.low, of.high)
    return found


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
        f"{len(diagnosis.predictive.logits)} draws of the posterior.",
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
    rows = tuple((name, "look here" if found.flagged else "no flag", found.message) for name, found in findings.items())
    table = TableData(
        "Every diagnostic, and what it found.", ("diagnostic", "verdict", "in words"), rows, of_words=True
    )
    return Section("Warnings", tuple(words), (table,))


def _predictions(diagnosis: Diagnosis) -> Section:
    compared = {"posterior mean": diagnosis.point, "posterior predictive": diagnosis.predictive}
    rows = []
    for name, prediction in compared.items():
        found = intervals(prediction)
        cells = [
            f"{factor * found[metric][0]:.{digits}f} [{factor * found[metric][1]:.{digits}f}, "
            f"{factor * found[metric][2]:.{digits}f}]"
            for metric, (_, factor, digits) in _METRICS.items()
        ]
        rows.append((name, *cells))
    header = ("", *(title for title, _, _ in _METRICS.values()))
    table = TableData("With 95 % bootstrap intervals over the rows.", header, tuple(rows))
    calibration = Picture(
        "reliability",
        plots.reliability({name: (p.mean_probs, _known(p)) for name, p in compared.items()}),
        "Accuracy against confidence for posterior mean and posterior predictive, beside the diagonal.",
        "A point below the diagonal is overconfident: it is right less often than it says. Below: examples per bin.",
    )
    curves = {}
    for name, prediction in compared.items():
        wrong = prediction.mean_probs.argmax(-1) != _known(prediction)
        curves[name] = risk_coverage_curve(uncertainty_scores(prediction)["max_prob"], wrong)
    coverage = Picture(
        "risk_coverage",
        plots.risk_coverage(curves),
        "Share of wrong predictions among the rows kept, against the share of rows kept, the most certain first.",
        "The lower and the later the rise, the better the model knows where it is wrong.",
    )
    return Section("How good the predictions are", (), (table,), (calibration, coverage))


def _checks(diagnosis: Diagnosis) -> Section:
    rates = diagnosis.checks[0]
    transforms = Picture(
        "integral_transforms",
        diagnostic_plots.integral_transforms(torch.from_numpy(diagnosis.transforms.values)),
        "Histogram of the probability integral transforms of the labels, beside the band of a uniform one.",
        "Flat where the labels surprise the model as often as it says. Too many on the right: overconfidence.",
    )
    labels = Picture(
        "label_rates",
        diagnostic_plots.label_rates(diagnosis.run.config.task.label_names, rates),
        "Observed share of each class beside the interval of labels drawn from the posterior predictive.",
        "A cross outside its interval is a mix of classes that the model does not expect.",
    )
    return Section("Do labels that the model draws look like those observed?", (), (), (transforms, labels))


def _map(diagnosis: Diagnosis) -> Section:
    found = diagnosis.uncertainty
    whole = found.whole.mutual_information
    words = (
        f"With all noise the mutual information is {whole:.3g} nats on average, over the first rows and a few draws. "
        "Each part is ablated in turn, and each is left alone; the effects do not add up.",
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


def _examples(diagnosis: Diagnosis) -> Section:
    predictive, task = diagnosis.predictive, diagnosis.run.config.task
    order = predictive.total_entropy.argsort().tolist()
    count = min(_SHOWN_ROWS, len(order) // 2)
    labels = _known(predictive)
    header = ("text", "label", "prediction", "probability", "MI (nats)")

    def table(caption: str, rows: list[int]) -> TableData:
        cells = []
        for index in rows:
            probs = predictive.mean_probs[index]
            texts = " | ".join(str(diagnosis.rows[index][column]) for column in task.columns)
            predicted = int(probs.argmax())
            cells.append(
                (
                    texts,
                    task.label_names[int(labels[index])],
                    task.label_names[predicted],
                    f"{probs[predicted]:.3f}",
                    f"{predictive.mutual_information[index]:.4f}",
                )
            )
        return TableData(caption, header, tuple(cells), of_words=True)

    tables = (
        table("The least certain rows, by the entropy of their prediction.", order[::-1][:count]),
        table("The most certain rows.", order[:count]),
    )
    return Section("Most and least certain", (), tables)


def _known(prediction: Prediction) -> Tensor:
    assert prediction.labels is not None
    return prediction.labels


def described(found: Diagnosis) -> dict[str, Any]:
    """Findings and metrics in plain data."""
    return {
        "findings": {
            name: {"flagged": bool(finding.flagged), "message": finding.message}
            for name, finding in found.findings.items()
        },
        "metrics": {
            name: {metric: dict(zip(("value", "low", "high"), of, strict=True)) for metric, of in metrics.items()}
            for name, metrics in (
                ("posterior_mean", intervals(found.point)),
                ("posterior_predictive", intervals(found.predictive)),
            )
        },
    }
