"""Options of the posterior: defaults by objective, domains, and options that belong to the other objective."""

import dataclasses
import math
import re
from typing import Any

import pytest

from bayes_lora import BayesLoRAError, MonteCLoRAConfig
from bayes_lora.errors import ConfigurationError

ELBO: dict[str, Any] = {"objective": "elbo", "num_train_examples": 10}
NOT_NUMBERS: list[Any] = [math.nan, math.inf, -math.inf, "1", None, True, [1.0]]


def test_defaults_of_the_papers_objective() -> None:
    config = MonteCLoRAConfig()
    assert (config.degrees_of_freedom, config.kl_weight, config.cooperative_weight) == ("rank", 1e-5, 1.0)
    assert (config.num_train_examples, config.prior_scale, config.kl_temperature) == (None, None, None)
    assert config.wishart_scale(8.0) == 1.0


def test_defaults_of_the_elbo() -> None:
    config = MonteCLoRAConfig(**ELBO)
    assert (config.degrees_of_freedom, config.prior_scale, config.kl_temperature) == ("in_features", 0.1, 1.0)
    assert (config.kl_weight, config.cooperative_weight) == (None, None)
    assert config.wishart_scale(8.0) == 1 / 8


@pytest.mark.parametrize("options", [{}, ELBO])
def test_it_is_frozen_and_rebuilt_from_its_fields(options: dict[str, Any]) -> None:
    config = MonteCLoRAConfig(**options)
    assert MonteCLoRAConfig(**dataclasses.asdict(config)) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_components = 2  # type: ignore[misc]


def refuse(message: str, **options: Any) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        MonteCLoRAConfig(**options)
    assert isinstance(caught.value, BayesLoRAError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("value", [0, -1, True, 2.0, 1.5, "4", None])
@pytest.mark.parametrize("option", ["num_components", "num_outer_samples"])
def test_counts(option: str, value: Any) -> None:
    refuse(rf"^{option}={value!r} must be an integer >= 1\.$", **{option: value})


@pytest.mark.parametrize("value", [0, -1, True, 2.0])
def test_number_of_training_examples(value: Any) -> None:
    refuse(rf"^num_train_examples={value!r} must be an integer >= 1\.$", **ELBO | {"num_train_examples": value})


def cases(options: list[str], values: list[Any]) -> list[Any]:
    """Every option with every value that is not its default, nor (a string) a choice."""
    none_is_default = ("degrees_of_freedom", "prior_scale", "kl_temperature", "kl_weight", "cooperative_weight")
    return [
        pytest.param(option, value, id=f"{option}={value!r}")
        for option in options
        for value in values
        if not (value is None and option in none_is_default)
        and not (isinstance(value, str) and option == "degrees_of_freedom")
    ]


ELBO_OWN = ["prior_scale", "kl_temperature", "sample_scale"]
POSITIVE = ["prior_concentration", "init_concentration", "degrees_of_freedom", *ELBO_OWN]


@pytest.mark.parametrize(("option", "value"), cases(POSITIVE, [0.0, -0.5, *NOT_NUMBERS]))
def test_positive_options(option: str, value: Any) -> None:
    own = ELBO if option in ELBO_OWN else {}
    refuse(rf"^{option}={re.escape(repr(value))} must be positive and finite \(.+\)\.$", **own | {option: value})


@pytest.mark.parametrize(
    ("option", "value"), cases(["sample_scale", "kl_weight", "cooperative_weight"], [-0.5, *NOT_NUMBERS])
)
def test_non_negative_options(option: str, value: Any) -> None:
    refuse(rf"^{option}={re.escape(repr(value))} must be a finite number >= 0\.$", **{option: value})
    zero: dict[str, Any] = {option: 0}
    assert getattr(MonteCLoRAConfig(**zero), option) == 0


@pytest.mark.parametrize(
    ("option", "allowed"),
    [
        ("mixture", "'dense', 'sparse'"),
        ("sampler", "'collapsed', 'explicit'"),
        ("objective", "'paper', 'elbo'"),
        ("normal_kl", "'sampled', 'expected'"),
        ("degrees_of_freedom", "'rank', 'in_features'"),
    ],
)
def test_choices(option: str, allowed: str) -> None:
    refuse(rf"^{option}='other' is none of {allowed}\.$", **{option: "other"})


def test_the_old_name_of_the_kl_temperature_is_read() -> None:
    """As files and scripts of version 0.1 have it, also where it is None."""
    assert MonteCLoRAConfig(**{**ELBO, "temperature": 0.25}) == MonteCLoRAConfig(**ELBO, kl_temperature=0.25)
    none: dict[str, Any] = {"temperature": None}
    assert MonteCLoRAConfig(**none) == MonteCLoRAConfig()
    config = MonteCLoRAConfig(**{**ELBO, "temperature": 0.25})
    assert dataclasses.replace(config, prior_scale=2.0).kl_temperature == 0.25
    assert not hasattr(MonteCLoRAConfig(), "temperature")
    refuse("is the old name of kl_temperature. Give one", **ELBO, temperature=0.5, kl_temperature=0.25)


def test_random_concentration_is_the_one_word_allowed() -> None:
    assert MonteCLoRAConfig(init_concentration="random").init_concentration == "random"
    refuse("init_concentration='uniform' .*a number > 0, or 'random'", init_concentration="uniform")


@pytest.mark.parametrize("option", ["num_train_examples", "prior_scale", "kl_temperature"])
def test_options_of_the_elbo_given_to_the_papers_objective(option: str) -> None:
    refuse(
        rf"^{option}=1 belongs to objective='elbo', but objective='paper'\. Drop {option}, or set objective='elbo'\.$",
        **{option: 1},
    )


@pytest.mark.parametrize("option", ["kl_weight", "cooperative_weight"])
def test_options_of_the_papers_objective_given_to_the_elbo(option: str) -> None:
    refuse(
        rf"^{option}=1 belongs to objective='paper', but objective='elbo'\. Drop {option}, or set objective='paper'\.$",
        **ELBO | {option: 1},
    )


def test_the_number_of_training_examples_may_be_left_to_the_data() -> None:
    assert MonteCLoRAConfig(objective="elbo").num_train_examples is None


@pytest.mark.parametrize("options", [{"sampler": "explicit"}, {"num_outer_samples": 2}])
def test_the_elbo_has_one_sampler(options: dict[str, Any]) -> None:
    refuse(
        r"exists with sampler='collapsed' and num_outer_samples=1 only; got sampler='\w+', .*Leave both",
        **ELBO | options,
    )


@pytest.mark.parametrize(("choice", "expected"), [("rank", 8.0), ("in_features", 64.0), (8, 8.0), (8.5, 8.5)])
def test_degrees_of_freedom(choice: Any, expected: float) -> None:
    resolved = MonteCLoRAConfig(degrees_of_freedom=choice).resolve_degrees_of_freedom(8, 64)
    assert resolved == expected
    assert isinstance(resolved, float)


@pytest.mark.parametrize(("choice", "nu"), [(7.5, "7.5"), ("in_features", "4")])
def test_degrees_of_freedom_below_the_rank(choice: Any, nu: str) -> None:
    config = MonteCLoRAConfig(degrees_of_freedom=choice)
    message = (
        rf"degrees_of_freedom={choice!r} is {nu}, below the LoRA rank 8 .* in_features=4.*number >= 8, or 'rank'\."
    )
    with pytest.raises(ConfigurationError, match=message):
        config.resolve_degrees_of_freedom(8, 4)
