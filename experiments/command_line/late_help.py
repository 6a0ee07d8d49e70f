"""What the help of an option lists that only the library knows: asked for when the help is."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from typer.core import TyperCommand


def _methods() -> str:
    from bayes_lora.experiments.compare.methods import METHODS

    return ", ".join(METHODS)


def _fit_methods() -> str:
    from bayes_lora.experiments.runs.run_config import FIT_METHODS

    return ", ".join(FIT_METHODS)


def _guides() -> str:
    from bayes_lora.inference.guides.lora_guide import guide_kinds

    return ", ".join(guide_kinds())


def _suites() -> str:
    from bayes_lora.experiments.bench.suites import SUITES

    return ", ".join(SUITES)


def _bench_tolerance() -> str:
    from bayes_lora.experiments.bench.check import TOLERANCE

    return f"{TOLERANCE:.0%}"


def _task_types() -> str:
    from bayes_lora.experiments.families.family import task_families

    return ", ".join(task_families())


def _tasks() -> str:
    from bayes_lora.experiments.tasks.tasks import TASKS

    return ", ".join(TASKS)


def _scorings() -> str:
    from bayes_lora.experiments.families.multiple_choice import SCORINGS

    return ", ".join(SCORINGS)


def _base_models() -> str:
    from bayes_lora.experiments.networks.named_models import base_model_help

    return base_model_help()


def _recipes() -> str:
    from bayes_lora.experiments.sweep.recipe import recipe_names

    return ", ".join(recipe_names())


def _shapes() -> str:
    from bayes_lora.experiments.plan.planning import shape_names

    return ", ".join(shape_names())


LISTS: Mapping[str, Callable[[], str]] = {
    "methods": _methods,
    "fit_methods": _fit_methods,
    "guides": _guides,
    "suites": _suites,
    "recipes": _recipes,
    "shapes": _shapes,
    "bench_tolerance": _bench_tolerance,
    "task_types": _task_types,
    "base_models": _base_models,
    "tasks": _tasks,
    "scorings": _scorings,
}


def filled(text: str) -> str:
    """The help with each name in braces replaced by what it stands for.

    Example:
        >>> filled("Hub name or folder.")
        'Hub name or folder.'
    """
    return re.sub(r"\{(\w+)\}", lambda match: LISTS[match[1]](), text)


class LateHelpCommand(TyperCommand):
    """A command whose help is filled in when it is shown."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As click does."""
        for parameter in self.params:
            known: Any = parameter
            if getattr(known, "help", None):
                known.help = filled(known.help)
        super().format_help(ctx, formatter)
