"""Recipes: a study at every point of a grid, in one YAML file that is checked line by line before anything runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bayes_lora.errors import BayesLoRAError, RecipeError
from bayes_lora.experiments.compare.method_spec import Method
from bayes_lora.experiments.compare.methods import METHODS, parse_methods
from bayes_lora.experiments.networks.named_models import named_models
from bayes_lora.experiments.sweep.lined_yaml import Lined, read_lined
from bayes_lora.experiments.sweep.settings import SETTINGS, Point, at_point, make_study, resolved
from bayes_lora.experiments.tasks.sources import RowsSource
from bayes_lora.experiments.tasks.tasks import TASKS

RECIPES = Path(__file__).resolve().parent / "recipes"
"""The recipes that come with the library, NAME.yaml."""

_KEYS = ("name", "about", "source", "base_model", "tasks", "methods", "seeds", "settings", "grid")
_OF_FORM = ("base_model", "tasks", "methods", "seeds", "settings", "grid")
_OF_FILES = ("train_file", "eval_file", "train_dir", "eval_dir", "text_columns", "label_column", "task_type")
_MOST_CELLS = 100_000


@dataclass(frozen=True)
class RecipeTask:
    """One of the tasks of a recipe: its name in tables, where its rows are from, and a task outside of it."""

    name: str
    source: RowsSource
    outside: str | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything that a sweep depends on but the places of rows and results.

    Attributes:
        name: of the sweep, and of its form where that is not the recipe's own.
        about: one sentence.
        source: where the design is from, such as "arXiv 2411.04358, Table 6".
        base_model: as it is written; see `base_place`.
        folder: where relative paths start.
        tasks: at least one.
        methods: as `compare` takes them.
        seeds: of every point.
        settings: the same in all cells, by the names of `SETTINGS`.
        grid: values by axis, one of `SETTINGS` or ``method.option``.
    """

    name: str
    about: str
    source: str
    base_model: str
    folder: Path
    tasks: tuple[RecipeTask, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    grid: Mapping[str, tuple[Any, ...]]

    @property
    def base_place(self) -> str:
        """The base model as `Study` takes it: a folder that is there from `folder` on, or else what is written."""
        here = str(resolved(self.base_model, self.folder))
        return here if self.base_model not in named_models() and Path(here).is_dir() else self.base_model

    @property
    def shared_axes(self) -> tuple[str, ...]:
        """The axes along which every method moves."""
        return tuple(axis for axis in self.grid if "." not in axis)

    def points_of(self, method: Method) -> Iterator[Point]:
        """The points that a method is at: of the axes that all move along, and of its own options."""
        axes = [axis for axis in self.grid if "." not in axis or axis.partition(".")[0] == method.name]
        for values in product(*(self.grid[axis] for axis in axes)):
            yield tuple(zip(axes, values, strict=True))

    def to_json(self) -> dict[str, Any]:
        """What a storage or a folder must agree on to go on with this sweep: all but seeds and methods, which grow."""
        return {
            "name": self.name,
            "base_model": self.base_model,
            "tasks": [task.name for task in self.tasks],
            "settings": dict(self.settings),
            "grid": {axis: list(values) for axis, values in self.grid.items()},
        }


def recipe_names() -> list[str]:
    """Of the recipes that come with the library."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(name: str, form: str | None = None, data_dir: Path | None = None) -> Recipe:
    """A recipe, checked.

    Args:
        name: one that comes with the library, see `recipe_names`, or a YAML file.
        form: one of its `forms`, whose keys take the place of the recipe's own; of settings each its own.
        data_dir: folder of built-in tasks, and where relative paths of the recipe start; None is the hub, and the
            recipe's own folder, or for one that comes with the library the working directory.

    Raises:
        RecipeError: names file, line, and what may stand there.
    """
    path = Path(name)
    folder = data_dir or path.resolve().parent
    if path.suffix not in (".yaml", ".yml"):
        folder = data_dir or Path.cwd()
        path = RECIPES / f"{name}.yaml"
        if not path.is_file():
            raise RecipeError(
                f"There is no recipe {name!r}. Give a YAML file, or one of these: {', '.join(recipe_names())}."
            )
    top = read_lined(path)
    entries = _known(top, "a recipe", (*_KEYS, "forms"))
    forms = entries.pop("forms").mapping("forms") if "forms" in entries else {}
    for each in forms.values():
        _known(each, "a form", _OF_FORM)
    suffix = ""
    if form is not None:
        if form not in forms:
            raise RecipeError(f"{path}: there is no form {form!r}. Its forms: {', '.join(forms) or 'none'}.")
        entries, suffix = _with_form(entries, forms[form]), f"-{form}"
    for key in ("name", "base_model", "tasks", "methods"):
        if key not in entries:
            top.fault(f"the recipe has no {key!r}. Its keys are {', '.join(_KEYS)}.")
    return _recipe(entries, suffix, data_dir, folder, path)


def _with_form(entries: dict[str, Lined], form: Lined) -> dict[str, Lined]:
    own = form.mapping("a form")
    merged = {**entries, **own}
    if "settings" in own and "settings" in entries:
        both = {**entries["settings"].mapping("settings"), **own["settings"].mapping("settings")}
        merged["settings"] = Lined(both, form.file, own["settings"].line)
    return merged


def _recipe(entries: dict[str, Lined], suffix: str, data_dir: Path | None, folder: Path, path: Path) -> Recipe:
    tasks = _tasks(entries["tasks"], data_dir, folder)
    methods = _methods(entries["methods"])
    settings = _settings(entries.get("settings"))
    grid = _grid(entries.get("grid"), methods)
    twice = next((axis for axis in grid if axis in settings), None)
    if twice is not None:
        settings[twice].fault(f"{twice!r} is fixed here and an axis of the grid at line {grid[twice].line}. Drop one.")
    seeds = _seeds(entries.get("seeds"))
    about, source = (entries[key].text(key) if key in entries else "" for key in ("about", "source"))
    base_model = entries["base_model"].text("base_model")
    fixed = {name: entry.plain() for name, entry in settings.items()}
    recipe = Recipe(
        entries["name"].text("name") + suffix,
        about,
        source,
        base_model,
        folder,
        tasks,
        methods,
        seeds,
        fixed,
        {axis: tuple(values.plain()) for axis, values in grid.items()},
    )
    _check_values(recipe, settings, grid)
    count = sum(len(list(recipe.points_of(method))) for method in methods) * len(tasks) * len(seeds)
    if count > _MOST_CELLS:
        raise RecipeError(f"{path}: the grid has {count:,} results, more than {_MOST_CELLS:,}. Make it smaller.")
    return recipe


def _known(node: Lined, what: str, names: tuple[str, ...]) -> dict[str, Lined]:
    entries = dict(node.mapping(what))
    for name, entry in entries.items():
        if name not in names:
            entry.fault(f"{what} has no key {name!r}. Its keys are {', '.join(names)}.")
    return entries


def _tasks(node: Lined, data_dir: Path | None, folder: Path) -> tuple[RecipeTask, ...]:
    found = [_task(entry, data_dir, folder) for entry in node.items("tasks")]
    names = [task.name for task in found]
    for entry, name in zip(node.value, names, strict=True):
        if names.count(name) > 1:
            entry.fault(f"the task {name!r} is here twice. Keep one of them, or give them different names.")
    return tuple(found)


def _task(node: Lined, data_dir: Path | None, folder: Path) -> RecipeTask:
    if isinstance(node.value, dict):
        given = _known(node, "a task", ("task", "name", "outside", *_OF_FILES))
    else:
        given = {"task": node}
    task = given["task"].text("a task") if "task" in given else None
    if task is not None and task not in TASKS:
        given["task"].fault(f"there is no task {task!r}. The tasks are {', '.join(TASKS)}; for other rows: train_file.")
    if task is None and "name" not in given:
        node.fault("a task of your own rows needs a name: write name: NAME beside train_file or train_dir.")
    of_files: dict[str, Any] = {name: given[name].plain() for name in _OF_FILES if name in given}
    for name in ("train_file", "eval_file", "train_dir", "eval_dir"):
        if name in of_files:
            of_files[name] = resolved(given[name].text(name), folder)
    if isinstance(of_files.get("text_columns"), str):
        of_files["text_columns"] = [of_files["text_columns"]]
    if "text_columns" in of_files:
        of_files["text_columns"] = tuple(of_files["text_columns"])
    place = str(Path(data_dir).resolve()) if data_dir is not None and task is not None else None
    try:
        source = RowsSource(task=task, data_dir=place, **of_files)
    except (BayesLoRAError, TypeError) as error:
        node.fault(str(error))
    name = given["name"].text("name") if "name" in given else str(task)
    return RecipeTask(name, source, given["outside"].text("outside") if "outside" in given else None)


def _methods(node: Lined) -> tuple[Method, ...]:
    found: dict[Method, Lined] = {}
    for entry in node.items("methods"):
        try:
            parsed = parse_methods(entry.text("a method"))
        except RecipeError:
            raise
        except BayesLoRAError as error:
            entry.fault(str(error).removeprefix("--methods: "))
        for method in parsed:
            if method in found:
                entry.fault(f"the method {method.label!r} is here twice. Keep one of them.")
            found[method] = entry
            for option in method.spec.options:
                value = dict(method.options).get(option.name)
                _checked(entry, option.check, f"{method.label}: {option.name}", value)
    return tuple(found)


def _checked(node: Lined, check: Any, name: str, value: Any) -> None:
    if check is None or value is None:
        return
    try:
        check(name, value)
    except BayesLoRAError as error:
        node.fault(str(error))


def _settings(node: Lined | None) -> dict[str, Lined]:
    entries = {} if node is None or node.value is None else node.mapping("settings")
    for name, entry in entries.items():
        if name not in SETTINGS:
            entry.fault(f"there is no setting {name!r}. The settings are {', '.join(SETTINGS)}.")
        if isinstance(entry.value, list | dict):
            entry.fault(f"{name} is one value here. Several make an axis: write it under grid.")
    return dict(entries)


def _grid(node: Lined | None, methods: tuple[Method, ...]) -> dict[str, Lined]:
    if node is None:
        return {}
    entries = node.mapping("grid")
    if not entries:
        node.fault("the grid is empty. Give it an axis, such as learning_rate: [1e-4, 1e-3], or drop it.")
    for axis, entry in entries.items():
        values = [value.plain() for value in entry.items(f"the axis {axis}")]
        if len(set(map(repr, values))) < len(values):
            entry.fault(f"the axis {axis} has a value twice: {values}. Keep each once.")
        if axis in SETTINGS:
            continue
        name, _, option = axis.partition(".")
        spec = METHODS.get(name)
        if not option or spec is None:
            entry.fault(
                f"there is no axis {axis!r}. An axis is one of {', '.join(SETTINGS)}, or METHOD.OPTION, such as "
                "monteclora.sample_scale."
            )
        if option not in spec.option_names:
            entry.fault(f"{name} has no option {option!r}. Its options are {', '.join(spec.option_names) or 'none'}.")
        of = [method for method in methods if method.name == name]
        if not of or any(option in dict(method.options) for method in of):
            why = "it is in the brackets of one already" if of else "none of the methods is one"
            entry.fault(f"the axis {axis} moves an option of {name}, and {why}.")
        known = spec.option_named(option)
        for value in values:
            _checked(entry, known and known.check, axis, value)
    return dict(entries)


def _seeds(node: Lined | None) -> tuple[int, ...]:
    if node is None:
        return (0, 1, 2)
    seeds = [entry.plain() for entry in node.items("seeds")]
    if any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in seeds):
        node.fault(f"seeds must be whole numbers from 0, such as [0, 1, 2], not {seeds}.")
    if len(set(seeds)) < len(seeds):
        node.fault(f"seeds={seeds} has one twice. Keep each once.")
    return tuple(seeds)


def _check_values(recipe: Recipe, settings: dict[str, Lined], grid: dict[str, Lined]) -> None:
    """Every value alone, and then all points together, so that a fault is found at the line that it is of."""
    for name, entry in (*settings.items(), *grid.items()):
        values = entry.plain() if name in grid else [entry.plain()]
        for value in values if "." not in name else ():
            alone = {"micro_batch_size": None, **({"batch_size": value} if name == "micro_batch_size" else {})}
            _made(recipe, {**alone, name: value}, entry, f"{name}={value!r}")
    for method in recipe.methods:
        for point in recipe.points_of(method):
            said = ", ".join(f"{axis}={value}" for axis, value in point)
            at_point(method, dict(point))
            _made(recipe, {**recipe.settings, **dict(point)}, next(iter(grid.values()), None), f"at {said}")


def _made(recipe: Recipe, values: Mapping[str, Any], node: Lined | None, where: str) -> None:
    for task in recipe.tasks:
        try:
            make_study(task.source, recipe.base_place, values, outside=task.outside, seeds=recipe.seeds)
        except (BayesLoRAError, TypeError) as error:
            if node is None:
                raise RecipeError(f"recipe {recipe.name}: {error}") from error
            node.fault(f"{where} cannot be: {error}")
