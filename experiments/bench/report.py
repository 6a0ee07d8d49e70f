"""A bench as text: the page beside its results, and the README's table."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import fill

from bayes_lora.errors import DataError
from bayes_lora.experiments.bench.contenders import PEFT_MOST_COMPONENTS
from bayes_lora.experiments.bench.gradients import LORA_B_STD, PARAMETERS
from bayes_lora.experiments.bench.results import Record, Results
from bayes_lora.experiments.bench.suites import SAMPLING
from bayes_lora.experiments.bench.timing import Estimate
from bayes_lora.files import write_file

START, END = "<!-- bench -->", "<!-- /bench -->"
_README_COLUMNS = {
    "lora": "PEFT LoRA",
    "lora_fused": "LoRA, fused",
    "paper": "`paper`",
    "elbo": "`elbo`",
    "peft_monteclora": "PEFT MonteCLoRA",
    "full": "full fine-tuning",
}
QUANTITIES = {
    "step": "training step",
    "draw": "posterior draw",
    "prediction": "forward pass",
    "fit": "batch of a fit",
    "text": "text",
    "text_peak": "peak of a text's tensors, beyond the model",
    "process_peak": "peak of the process",
    "tensor_peak": "peak of a step's tensors, beyond the base model",
    "held": "held between steps, beyond the base model",
    "synchronizations": "waits of the host for the device",
    "cells": "all cells, from the start of the process on",
    "gradient": "loss and its gradient",
    "kl_share": "KL in units of the NLL",
    **{f"variance_{name}": f"variance of the gradient by {name}" for name in PARAMETERS},
    **{f"cost_{name}": f"variance x time, by {name}" for name in PARAMETERS},
}
TITLES = {
    "steps": "One training step, over batch x tokens",
    "components": "One training step, over the number of components",
    "rank": "One training step, over the rank",
    "adapters": "One training step, over the number of adapters; sampling and KL alone",
    "dora": "One training step of DoRA, over batch x tokens",
    "memory": "Memory of a training step",
    "draws": "A posterior draw",
    "predict": "Prediction under one draw, against a forward pass of the plain adapter",
    "language": "A text that several draws write together, against the plain adapter's own; SmolLM2",
    "choices": "A question's options, against one of them alone; SmolLM2",
    "laplace": "A batch of a Laplace fit, against a training step",
    "gradients": "Variance of a stochastic gradient, and variance x time",
    "gpu": "RoBERTa-base's shape on a GPU",
    "sweep": "The cells of a sweep by its workers, against one after the other; one thread for each process",
}


def markdown(results: Results, picture: str) -> str:
    """The whole bench as a page.

    Args:
        results: what was measured.
        picture: file name of `bayes_lora.experiments.bench.plots.growth`.
    """
    parts = [
        "# What it costs",
        machine_line(results),
        "Contenders take turns in rounds, in a new order each; a ratio is taken within a round, to PEFT's plain LoRA "
        "where nothing else is said. Values are medians; brackets hold a distribution-free interval of the median "
        "(95 % from 6 rounds up, else the range). N = 4 where nothing else is said. PEFT's MonteCLoRA draws its noise "
        "150 steps ahead, and the medians leave those draws out.",
    ]
    if results.settings["quick"]:
        parts.append("**A quick run: it shows that the bench works, not what things cost.**")
    for suite in results.suites:
        table = _table(*gradient_rows(results)) if suite == "gradients" else _suite_table(results, suite)
        parts += [f"## {TITLES[suite]}", table]
        if suite == "adapters":
            parts.append(sampling_line(results))
        if suite == "components":
            parts.append(
                f"PEFT's MonteCLoRA is measured up to N = {PEFT_MOST_COMPONENTS}: not far beyond, its Dirichlet KL "
                "overflows and the step after fails."
            )
        if suite == "gradients":
            parts.append(
                "Each row is one batch at one point, without dropout, LoRA-B drawn at random with standard deviation "
                f"{LORA_B_STD}: what varies is the posterior's noise. Variance is the trace of the covariance of the "
                "gradient by log v, log alpha and mu, ± half its jackknifed 95 % interval; variance x time, the time a "
                "given precision takes, is in units of the first row of each case, with that interval."
            )
    for suite, why in results.not_measured.items():
        parts += [f"## {TITLES[suite]}", f"Not measured: {why}."]
    return "\n\n".join([*parts, f"![How cost grows with each size]({picture})"]) + "\n"


def readme_table(results: Results) -> str:
    """Training steps against PEFT's LoRA, and what else a reader asks first."""
    sizes = list(dict.fromkeys((r.case["batch"], r.case["tokens"]) for r in results.of("steps", "step")))
    measured = {record.contender for record in results.of("steps", "step")}
    columns = {name: title for name, title in _README_COLUMNS.items() if name in measured}
    rows = []
    for batch, tokens in sizes:
        found = [results.find("steps", name, batch=batch, tokens=tokens) for name in columns]
        cells = [_readme_cell(record) for record in found]
        rows.append([f"{batch} x {tokens}", *cells])
    table = _table(["batch x tokens", *columns.values()], rows)
    facts = [fact for fact in (_flat_line(results), sampling_line(results), _memory_line(results)) if fact]
    listed = [fill(f"- {fact}", width=120, subsequent_indent="  ") for fact in facts]
    fused = ', "LoRA, fused" its layer without noise' if "lora_fused" in columns else ""
    note = (
        "A training step as a ratio to PEFT's LoRA of the same round: median and interval. `paper` and `elbo` are this "
        f"library's objectives{fused}; rank 8 on query, key and value, N = 4. {machine_line(results)}"
    )
    return "\n\n".join([table, *(["\n".join(listed)] if listed else []), fill(note, width=120)])


def around_table(path: Path) -> tuple[str, str]:
    """What stands before and after the table of a page.

    Raises:
        DataError: the page is missing, or has no markers around a place for the table.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}). Name the page that --readme should change.") from error
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise DataError(f"{path} has no place for the table. Put two lines there: {START} and {END}.")
    return before, after


def update_readme(path: Path, results: Results) -> None:
    """Put the table between the two markers of a page.

    Raises:
        DataError: see `around_table`.
    """
    before, after = around_table(path)
    write_file(path, f"{before}{START}\n{readme_table(results)}\n{END}{after}".encode())


def machine_line(results: Results) -> str:
    """Where, with what and when it was measured."""
    settings, machine = results.settings, results.machine
    packages = ", ".join(f"{name} {machine['packages'][name]}" for name in ("torch", "pyro-ppl", "peft"))
    threads = "1 thread" if settings["threads"] == 1 else f"{settings['threads']} threads"
    commit = str(machine["commit"] or "")
    commit = f", commit {commit[:12]}{'-dirty' * commit.endswith('-dirty')}" if commit else ""
    return (
        f"{settings['base_model']}, {settings['rounds']} rounds; {machine['processor']}, {threads}"
        f"{', ' + machine['gpu'] if machine['gpu'] else ''}; {packages}; {machine['date'][:10]}{commit}."
    )


def sampling_line(results: Results) -> str:
    """Fixed part and slope of sampling and KL, or nothing where they were not measured."""
    if SAMPLING not in results.lines:
        return ""
    line = results.lines[SAMPLING]
    counts = [int(r.case["adapters"]) for r in results.of("adapters") if r.contender == SAMPLING]
    return (
        f"Sampling and KL, forward and backward: {1e3 * line.fixed:.2f} ± {1e3 * line.fixed_error:.2f} ms, and "
        f"{1e6 * line.slope:.1f} ± {1e6 * line.slope_error:.1f} µs for each adapter (least squares over "
        f"{min(counts)} to {max(counts)} adapters, ± one standard error; no point is further than "
        f"{100 * line.deviation:.1f} % from the line)."
    )


def value_text(record: Record) -> str:
    """The quantity in units that people read."""
    value = record.value
    text = _scaled(record.unit)(value.median)
    if record.quantity == "draw":
        text += f" ({1 / value.median:.0f} a second)"
    return text


def ratio_text(ratio: Estimate) -> str:
    """1.022 [1.013, 1.041]; where the interval is a point, the number alone."""
    if ratio.low == ratio.high:
        return f"{ratio.median:.3f}"
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def ratios_text(record: Record, labels: Mapping[str, str]) -> str:
    """All ratios; whom to is said, by label, where it is not PEFT's LoRA."""
    return "; ".join(
        ratio_text(ratio) if name == "lora" else f"{ratio_text(ratio)} to {labels[name]}"
        for name, ratio in record.ratios.items()
    )


def gradient_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of gradients: a row for each way, the ways of a case one below the other."""
    head = ["KL weight", "KL / NLL", "way", "time", *(f"variance, {name}" for name in PARAMETERS)]
    head += [f"variance x time, {name}" for name in PARAMETERS]
    found: dict[tuple[object, ...], dict[str, Record]] = {}
    for record in results.of("gradients"):
        key = (*sorted(record.case.items()), record.contender)
        found.setdefault(key, {})[record.quantity] = record
    rows = []
    for measured in found.values():
        first = measured["gradient"]
        weight = next(f"{name} {first.case[name]}" for name in ("kl_weight", "kl_temperature") if name in first.case)
        cells = [weight, f"{measured['kl_share'].value.median:.2g}", first.label, value_text(first)]
        for name in PARAMETERS:
            value = measured[f"variance_{name}"].value
            cells.append(f"{value.median:.3g} ± {100 * (value.high - value.low) / (2 * value.median):.0f} %")
        for name in PARAMETERS:
            ratios = measured[f"cost_{name}"].ratios.values()
            # In significant digits: some are millionths.
            texts = (f"{ratio.median:.3g} [{ratio.low:.3g}, {ratio.high:.3g}]" for ratio in ratios)
            cells.append(next(texts, "1"))
        rows.append(cells)
    return head, rows


def _flat_line(results: Results) -> str:
    records = [r for r in results.of("components", "step") if r.contender.startswith("paper_n")]
    if not records:
        return ""
    most = max(records, key=lambda record: (record.case["components"], record.case["tokens"]))
    first = next(name for name in most.ratios if name != "lora")
    return (
        f"`paper` with N = {most.case['components']} costs {ratio_text(most.ratios[first])} of N = "
        f"{first.rpartition('_n')[2]} ({most.described_case()})."
    )


def _memory_line(results: Results) -> str:
    record = results.find("memory", "paper")
    if record is None:
        return ""
    return (
        f"Peak memory of the process: {ratio_text(record.ratios['lora'])} of PEFT's LoRA ({record.described_case()})."
    )


def _readme_cell(record: Record | None) -> str:
    if record is None:
        return ""
    return ratio_text(record.ratios["lora"]) if "lora" in record.ratios else f"1 ({value_text(record)})"


def _suite_table(results: Results, suite: str) -> str:
    records = results.of(suite)
    labels = {record.contender: record.label for record in records}
    head = ["case", "contender", "what", "median", "interval", "ratio"]
    rows = [
        [
            record.described_case(),
            record.label,
            QUANTITIES[record.quantity],
            value_text(record),
            _span(record),
            ratios_text(record, labels),
        ]
        for record in records
    ]
    return _table(head, rows)


def _span(record: Record) -> str:
    value, text = record.value, _scaled(record.unit)
    return "" if value.low == value.high else f"{text(value.low)} to {text(value.high)}"


def _seconds(value: float) -> str:
    if value >= 20:
        return f"{value:.0f} s"
    return f"{1e3 * value:.0f} ms" if value >= 0.1 else f"{1e3 * value:.3g} ms"


def _scaled(unit: str) -> Callable[[float], str]:
    return {
        "s": _seconds,
        "bytes": lambda value: f"{value / 1e6:.1f} MB",
        "count": lambda value: f"{value:.0f}",
        "variance": lambda value: f"{value:.3g}",
        "variance s": lambda value: f"{value:.3g} s",
        "share": lambda value: f"{value:.2g}",
    }[unit]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
