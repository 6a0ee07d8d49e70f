"""The study of draws as a table and a picture."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from bayes_lora.choices import Draws
from bayes_lora.experiments.draws.measure import QUANTITIES, Plan, errors_of, worth
from bayes_lora.experiments.draws.study import TIMED
from bayes_lora.experiments.reports.page import png
from bayes_lora.experiments.reports.plots import COLOURS
from bayes_lora.files import write_file
from bayes_lora.inference.guides.draw_design import choose_design

RESULTS_FILE, TABLE_FILE, PICTURE_FILE = "draws.csv", "draws.md", "draws.png"
_TITLES = {
    "probs": "mean probabilities",
    "nll": "NLL (nats)",
    "total_entropy": "entropy (nats)",
    "aleatoric_entropy": "aleatoric entropy (nats)",
    "mutual_information": "mutual information (nats)",
}
_DESIGNS: Mapping[Draws, str] = {
    "independent": "independent",
    "antithetic": "antithetic pairs",
    "tetrahedral": "tetrahedra, by four",
}


def write_report(found: Mapping[str, Mapping[str, Tensor]], plan: Plan, folder: Path) -> Sequence[Sequence[str]]:
    """Write results, table and picture; returns the rows of the table, the head first."""
    rows = table_rows(found, plan)
    write_file(folder / RESULTS_FILE, _csv(found, plan).encode())
    write_file(folder / TABLE_FILE, _markdown(found, plan, rows).encode())
    write_file(folder / PICTURE_FILE, png(picture(found, plan)))
    return rows


def table_rows(found: Mapping[str, Mapping[str, Tensor]], plan: Plan) -> list[list[str]]:
    """Of each run and number of draws, the error of each quantity, and what designed draws are worth.

    By design is as `predict` draws so many of itself: two as a pair, more by four.
    """
    head = ["run", "draws"]
    for quantity in ("probs", "nll", "mutual_information"):
        head += [f"{_TITLES[quantity]}, independent", "by design"]
    rows = [[*head, "as good as so many independent"]]
    for run, sums in found.items():
        errors = errors_of(sums, plan)
        for number in plan.numbers:
            row, designed = [run, str(number)], f"{choose_design(None, number)}/{number}"
            for quantity in ("probs", "nll", "mutual_information"):
                row += [_number(errors[of][quantity].value) for of in (f"independent/{number}", designed)]
            rows.append([*row, _worth(worth(errors, designed, "probs", plan))])
        at_mean = errors["mean"]
        shown = [_number(at_mean[quantity].value) for quantity in ("probs", "nll", "mutual_information")]
        rows.append([run, "the mean alone", *(cell for value in shown for cell in ("", value)), ""])
    return rows


def seconds_text(found: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """For each run, how long predictions took beside each other."""
    lines = []
    for run, sums in found.items():
        seconds = {timed: sums[f"seconds/{timed[0]}/{timed[1]}"] for timed in TIMED}
        reference = seconds["independent", 32]
        ratios = {timed: float((reference / own).median()) for timed, own in seconds.items()}
        said = [f"{ratios[timed]:.1f} x as long as {timed[1]} ({_DESIGNS[timed[0]]})" for timed in TIMED[1:]]
        lines.append(f"{run}: 32 independent draws take {', '.join(said)}.")
    return lines


def picture(found: Mapping[str, Mapping[str, Tensor]], plan: Plan) -> Figure:
    """Error of the mean probabilities and of the NLL over the number of draws, a column for each run."""
    figure = Figure(figsize=(2.6 * max(2, len(found)) + 0.6, 5.4), layout="constrained")
    grid = figure.subplots(2, len(found), sharex=True, sharey="row", squeeze=False)
    for column, (run, sums) in enumerate(found.items()):
        errors = errors_of(sums, plan)
        for line, quantity in enumerate(("probs", "nll")):
            axes = grid[line, column]
            for (design, label), colour in zip(_DESIGNS.items(), COLOURS, strict=False):
                numbers = plan.numbers_of[design]
                drawn = [errors[f"{design}/{number}"][quantity] for number in numbers]
                axes.errorbar(
                    numbers,
                    [error.value for error in drawn],
                    yerr=[error.standard_error for error in drawn],
                    color=colour,
                    marker="o",
                    markersize=3.5,
                    capsize=2,
                    label=label,
                )
            axes.axhline(errors["mean"][quantity].value, color="#767676", linestyle="--", label="the mean alone")
            axes.set(xscale="log", yscale="log")
            axes.set_xticks(plan.numbers, [str(number) for number in plan.numbers], minor=False)
            axes.minorticks_off()
        grid[0, column].set_title(run, fontsize=9)
    for line, quantity in enumerate(("probs", "nll")):
        grid[line, 0].set_ylabel(f"error of the {_TITLES[quantity]}")
    figure.supxlabel("draws, each a forward pass", fontsize=10)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _csv(found: Mapping[str, Mapping[str, Tensor]], plan: Plan) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "noise", "design", "draws", "quantity", "error", "standard_error"])
    for run, sums in found.items():
        for name, of in errors_of(sums, plan).items():
            design, _, number = name.partition("/")
            for quantity in QUANTITIES:
                error = of[quantity]
                cells = (f"{error.value:.4g}", f"{error.standard_error:.2g}")
                writer.writerow([run, f"{plan.noise:g}", design, number, quantity, *cells])
    return text.getvalue()


def _markdown(found: Mapping[str, Mapping[str, Tensor]], plan: Plan, rows: Sequence[Sequence[str]]) -> str:
    noise = "" if plan.noise == 1 else f", with {plan.noise:g} times the noise"
    lines = [
        f"Root mean square error against {plan.num_truth} independent draws, whose own error is taken out{noise}; "
        f"{plan.num_compared} draws of each design.",
        "",
        *("| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])),
        "",
        *seconds_text(found),
        "",
        f"![Error over the number of draws]({PICTURE_FILE})",
        "",
    ]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 0.001 else f"{value:.4f}"


def _worth(value: float) -> str:
    return "more than can be told" if math.isinf(value) else f"{value:.3g}"
