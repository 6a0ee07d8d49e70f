"""Options that several methods have: of their training, and of a MonteCLoRA posterior."""

from math import ceil
from typing import Any, get_args

from bayes_lora.checks import require_choice, require_positive
from bayes_lora.choices import ScaleScheduleKind
from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.experiments.compare.method_spec import Option, as_text, default_of
from bayes_lora.experiments.compare.study import Study
from bayes_lora.inference import FitOptions

EPOCHS = Option("epochs", shown="--epochs")
LEARNING_RATE = Option("learning_rate", shown="--lr")
WEIGHT_DECAY = Option("weight_decay", shown=as_text(default_of(FitOptions, "weight_decay")))
WEIGHT_DECAY_OF = Option("weight_decay_of", shown=default_of(FitOptions, "weight_decay_of"))
HEAD_LEARNING_RATE = Option("head_learning_rate", shown="as learning_rate")

POSTERIOR_LEARNING_RATE = Option(
    "posterior_learning_rate", shown=as_text(default_of(FitOptions, "posterior_learning_rate"))
)


def _known_schedule(name: str, value: Any) -> None:
    require_choice(name, value, get_args(ScaleScheduleKind))


SCALE_SCHEDULE = Option(
    "scale_schedule", check=_known_schedule, shown=as_text(default_of(FitOptions, "scale_schedule"))
)
"""Of training with a posterior; an axis of that name is of all such methods, this of one."""

QUARTER_OF_EPOCHS = Option(EPOCHS.name, shown=f"a quarter of {EPOCHS.shown}, rounded up")
"""In place of `EPOCHS`, of what goes on from a trained network; see `quarter_of_epochs`."""

OF_POINT = (EPOCHS, LEARNING_RATE, HEAD_LEARNING_RATE, WEIGHT_DECAY, WEIGHT_DECAY_OF)
"""Of training a network without a posterior."""


OF_ROWS = "rows"
"""Of `init_concentration`: as many as there are training rows."""


def _known_start(name: str, value: Any) -> None:
    if value not in ("random", OF_ROWS):
        require_positive(name, value, hint=f"a number > 0, 'random', or {OF_ROWS!r}, the number of training rows")


def _of_posterior(name: str) -> Option:
    paper, elbo = (
        getattr(config, name)
        for config in (MonteCLoRAConfig(), MonteCLoRAConfig(objective="elbo", num_train_examples=1))
    )
    old_name = "temperature" if name == "kl_temperature" else ""
    if name == "objective" or paper == elbo:
        check = _known_start if name == "init_concentration" else None
        return Option(name, check=check, shown=as_text(paper), old_name=old_name)
    own = {objective: value for objective, value in (("paper", paper), ("elbo", elbo)) if value is not None}
    return Option(
        name,
        shown=", ".join(f"{as_text(value)} with {objective}" for objective, value in own.items()),
        old_name=old_name,
    )


OF_POSTERIOR = tuple(
    map(
        _of_posterior,
        (
            *("objective", "kl_temperature", "sample_scale", "prior_scale", "kl_weight", "cooperative_weight"),
            *("num_components", "num_outer_samples", "degrees_of_freedom", "prior_concentration"),
            *("init_concentration", "normal_kl", "sampler"),
        ),
    )
)
"""Those of `MonteCLoRAConfig`, which also checks them; `init_concentration` has a value more, `OF_ROWS`."""


def quarter_of_epochs(study: Study) -> int:
    """What `QUARTER_OF_EPOCHS` is where nobody gives it."""
    return ceil(study.training.epochs / 4)
