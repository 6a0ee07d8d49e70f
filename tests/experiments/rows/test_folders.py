"""Rows that are files in folders, and what is said of folders that hold something else."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from bayes_lora.errors import DataError
from bayes_lora.experiments.rows.folders import class_rows, file_rows
from bayes_lora.experiments.tasks.folders import folder_task
from bayes_lora.experiments.tasks.sources import RowsSource, digest

PNG = (".png", ".jpg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of class a, two of class b, with a file and a folder that are hidden."""
    for name in ("a/1.png", "a/3.JPG", "a/2.png", "b/1.png", "b/2.png", "a/.hidden.txt", ".hidden/x"):
        path = tmp_path / "task" / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "task" / "train"


def test_a_row_for_each_file(folder: Path) -> None:
    rows = class_rows(folder, PNG)
    names = ["a/1.png", "a/2.png", "a/3.JPG", "b/1.png", "b/2.png"]
    assert rows == [
        {"file": str(folder / name), "label": name[0], "sha256": hashlib.sha256(name.encode()).hexdigest()}
        for name in names
    ]
    assert file_rows(folder, PNG) == rows
    shutil.copy(folder / "a" / "1.png", folder / "new.png")
    found = file_rows(folder, PNG)
    assert [row.get("label") for row in found] == ["a", "a", "a", "b", "b", None]
    assert file_rows(folder / "new.png", PNG) == found[-1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda at: (at / "c").mkdir(), r"train/c has no files\. Add some \(\.png, .*\), or take the folder away"),
        (
            lambda at: (at / "b" / "deep").mkdir(),
            r"train/b/deep is a folder inside that of a class\. Move its files up",
        ),
        (
            lambda at: (at / "b" / "x.txt").touch(),
            r"train/b/x\.txt is none of \.png, .*\. Convert it, or take it out",
        ),
        (
            lambda at: (at / "x.png").touch(),
            r"train/x\.png is in the folder of no class\. Files are expected in .*/CLASS/",
        ),
        (shutil.rmtree, r"There is no folder .*train\. Check the path"),
        (lambda at: list(map(shutil.rmtree, at.glob("[ab]"))), r"train has no folders\. Files are expected in"),
        (lambda at: shutil.rmtree(at / "b"), r"train has files of one class only \(a\)\. Add a folder with those of"),
    ],
    ids=["empty class", "too deep", "another kind", "no class", "missing", "nothing", "one class"],
)
def test_what_may_be_a_mistake_is_named(change: Any, message: str, folder: Path) -> None:
    change(folder)
    with pytest.raises(DataError, match=message):
        folder_task(folder, None, task_type="image")


def test_files_to_predict_are_named_too(folder: Path, tmp_path: Path) -> None:
    (folder / "x.txt").touch()
    for place, message in {
        folder: r"x\.txt is none of \.png, \.jpg",
        tmp_path / "nowhere": r"There is no folder .*nowhere",
        folder / "x.txt": r"x\.txt is none of",
        folder.parent / "void": r"void has no files\. Give a folder with some",
    }.items():
        if place.name == "void":
            place.mkdir()
        with pytest.raises(DataError, match=message):
            file_rows(place, PNG)


def test_a_class_to_evaluate_that_is_not_trained(folder: Path) -> None:
    evaluated = Path(shutil.copytree(folder, folder.parent / "eval"))
    shutil.rmtree(evaluated / "a")  # a class less does no harm
    found = folder_task(folder, evaluated, task_type="image")
    assert found.task.name == "task"
    assert (found.task.label_names, {row["label"] for row in found.validation}) == (("a", "b"), {1})
    (evaluated / "b").rename(evaluated / "c")
    with pytest.raises(
        DataError, match=r"eval/c is the folder of a class that .*train does not have; it has a, b\. Ren"
    ):
        folder_task(folder, evaluated, task_type="image")


def test_the_first_rows_are_of_all_classes(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(40):
            (tmp_path / name / f"{number}.png").write_text(f"{name}{number}")
    found = RowsSource(train_dir=str(tmp_path), eval_dir=str(tmp_path), task_type="image", limit=20).load()
    assert len(found.train) == 20
    # With classes at random, each has 4 to 16 of 20 with probability 0.997; the order is that of the checksums.
    assert 4 <= sum(row["label"] for row in found.train) <= 16


def test_the_checksum_of_rows_is_that_of_their_contents(folder: Path, tmp_path: Path) -> None:
    def of(place: Path) -> str:
        return digest(RowsSource(train_dir=str(place), eval_dir=str(place), task_type="image").load())

    before = of(folder)
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert of(moved) == before
    (moved / "a" / "1.png").write_text("another")
    assert of(moved) != before
