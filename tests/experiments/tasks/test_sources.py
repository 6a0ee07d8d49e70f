"""Where rows come from, and how many of them are used."""

from dataclasses import replace
from pathlib import Path

from bayes_lora.experiments.tasks.sources import RowsSource


def test_training_rows_alone_can_be_few(rows_file: Path) -> None:
    source = RowsSource(
        train_file=str(rows_file), eval_file=str(rows_file), text_columns=("a", "b"), label_column="same"
    )
    whole, few = source.load(), replace(source, train_rows=5).load()
    both = replace(source, limit=7, train_rows=9).load()
    assert few.train == whole.train[:5]
    assert few.validation == whole.validation
    assert (len(both.train), len(both.validation)) == (7, 7)
