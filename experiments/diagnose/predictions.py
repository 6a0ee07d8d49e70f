"""The parts of a diagnosis's page that depend on what the labels are."""

import math
import textwrap

import torch

from bayes_lora.experiments.diagnose import plots as diagnostic_plots
from bayes_lora.experiments.diagnose.diagnosis import Diagnosis, chosen
from bayes_lora.experiments.diagnose.measures import Interval, intervals
from bayes_lora.experiments.reports import plots
from bayes_lora.experiments.reports.page import Picture, Section, TableData
from bayes_lora.inference import Prediction
from bayes_lora.inference.diagnostics.plots import plot_ppc
from bayes_lora.metrics.labels import known_labels
from bayes_lora.metrics.regression import QUANTILES
from bayes_lora.metrics.titles import title_of
from bayes_lora.metrics.uncertainty import risk_coverage_curve, uncertainty_scores

_SHOWN_ROWS = 5  # most and least certain ones
_SHOWN_TEXT = 400  # characters of a row's text
_MOST_PANELS = 12  # of labels, one each: those that most rows have


def how_good(diagnosis: Diagnosis) -> Section:
    """Metrics, and pictures of calibration."""
    likelihood = diagnosis.run.model.likelihood
    compared = {"posterior mean": diagnosis.point, "posterior predictive": diagnosis.predictive}
    found = {name: intervals(likelihood, prediction) for name, prediction in compared.items()}
    metrics = next(iter(found.values()))
    rows = tuple((title_of(metric).head, *(_cell(metric, of[metric]) for of in found.values())) for metric in metrics)
    caption = "With 95 % bootstrap intervals over the rows, where a metric is a mean over rows."
    words = (
        f"The log density of all {len(diagnosis.rows)} rows is {diagnosis.density.elpd:.4g} nats, with a standard "
        f"error of {diagnosis.density.se:.2g} over the rows. Of two methods on the same rows, higher is better.",
    )
    pictures: list[Picture] = []
    choices = {name: likelihood.choices(prediction) for name, prediction in compared.items()}
    of_choices = {name: of for name, of in choices.items() if of is not None}
    if of_choices:
        pictures += _of_choices(diagnosis, of_choices)
    numbers = {name: likelihood.numbers(prediction) for name, prediction in compared.items()}
    shares = {name: of.shares_below.tolist() for name, of in numbers.items() if of is not None}
    if shares:
        pictures.append(
            Picture(
                "quantiles",
                plots.quantile_calibration(QUANTILES.tolist(), shares),
                "Share of the labels below each predicted quantile against its probability, beside the diagonal.",
                "On the diagonal, quantiles are what they say. Flatter than it: overconfident; above it at the middle: "
                "labels are lower than predicted.",
            )
        )
    texts = {name: likelihood.texts(prediction) for name, prediction in compared.items()}
    tokens = {
        name: (of.total_entropy[of.scored], -of.token_log_probs[of.scored])
        for name, of in texts.items()
        if of is not None
    }
    if tokens:
        pictures.append(
            Picture(
                "surprise",
                diagnostic_plots.surprise(tokens),
                "Mean surprise of tokens against the entropy that they were predicted with, beside the diagonal.",
                "A point above the diagonal is overconfident: its tokens surprise more than the model says.",
            )
        )
    table = TableData(caption, ("", *compared), rows)
    return Section("How good the predictions are", words, (table,), tuple(pictures))


def _cell(metric: str, of: Interval) -> str:
    title, (value, low, high) = title_of(metric), of
    return title.cell(value) + ("" if math.isnan(low) else f" [{title.cell(low)}, {title.cell(high)}]")


def _of_choices(diagnosis: Diagnosis, compared: dict[str, Prediction]) -> list[Picture]:
    """Reliability, of each label too where there are several, and risk against coverage."""
    likelihood = diagnosis.run.model.likelihood
    pictures = [
        Picture(
            "reliability",
            plots.reliability({name: (p.mean_probs, known_labels(p.labels)) for name, p in compared.items()}),
            "Accuracy against confidence for posterior mean and posterior predictive, beside the diagonal.",
            "A point below the diagonal is overconfident: it is right less often than it says. Below: numbers of "
            "predictions in each bin.",
        )
    ]
    if "label" in likelihood.label_dims:
        names, predictive = diagnosis.run.config.task.label_names, diagnosis.predictive
        most = known_labels(predictive.labels).sum(0).argsort(descending=True, stable=True)[:_MOST_PANELS].tolist()
        both = torch.stack([1 - predictive.mean_probs, predictive.mean_probs], dim=-1)  # (row, label, 2)
        panels = {names[label]: [(both[:, label], predictive.labels[:, label].long())] for label in most}
        pictures.append(
            Picture(
                "reliability_labels",
                plots.reliability_panels(panels),
                "Accuracy against confidence of the posterior predictive, a panel for each label.",
                f"Of the {len(panels)} labels that most rows have: whether a row has one, and how sure that is.",
            )
        )
    curves = {}
    for name, prediction in compared.items():
        wrong = prediction.mean_probs.argmax(-1) != known_labels(prediction.labels)
        curves[name] = risk_coverage_curve(uncertainty_scores(prediction)["max_prob"], wrong)
    what = chosen(likelihood)
    pictures.append(
        Picture(
            "risk_coverage",
            plots.risk_coverage(curves, what),
            f"Share of wrong predictions among the {what} kept, against the share kept, the most certain first.",
            "The lower and the later the rise, the better the model knows where it is wrong.",
        )
    )
    return pictures


def labels_drawn(diagnosis: Diagnosis) -> Section | None:
    """Labels that the model draws beside those observed, and where the latter lie among what was predicted."""
    pictures, likelihood, task = [], diagnosis.run.model.likelihood, diagnosis.run.config.task
    if diagnosis.ranks is not None:
        order = (
            "Flat where the labels are spread as the model says. Too many on the right: labels are higher than "
            "predicted; on both sides: overconfidence."
            if diagnosis.ranks.ordered
            else "Flat where the labels surprise the model as often as it says. Too many on the right: overconfidence."
        )
        pictures.append(
            Picture(
                "integral_transforms",
                diagnostic_plots.integral_transforms(torch.from_numpy(diagnosis.ranks.values)),
                "Histogram of the probability integral transforms of the labels, beside the band of a uniform one.",
                order,
            )
        )
    if diagnosis.labels is not None and likelihood.choices(diagnosis.predictive) is not None:
        names = task.family.class_names(task.label_names, diagnosis.predictive.logits.shape[-1])
        of = "words" if "token" in likelihood.label_dims else "rows"
        pictures.append(
            Picture(
                "label_rates",
                diagnostic_plots.label_rates(names, diagnosis.labels, f"share of the {of} (%)"),
                "Observed share of each label beside the interval of labels drawn from the posterior predictive.",
                "A cross outside its interval is a mix of labels that the model does not expect.",
            )
        )
    elif diagnosis.labels is not None:
        pictures.append(
            Picture(
                "labels",
                plot_ppc(diagnosis.data),
                "Histogram of the observed labels beside those drawn from the posterior predictive.",
                "Marks outside of the lines are numbers that more, or fewer, rows have than the model expects.",
            )
        )
    if not pictures:
        return None
    return Section("Do labels that the model draws look like those observed?", (), (), tuple(pictures))


def examples(diagnosis: Diagnosis) -> Section | None:
    """The rows that the model is least and most certain of."""
    run, predictive = diagnosis.run, diagnosis.predictive
    scores = run.model.likelihood.uncertainty(predictive)
    if not scores:
        return None
    task, family = run.config.task, run.config.task.family
    by = next(iter(scores))
    order = scores[by].argsort(stable=True).tolist()
    count = min(_SHOWN_ROWS, len(order) // 2)

    def table(caption: str, indices: list[int]) -> TableData:
        rows, header = [], ["text", "label"]
        for index in indices:
            row = diagnosis.rows[index]
            text = " | ".join(family.inputs.shown(row[column]) for column in task.columns)
            label = family.label_text(row[task.label_column], task.label_names)
            cells = family.cells(family.describe(predictive, index, task.label_names))
            header[2:] = cells
            rows.append((*(textwrap.shorten(of, _SHOWN_TEXT) for of in (text, label)), *cells.values()))
        return TableData(caption, tuple(header), tuple(rows), of_words=True)

    what = {"std": "standard deviation"}.get(by, by)
    tables = (
        table(f"The least certain rows, by the {what} of their prediction.", order[::-1][:count]),
        table("The most certain rows.", order[:count]),
    )
    return Section("Most and least certain", (), tables)
