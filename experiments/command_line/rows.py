"""What the options say of the rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayes_lora.experiments.tasks.sources import RowsSource


def rows_source(given: Mapping[str, Any]) -> RowsSource:
    """Where the rows come from.

    Raises:
        TaskError, ConfigurationError: see `RowsSource`.
    """
    columns = given["text_columns"]
    return RowsSource(
        task=given["task"],
        data_dir=_resolved(given["data_dir"]),
        train_file=_resolved(given["train_file"]),
        eval_file=_resolved(given["eval_file"]),
        train_dir=_resolved(given["train_dir"]),
        eval_dir=_resolved(given["eval_dir"]),
        text_columns=tuple(name.strip() for name in columns.split(",")) if columns else (),
        label_column=given["label_column"],
        limit=given["limit"],
        seed=given["seed"],
        task_type=given.get("task_type", "classification"),
        train_rows=given["train_rows"],
        scoring=given.get("scoring"),
    )


def outside_set(text: str) -> tuple[str, Path]:
    """The name and the file of a set of rows from elsewhere, of what an --outside-file says: ``FILE`` or ``NAME=FILE``.

    A file without a name is called by its own, up to the first dot.
    """
    name, given, path = text.partition("=")
    file = Path((path if given else text).strip()).expanduser()
    return (name.strip() if given else file.name.split(".")[0]), file.resolve()


def _resolved(path: Path | str | None) -> str | None:
    """The full path, so that a run can be taken up and used from anywhere."""
    # Older releases of typer (0.26) keep text in a context's params, and make paths for the function alone.
    return None if path is None else str(Path(path).expanduser().resolve())
