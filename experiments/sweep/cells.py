"""The cells of a sweep: what one worker claims, does and reports as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bayes_lora.experiments.compare.method_spec import Method
from bayes_lora.experiments.compare.study import Study
from bayes_lora.experiments.sweep.recipe import Recipe, RecipeTask
from bayes_lora.experiments.sweep.settings import Point, at_point, make_study

_OF_POINT = "point-estimate"


@dataclass(frozen=True)
class Entry:
    """One line of the results: a method of the recipe at a point of the grid, and what it is there."""

    written: Method
    method: Method
    point: Point


@dataclass(frozen=True)
class Cell:
    """A study of `compare` with one seed, of the methods that share a training: the point estimate, or one of its own.

    Attributes:
        recipe: that it is of.
        task: of the recipe.
        shared: the point of the axes along which every method moves.
        seed: of the recipe.
        training: a name of what its methods share.
        entries: its methods.
    """

    recipe: Recipe
    task: RecipeTask
    shared: Point
    seed: int
    training: str
    entries: tuple[Entry, ...]

    @cached_property
    def id(self) -> str:
        """Of the sweep's cells; also the place of its study within the sweep's folder."""
        point = ",".join(f"{axis}={value}" for axis, value in self.shared).replace("/", "_") or "all"
        return f"{self.task.name}/{point}/seed-{self.seed}/{self.training}"

    @property
    def params(self) -> dict[str, Any]:
        """What it is, by name, as viewers of a storage show it."""
        return {"task": self.task.name, **dict(self.shared), "seed": self.seed, "training": self.training}

    @property
    def methods(self) -> list[Method]:
        """Of its study; two entries may be one method."""
        return list(dict.fromkeys(entry.method for entry in self.entries))

    def study(self, data_dir: Path | None = None) -> Study:
        """With this seed alone."""
        values = {**self.recipe.settings, **dict(self.shared)}
        more = {"outside": self.task.outside, "outside_dir": data_dir, "seeds": (self.seed,)}
        return make_study(self.task.source, self.recipe.base_place, values, **more)


def cells_of(recipe: Recipe) -> list[Cell]:
    """Every cell of a recipe, seed by seed: after the first seed the whole grid has been seen once."""
    found: dict[tuple[int, str, Point, str], list[Entry]] = {}
    tasks: Mapping[str, RecipeTask] = {task.name: task for task in recipe.tasks}
    for seed in recipe.seeds:
        for name in tasks:
            for method in recipe.methods:
                for point in recipe.points_of(method):
                    shared = tuple((axis, value) for axis, value in point if axis in recipe.shared_axes)
                    there = at_point(method, dict(point))
                    training = there.untempered.training.folder if there.spec.needs == "own" else _OF_POINT
                    found.setdefault((seed, name, shared, training), []).append(Entry(method, there, point))
    return [
        Cell(recipe, tasks[name], shared, seed, training, tuple(entries))
        for (seed, name, shared, training), entries in found.items()
    ]
