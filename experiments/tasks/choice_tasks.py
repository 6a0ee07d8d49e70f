"""Published tasks of multiple choice: where their rows are."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ChoiceSource:
    """A task's rows, in files as LLM-Adapters has them or on the hub.

    Attributes:
        train, evaluated: files of ``--data-dir``, less their ending. Those to evaluate on are the published test rows,
            or where these have no labels, the validation rows.
        hub: dataset and configuration.
        eval_split: of them.
    """

    train: str
    evaluated: str
    hub: tuple[str, str | None]
    eval_split: str = "validation"


_FOLDER = "commonsense"

CHOICE_TASKS: Mapping[str, ChoiceSource] = {
    "piqa": ChoiceSource("piqa_train_part", "piqa_test", ("ybisk/piqa", None)),
    "siqa": ChoiceSource("siqa_train", "siqa_test", ("allenai/social_i_qa", None)),
    "winogrande": ChoiceSource("winogrande_l_train", "winogrande_test", ("allenai/winogrande", "winogrande_l")),
    "arc_easy": ChoiceSource("arc_easy_train", "arc_easy_test", ("allenai/ai2_arc", "ARC-Easy"), "test"),
    "arc_challenge": ChoiceSource(
        "arc_challenge_train", "arc_challenge_test", ("allenai/ai2_arc", "ARC-Challenge"), "test"
    ),
    "openbookqa": ChoiceSource("openbookqa_train", "openbookqa_test", ("allenai/openbookqa", "main"), "test"),
    "boolq_question": ChoiceSource("boolq_question_only_train", "boolq_question_only_test", ("google/boolq", None)),
}


def files_of(name: str) -> tuple[str, str]:
    """Where a task's rows to train and to evaluate on are, below the folder of all tasks."""
    if name in CHOICE_TASKS:
        source = CHOICE_TASKS[name]
        return f"{_FOLDER}/{source.train}.jsonl.gz", f"{_FOLDER}/{source.evaluated}.jsonl.gz"
    return f"{name}/train.jsonl.gz", f"{name}/validation.jsonl.gz"


def splits_of(name: str) -> tuple[str, str]:
    """The same on the hub."""
    return "train", CHOICE_TASKS[name].eval_split if name in CHOICE_TASKS else "validation"
