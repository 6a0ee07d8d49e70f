"""What a bench leaves behind: one record for each thing measured, in a JSON file."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bayes_lora.errors import DataError
from bayes_lora.experiments.bench.timing import Estimate, Line
from bayes_lora.files import read_json

FORMAT = 1
_HINT = "Give a bench.json that 'bayes-lora bench --out DIR' wrote."


@dataclass(frozen=True)
class Record:
    """One quantity of one contender in one case.

    Attributes:
        suite: of the bench.
        case: what was run: batch, tokens, rank, adapters and so on.
        contender: its name.
        label: its name for people.
        ours: whether it is this library's.
        quantity: "step", "draw", "prediction", "fit", "text", "text_peak", "process_peak", "tensor_peak", "held",
            "synchronizations", "cells", or one of `bayes_lora.experiments.bench.gradients.gradient_noise`.
        unit: "s", "bytes", "count", "variance" or "variance s", where less is better; or "share".
        value: the quantity.
        ratios: round by round to others in the same race, {their name: ratio}.
    """

    suite: str
    case: dict[str, int | str]
    contender: str
    label: str
    ours: bool
    quantity: str
    unit: str
    value: Estimate
    ratios: dict[str, Estimate] = field(default_factory=dict)

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from every other record of a bench."""
        return (self.suite, *sorted(self.case.items()), self.contender, self.quantity)

    def described_case(self) -> str:
        """The case in few words: 8 x 32 tokens, rank 8, 18 adapters."""
        case, words = dict(self.case), []
        if "batch" in case:
            words.append(f"{case.pop('batch')} x {case.pop('tokens')} tokens")
        for name, form in (("rank", "rank {}"), ("adapters", "{} adapters"), ("samples", "{} draws")):
            if name in case:
                words.append(form.format(case.pop(name)))
        if case.get("shape") == "base":
            del case["shape"]
        words += [f"{name} {value}" for name, value in case.items() if name != "components"]
        return ", ".join(words)


@dataclass
class Results:
    """A bench, whole or in part.

    Attributes:
        settings: base_model, quick, rounds, threads: what must agree for ratios to be comparable, and the rounds.
        machine: what the absolute numbers depend on besides.
        records: in the order of measurement.
        lines: how a cost grows, {what: line}; seconds against the number of adapters.
        not_measured: {suite: why}.
    """

    settings: dict[str, Any]
    machine: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    lines: dict[str, Line] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)

    def of(self, suite: str, quantity: str | None = None) -> list[Record]:
        """The records of a suite."""
        return [r for r in self.records if r.suite == suite and quantity in (None, r.quantity)]

    def find(self, suite: str, contender: str, **case: int | str) -> Record | None:
        """The first record of a contender whose case has these values."""
        matching = (r for r in self.of(suite) if r.contender == contender and case.items() <= r.case.items())
        return next(matching, None)

    @property
    def suites(self) -> list[str]:
        """Those with records, in their order."""
        return list(dict.fromkeys(record.suite for record in self.records))

    def to_json(self) -> dict[str, Any]:
        """As `read_results` reads it."""
        return {"format": FORMAT, **asdict(self)}


def read_results(path: Path) -> Results:
    """Read a results file.

    Raises:
        DataError: it is missing, damaged, or of another format.
    """
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as results of a bench ({error}). {_HINT}") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise DataError(
            f"{path} holds no results of this version's bench: its format is {found!r}, not {FORMAT}. {_HINT}"
        )
    try:
        return Results(
            settings={name: data["settings"][name] for name in ("base_model", "quick", "rounds", "threads")},
            machine=dict(data["machine"]),
            records=[_record(entry) for entry in data["records"]],
            lines={name: Line(**line) for name, line in data["lines"].items()},
            not_measured=dict(data["not_measured"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {type(error).__name__}: {error}. {_HINT}") from error


def _record(entry: dict[str, Any]) -> Record:
    ratios = {name: Estimate(**ratio) for name, ratio in entry["ratios"].items()}
    return Record(**{**entry, "value": Estimate(**entry["value"]), "ratios": ratios})
