"""The rows of a comparison."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import pytest

from bayes_lora.choices import Seeding
from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.experiments.compare.study import StudyRows, conventions_of
from bayes_lora.experiments.rows.rows import Row
from bayes_lora.experiments.tasks.sources import RowsSource
from tests.experiments.compare.studies import make_study


def texts(rows: Sequence[Row]) -> set[str]:
    found = {row["sentence1"] + row["sentence2"] for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("splits", ["per_seed", "shared"])
def test_rows_to_choose_settings_by(data_dir: Path, base: str, splits: str) -> None:
    study = make_study(data_dir, base, splits=splits, eval_split="held_out")
    rows = study.load()
    for seed in (0, 1):
        parts = [texts(part) for part in (*study.split(rows, seed), rows.evaluated)]
        assert all(parts)
        for one, other in combinations(parts, 2):
            assert not one & other  # what is chosen on some rows is not judged by them
    study = make_study(data_dir, base, splits=splits, train_rows=20, eval_rows=5)
    validated = study.load()
    assert sum(map(len, study.split(validated, 0))) == 20
    assert len(validated.evaluated) == 5
    assert len(validated.outside[""].validation) == 5
    # Nor out of distribution by the same rows.
    assert not texts(validated.outside[""].validation) & texts(rows.outside[""].validation[:5])


def test_seeds_differ_in_their_rows_unless_they_are_to_share_them(data_dir: Path, base: str) -> None:
    study = make_study(data_dir, base, train_rows=30)
    rows = study.load()
    parts = {seed: [texts(part) for part in study.split(rows, seed)] for seed in (0, 1, 2)}
    assert parts[0] == [texts(part) for part in study.split(rows, 0)]
    for fit, held_out in parts.values():
        assert (len(fit), len(held_out)) == (24, 6)
        assert not fit & held_out
    for first, second in combinations(parts, 2):
        assert parts[first][0] | parts[first][1] != parts[second][0] | parts[second][1]
        assert parts[first][1] != parts[second][1]
    study = make_study(data_dir, base, train_rows=30, splits="shared")
    rows = study.load()
    assert study.split(rows, 0) == study.split(rows, 1)
    assert set().union(*map(texts, study.split(rows, 0))) == texts(study.source.load().train[:30])


def test_the_rows_of_a_seed_have_the_classes_of_all(data_dir: Path, base: str) -> None:
    study = make_study(data_dir, base, train_rows=30)
    rows = study.load()
    share = sum(row["label"] for row in rows.train) / len(rows.train)
    for seed in range(5):
        fit, held_out = study.split(rows, seed)
        assert abs(sum(row["label"] for row in [*fit, *held_out]) - 30 * share) <= 1


def test_a_folder_of_an_earlier_version_says_how_it_goes_on(data_dir: Path, base: str, tmp_path: Path) -> None:
    assert conventions_of(tmp_path) == {}
    seedings: tuple[Seeding, ...] = ("separate", "shared")
    for splits, seeding in product(("per_seed", "shared"), seedings):
        study = make_study(data_dir, base, splits=splits)
        study = replace(study, training=replace(study.training, seeding=seeding))
        (tmp_path / "study.json").write_text(json.dumps(study.to_json()))
        found = {"splits": "per_seed", "seeding": "separate", **conventions_of(tmp_path)}
        assert found == {"splits": splits, "seeding": seeding}


def test_the_first_rows_of_a_sorted_file_are_not_taken_for_all(base: str, data_dir: Path, tmp_path: Path) -> None:
    texts = [f"a text that is number {number}" for number in range(40)]
    for name, labels in (("sorted", [0] * 20 + [1] * 20), ("mixed", [0, 1] * 20)):
        lines = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))

    def load(train: str, evaluated: str) -> StudyRows:
        files = [str(tmp_path / f"{name}.jsonl") for name in (train, evaluated)]
        source = RowsSource(train_file=files[0], eval_file=files[1], text_columns=("text",))
        return make_study(data_dir, base, source=source, train_rows=20, eval_rows=10, splits="shared").load()

    with pytest.raises(DataError, match="--train-rows takes the first 20 of 40 rows, which have none of class 1"):
        load("sorted", "mixed")
    with pytest.raises(DataError, match="--eval-rows takes the first 10 of 40 rows"):
        load("mixed", "sorted")
    rows = load("mixed", "mixed")
    assert len(rows.evaluated) == 10
    assert set(rows.outside) == {""}  # a task of its own beside rows of one's own


def test_a_task_is_not_outside_of_itself(data_dir: Path, base: str) -> None:
    with pytest.raises(ConfigurationError, match="--outside mrpc is the task itself"):
        make_study(data_dir, base, outside="mrpc")
