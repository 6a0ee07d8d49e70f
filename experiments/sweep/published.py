"""Published numbers, kept as data with their source, to stand beside one's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bayes_lora.errors import DataError
from bayes_lora.files import read_json

AVERAGE = "average"
"""The task under which a table's own averages over its tasks stand."""


@dataclass(frozen=True)
class Published:
    """Numbers of a paper.

    Attributes:
        source: the paper, and the table.
        values: by task, method and statistic, each "METRIC STATISTIC" of `tables`, such as "nll spread".
    """

    source: str
    values: Mapping[tuple[str, str, str], float]

    def faults(self, digits: int = 2) -> list[str]:
        """The averages that are not those of their cells, once each number is rounded to so many digits."""
        found = []
        for (task, method, statistic), average in self.values.items():
            cells = [
                value
                for (of_task, *of), value in self.values.items()
                if of_task != AVERAGE and of == [method, statistic]
            ]
            if task != AVERAGE or not cells:
                continue
            mean = sum(cells) / len(cells)
            # A rounded average of rounded numbers.
            if abs(mean - average) > 10**-digits + 1e-12:
                found.append(f"{method}, {statistic}: {average} is printed, its {len(cells)} cells give {mean:.4g}")
        return found


def read_published(path: Path) -> Published:
    """Published numbers from a JSON file: {"source": TEXT, "values": [{"task", "method", "statistic", "value"}, ...]}.

    Raises:
        DataError: it is of another form.
    """
    try:
        found = read_json(path)
        source = found["source"]
        entries = [((e["task"], e["method"], e["statistic"]), float(e["value"])) for e in found["values"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} holds no published numbers ({type(error).__name__}: {error}). It must be JSON: a source, and "
            "values, each with task, method, statistic and value."
        ) from error
    if not isinstance(source, str) or not source.strip():
        raise DataError(f"{path} does not say where its numbers are from. Give it a source.")
    return Published(source, dict(entries))
