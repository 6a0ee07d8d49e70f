"""How class labels are read from files of the user's own."""

import warnings
from pathlib import Path

import pytest

from bayes_lora.errors import DataError
from bayes_lora.experiments.families.classification import Classification

FAMILY = Classification()


def test_integer_classes_are_in_numerical_order() -> None:
    path = Path("rows.csv")
    assert FAMILY.names_in([{"y": "10"}, {"y": 2}, {"y": "-1"}, {"y": 10}], "y", path) == ("-1", "2", "10")
    assert FAMILY.names_in([{"y": "no"}, {"y": "10"}, {"y": "9"}], "y", path) == ("10", "9", "no")


@pytest.mark.parametrize("label", [True, None, 1.0, "", [1]])
def test_a_label_is_an_integer_or_text(label: object) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl, row 2, column 'y' holds .*: a label must be an integer or text"):
        FAMILY.names_in([{"y": 0}, {"y": label}], "y", Path("rows.jsonl"))


def test_class_ids_are_given_to_copies() -> None:
    rows = [{"y": "b", "x": 1}, {"y": "a", "x": 2}]
    assert FAMILY.with_labels(rows, "y", ("a", "b"), Path("f.csv")) == [{"y": 1, "x": 1}, {"y": 0, "x": 2}]
    assert rows[0]["y"] == "b"


@pytest.mark.parametrize(
    ("labels", "pair"),
    [
        (["neg", " neg", "pos"], "' neg' and 'neg'"),
        (["neg", "neg\u00a0", "pos"], "'neg' and 'neg.*'"),
        (["1", "1.0", "0"], "'1' and '1.0'"),
        (["1e0", "1", "0"], "'1' and '1e0'"),
        (["Yes", "yes", "no"], "'Yes' and 'yes'"),
    ],
)
def test_classes_that_may_be_one_are_shown(labels: list[str], pair: str) -> None:
    rows = [{"y": label} for label in labels]
    with pytest.warns(UserWarning, match=rf"rows\.csv: column 'y' has the classes {pair}, which are taken for two"):
        assert len(FAMILY.names_in(rows, "y", Path("rows.csv"))) == 3


@pytest.mark.parametrize("labels", [["neg", "pos"], ["1", "10", "01a"], ["nan", "inf", "-inf"], ["no", "not"]])
def test_other_classes_are_left_in_peace(labels: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(FAMILY.names_in([{"y": label} for label in labels], "y", Path("rows.csv"))) == len(labels)
