"""Every recipe parses in every form, and each of its methods trains and predicts."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bayes_lora.experiments.sweep.cells import Cell, cells_of
from bayes_lora.experiments.sweep.lined_yaml import read_lined
from bayes_lora.experiments.sweep.queue import Queue
from bayes_lora.experiments.sweep.recipe import RECIPES, Recipe, RecipeTask, read_recipe, recipe_names
from bayes_lora.experiments.sweep.working import Work
from bayes_lora.experiments.tasks.sources import RowsSource

FORMS = [
    (name, form)
    for name in recipe_names()
    for form in (None, *read_lined(RECIPES / f"{name}.yaml").plain().get("forms", {}))
]
# Three steps over forty rows, as many as AdaLoRA needs.
STEP = {"epochs": 1, "batch_size": 12, "max_length": 16, "num_samples": 1, "precision": "float32", "rank": 2}
_DONE: set[object] = set()  # what another recipe has had already


@pytest.mark.parametrize(("name", "form"), FORMS, ids=lambda value: value or "published")
def test_a_recipe_parses_and_has_cells(name: str, form: str | None) -> None:
    recipe = read_recipe(name, form)
    cells = cells_of(recipe)
    assert len({cell.id for cell in cells}) == len(cells) > 0
    assert {entry.written for cell in cells for entry in cell.entries} == set(recipe.methods)
    assert recipe.about
    if name.startswith(("table", "figure")):
        assert recipe.source.startswith("arXiv 2411.04358, ")
    for cell in cells[:1]:
        assert cell.study().seeds == (cell.seed,)


@pytest.fixture(scope="module")
def few(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of each class."""
    folder = tmp_path_factory.mktemp("few")
    for path in digits.glob("[te]*/*"):
        (folder / path.relative_to(digits)).mkdir(parents=True)
        for image in sorted(path.iterdir())[:10]:
            shutil.copy(image, folder / image.relative_to(digits))
    return folder


@pytest.fixture
def sources(
    base: str, decoder: str, data_dir: Path, completions: Path, digits: Path, few: Path
) -> dict[str, tuple[str, RowsSource]]:
    """Tiny base models and rows, by type of task."""
    images = RowsSource(train_dir=str(few / "train"), eval_dir=str(few / "eval"), task_type="image")
    return {
        "classification": (base, RowsSource(task="mrpc", data_dir=str(data_dir))),
        "language_model": (decoder, RowsSource(train_file=str(completions), task_type="language_model")),
        "image": (str(digits / "small-vit"), images),
    }


def tiny(recipe: Recipe, sources: dict[str, tuple[str, RowsSource]]) -> Recipe:
    """The last value of each axis, on a tiny network and task."""
    kind = recipe.tasks[0].source.task_type
    base, source = sources[kind]
    fixed = {**recipe.settings, **STEP}
    fixed = {key: value for key, value in fixed.items() if key not in ("train_rows", "eval_rows")}
    if kind == "image":
        del fixed["max_length"]  # of which images have none
    grid = {axis: values[-1:] for axis, values in recipe.grid.items() if axis not in fixed}
    task = RecipeTask("tiny", source)
    return replace(recipe, base_model=base, tasks=(task,), seeds=(0,), settings=fixed, grid=grid)


def key(cell: Cell) -> object:
    """What a cell trains; learning rates change nothing that could rot."""
    axes = [pair for pair in cell.shared if pair[0] != "learning_rate"]
    methods = [entry.written.label for entry in cell.entries]
    return cell.recipe.base_model, tuple(axes), tuple(methods)


@pytest.mark.parametrize("name", recipe_names())
def test_each_method_of_a_recipe_trains(
    name: str, sources: dict[str, tuple[str, RowsSource]], tmp_path: Path, empty_queue: Queue
) -> None:
    work = Work(empty_queue, tmp_path)
    forms = [form for of, form in FORMS if of == name]
    for form in forms:
        for cell in cells_of(tiny(read_recipe(name, form), sources)):
            if key(cell) in _DONE:
                continue
            report, failed = work.do(cell)
            assert failed == {}
            assert set(report["scores"]) == {method.label for method in cell.methods}
            _DONE.add(key(cell))
