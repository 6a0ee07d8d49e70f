"""Tasks of the user's own folders of images or recordings."""

from pathlib import Path

from bayes_lora.errors import DataError
from bayes_lora.experiments.families.family import task_families, task_family
from bayes_lora.experiments.rows.folders import CHECKSUM, CLASS, FILE, class_rows, file_rows
from bayes_lora.experiments.rows.rows import Row
from bayes_lora.experiments.tasks.tasks import Task, TaskRows, checked_rows, with_names


def folder_types() -> list[str]:
    """Names of the types of tasks whose rows are files in folders."""
    return [name for name, family in task_families().items() if family.inputs.suffixes]


def folder_task(
    train_dir: Path, eval_dir: Path | None, *, task_type: str, holdout: float = 0.1, seed: int = 0
) -> TaskRows:
    """A task made of folders of files, ``train_dir/<class>/*``; the classes are those folders' names.

    Args:
        train_dir: files to train on. Where it is called "train", the task has the name of the folder above.
        eval_dir: files to evaluate on, in folders of the same names; None holds out a part of each class.
        task_type: one of `folder_types`.
        holdout: the fraction held out, between 0 and 1, rounded up to whole files.
        seed: of the hold-out.

    Raises:
        DataError: see `class_rows`; fewer than two classes, or a class to evaluate that is not trained; too few files
            to hold any out.
        ConfigurationError: `holdout` outside (0, 1).
    """
    suffixes = task_family(task_type).inputs.suffixes
    train = _mixed(class_rows(train_dir, suffixes))
    classes = sorted({row[CLASS] for row in train})
    if len(classes) < 2:
        raise DataError(f"{train_dir} has files of one class only ({classes[0]}). Add a folder with those of another.")
    evaluated = None
    if eval_dir is not None:
        evaluated = _mixed(class_rows(eval_dir, suffixes)), eval_dir
        unknown = [row[CLASS] for row in evaluated[0] if row[CLASS] not in classes]
        if unknown:
            raise DataError(
                f"{eval_dir / unknown[0]} is the folder of a class that {train_dir} does not have; it has "
                f"{', '.join(classes)}. Rename it, or add files of that class to train on."
            )
    path = train_dir.absolute()
    name = path.parent.name if path.name == "train" and path.parent.name else path.name
    draft = Task(name, (FILE,), CLASS, ("0", "1"), task_type=task_type)
    return with_names(draft, (train, train_dir), evaluated, holdout=holdout, seed=seed)


def _mixed(rows: list[Row]) -> list[Row]:
    """The rows in an order that has nothing to do with their classes, so that the first so many are of all of them."""
    return sorted(rows, key=lambda row: str(row[CHECKSUM]))


def input_rows(task: Task, place: Path) -> list[Row]:
    """Rows to predict: those of a file, or the files of a folder.

    Raises:
        DataError: see `checked_rows` and `file_rows`.
    """
    suffixes = task.family.inputs.suffixes
    return file_rows(place, suffixes) if suffixes else checked_rows(task, place, labelled=False)
