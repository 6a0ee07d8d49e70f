"""Reading and writing data files: what comes back, and what each damaged file is told."""

import csv
import gzip
import json
import math
from pathlib import Path

import pytest

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.experiments.rows.rows import hold_out, read_rows, write_jsonl

ROWS = [{"text": 'He said "no", twice.', "label": 0}, {"text": "line\u2028separator, \u00e9", "label": 1}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "new/folder/rows.jsonl"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / name, ROWS)
    assert read_rows(tmp_path / name) == ROWS
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [Path(name).name]


def test_compressed_files_depend_on_their_rows_only(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_jsonl(tmp_path / name, ROWS)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


@pytest.mark.parametrize("value", [math.nan, math.inf, object()])
def test_a_row_that_json_cannot_hold_leaves_the_old_file(tmp_path: Path, value: object) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS)
    with pytest.raises(DataError, match=r"Row 2 cannot be written to .*rows\.jsonl"):
        write_jsonl(path, [{"p": 0.5}, {"p": value}])
    assert read_rows(path) == ROWS
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_no_partial_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(DataError, match=r"rows\.jsonl cannot be written: Is a directory\. Choose another place"):
        write_jsonl(tmp_path / "rows.jsonl", ROWS)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_csv_values_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufefftext,label\r\n"one, two",1\r\n"two\nlines",0\r\n\r\n'.encode())
    assert read_rows(path) == [{"text": "one, two", "label": "1"}, {"text": "two\nlines", "label": "0"}]


def test_blank_lines_and_windows_line_ends_after_the_last_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\r\n{"a": 2}\r\n\r\n')
    assert read_rows(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.txt", b"a", r"rows\.txt is no kind of file that is read here\. Give a \.jsonl, \.jsonl\.gz or \.csv"),
        ("rows.jsonl", b"", r"rows\.jsonl has no rows"),
        ("rows.jsonl", b"\n\n", r"has no rows"),
        ("rows.csv", b"", r"has no rows"),
        ("rows.csv", b"text,label\n", r"has no rows"),
        ("rows.jsonl", b'{"a": 1}\n{"a": \n', r"rows\.jsonl, row 2 is not JSON .*: '\{\"a\":'"),
        ("rows.jsonl", b'{"a": 1}\n\n{"a": 2}\n', r"row 2 is not JSON"),
        ("rows.jsonl", b'{"a": 1}\n[1, 2]\n', r"row 2 is no JSON object: '\[1, 2\]'"),
        ("rows.jsonl", b"x" * 500, r"row 1 is not JSON .*: 'x{60}\.\.\.'"),
        ("rows.jsonl", b"[" * 100_000, r"row 1 is not JSON"),
        ("rows.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', r"line 2: byte 0xe9 is not UTF-8\. Save the file as UTF-8"),
        ("rows.csv", b"a,b\n1,2\n1,2,3\n", r"row 2 \(line 3\) has 3 fields, the header has 2 \(a, b\): '1,2,3'"),
        ("rows.csv", b"a,b\n1\n", r"row 1 \(line 2\) has 1 fields"),
        ("rows.csv", b"a,a\n1,2\n", r"two columns of the header have one name \(a, a\)"),
        ("rows.csv", b'a,b\n1,"2\n', r"is not CSV \(unexpected end of data\)"),
        (
            "rows.jsonl.gz",
            gzip.compress(json.dumps({"a": "b" * 500}).encode(), mtime=0)[:-9],
            r"is no complete gzip file",
        ),
        ("rows.jsonl.gz", b'{"a": 1}\n', r"is no complete gzip file \(Not a gzipped file"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(path)


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl does not exist\. Check the path"):
        read_rows(tmp_path / "absent.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=r"folder\.jsonl cannot be read: Is a directory"):
        read_rows(tmp_path / "folder.jsonl")


def test_hold_out_keeps_the_shares_of_the_classes() -> None:
    rows = [{"id": index, "y": int(index % 4 == 0)} for index in range(80)] + [{"id": 80, "y": 2}]
    train, held_out = hold_out(rows, "y", Path("f.csv"), fraction=0.25, seed=3)
    assert sorted(row["id"] for row in train + held_out) == list(range(81))
    assert [sum(row["y"] == label for row in held_out) for label in (0, 1, 2)] == [15, 5, 0]
    assert (train, held_out) == hold_out(rows, "y", Path("f.csv"), fraction=0.25, seed=3)
    assert held_out != hold_out(rows, "y", Path("f.csv"), fraction=0.25, seed=4)[1]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, math.nan])
def test_hold_out_is_a_fraction(fraction: float) -> None:
    with pytest.raises(ConfigurationError, match="must be a fraction between 0 and 1"):
        hold_out([{"y": 0}, {"y": 1}] * 9, "y", Path("f.csv"), fraction=fraction)


@pytest.mark.parametrize("labels", [(0, 1), (0, 0, 1, 1, 2, 2)])
def test_hold_out_says_when_rows_are_too_few(labels: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"f\.csv: \d rows of \d classes are too few .* Give more rows, a larger"):
        hold_out([{"y": label} for label in labels], "y", Path("f.csv"))


@pytest.mark.parametrize("quoted", [False, True])
def test_a_text_may_be_longer_than_csv_allows(tmp_path: Path, quoted: bool) -> None:
    path, text = tmp_path / "rows.csv", "long " * 60_000
    path.write_text(f'text,label\n"{text}, too",a\n' if quoted else f"text,label\n{text},a\n", encoding="utf-8")
    limit = csv.field_size_limit()
    assert read_rows(path) == [{"text": f"{text}, too" if quoted else text, "label": "a"}]
    assert csv.field_size_limit() == limit
    path.write_text(f'text,label\n"{text}', encoding="utf-8")
    with pytest.raises(DataError, match="is not CSV"):
        read_rows(path)
    assert csv.field_size_limit() == limit
