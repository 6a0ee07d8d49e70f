"""docs/support.md, made of the tests that show what it says: `python -m tests.support` writes it.

A test shows a cell by its mark, `@pytest.mark.shows(axis, verdict, what)`: the verdict is "works" or "refused". Where
a parameter decides what is shown, `what` is a mapping from parameter ids to cells, and other ids show nothing.
"""

import contextlib
import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "support.md"
MARK = "shows"
# Axes, in the order of the page, with what stands above their tables.
AXES = {
    "head": "Labels",
    "adapter": "Adapters",
    "quantization": "Quantized bases",
    "sharding": "Many processes, and weights in many places",
    "architecture": "Architectures",
    "options": "Methods of `compare` on multiple choice (`--scoring letter`, `likelihood`, `likelihood_per_token`)",
}
VERDICTS = ("works", "refused")
# What nobody has tried, and why.
NOT_TRIED: dict[str, dict[str, str]] = {
    "head": {
        "extractive question answering": "no likelihood for their outputs",
    },
    "adapter": {
        '`init_lora_weights="loftq"`': "peft 0.21.2 computes it on a GPU only",
        "QALoRA (`use_qalora`)": "for GPTQ bases, which are refused",
        "X-LoRA, Arrow": "they mix adapters by token, by a network of their own",
        "Megatron's parallel Linear": "it needs Megatron",
    },
    "quantization": {
        "EETQ, HQQ, AQLM, torchao, Intel Neural Compressor, Transformer Engine": (
            "their libraries are not among those tested with; layers that PEFT makes for them are refused by their type"
        ),
    },
    "sharding": {
        "tensor parallelism (`tp_plan`)": "it needs several devices; sharded LoRA-A is refused whatever sharded it",
        "`device_map` over several GPUs": "it needs several devices",
    },
    "architecture": {
        "state-space models, vision with text": "no test has one",
    },
}


@dataclass(frozen=True)
class Cell:
    """One cell, and the test that shows it, as a path and a name."""

    axis: str
    verdict: str
    what: str
    test: str


class Collector:
    """A pytest plugin that keeps the cells of the tests collected."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Read the marks.

        Raises:
            pytest.UsageError: a mark that shows nothing, or one on a test that is not always run.
        """
        self.cells.extend(cells_of(items))


def cells_of(items: Iterable[pytest.Item]) -> Iterator[Cell]:
    """The cells that collected tests show.

    Raises:
        pytest.UsageError: a mark with another axis or verdict, or with parameter ids that no test has; a test with a
            mark and another one by which it is not always run.
    """
    asked: dict[tuple[str, str], set[str]] = {}
    found: dict[tuple[str, str], set[str]] = {}
    for item in items:
        test = item.nodeid.partition("[")[0]
        for mark in item.iter_markers(MARK):
            axis, verdict, what = mark.args
            if axis not in AXES or verdict not in VERDICTS:
                raise pytest.UsageError(f"{test}: no axis {axis!r}, or no verdict {verdict!r}; see tests/support.py.")
            for other in ("skip", "skipif", "slow", "xfail"):
                if item.get_closest_marker(other) is not None:
                    raise pytest.UsageError(f"{test} is marked {other!r}, and so shows nothing where it is not run.")
            if isinstance(what, str):
                yield Cell(axis, verdict, what, test)
                continue
            key, name = (test, str(what)), _parameter_id(item)
            asked[key] = set(what)
            if name in what:
                found.setdefault(key, set()).add(name)
                yield Cell(axis, verdict, what[name], test)
    for (test, _), ids in asked.items():
        if missing := ids - found.get((test, _), set()):
            raise pytest.UsageError(f"{test} has no parameters {sorted(missing)}, of which its mark speaks.")


def _parameter_id(item: Any) -> str:
    return item.callspec.id if hasattr(item, "callspec") else ""


def collect() -> list[Cell]:
    """The cells of all tests.

    Raises:
        SystemExit: they could not be collected.
    """
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if f"mark.{MARK}(" in path.read_text("utf-8")]
    collector, said = Collector(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        options = ["--collect-only", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
        status = pytest.main([*options, *map(str, sorted(files))], plugins=[collector])
    if status != pytest.ExitCode.OK:
        raise SystemExit(said.getvalue())
    return collector.cells


def table(axis: str, cells: Iterable[Cell], not_tried: Mapping[str, str]) -> str:
    """One axis: what works, then what is refused, then what nobody tried.

    Raises:
        ValueError: one cell has two verdicts, or is tried and said not to be.
    """
    tests: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        if cell.axis == axis:
            names = tests.setdefault((cell.what, cell.verdict), [])
            if cell.test not in names:
                names.append(cell.test)
    shown = [what for what, _ in tests]
    twice = {what for what in shown if shown.count(what) > 1} | (set(shown) & set(not_tried))
    if twice:
        raise ValueError(f"{axis}: {sorted(twice)} have two verdicts.")
    lines = ["| | | shown by, or why not |", "|---|---|---|"]
    for verdict in VERDICTS:
        for (what, of), names in tests.items():
            if of == verdict:
                lines.append(f"| {what} | {verdict} | {', '.join(f'`{name}`' for name in names)} |")
    lines += [f"| {what} | not tried | {reason} |" for what, reason in not_tried.items()]
    return "\n".join(lines)


def page(cells: list[Cell]) -> str:
    """The whole page."""
    sections = [f"## {title}\n\n{table(axis, cells, NOT_TRIED.get(axis, {}))}" for axis, title in AXES.items()]
    return f"{_HEAD}\n\n" + "\n\n".join(sections) + "\n"


_HEAD = """# What works with what

Each line names the tests that show it, unless nobody tried. *Refused* is an error that says why and what to do instead.
This page is made of marks on the tests."""

if __name__ == "__main__":
    PAGE.write_text(page(collect()), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
