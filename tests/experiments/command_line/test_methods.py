"""`bayes-lora methods` says what the methods say of themselves."""

import json

import pytest

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.compare.method_spec import SUFFIXES
from bayes_lora.experiments.compare.methods import METHODS
from tests.experiments.commands import run


def test_all_of_them_are_listed() -> None:
    shown = run("methods").stdout
    for name in (*METHODS, *(f"+{suffix}" for suffix in SUFFIXES)):
        assert f" {name} " in shown
    found = json.loads(run("methods", "--json").stdout)
    assert [method["name"] for method in found["methods"]] == list(METHODS)
    assert [suffix["name"] for suffix in found["suffixes"]] == list(SUFFIXES)


def test_one_of_them_is_shown_with_its_options() -> None:
    shown = run("methods", "laplace").stdout
    assert "laplace[option=value,...]" in shown
    assert "kfac_reduce" in shown
    assert METHODS["laplace"].source in shown
    assert "It has no options." in run("methods", "map").stdout
    found = json.loads(run("methods", "blob", "--json").stdout)
    assert found["options"][0] == {"name": "kl_temperature", "default": "0.01", "of": "training"}
    assert (found["needs"], found["has_noise"]) == ("own", True)
    with pytest.raises(ConfigurationError, match=r"there is no method 'bloob'\. The methods are base_rate, "):
        run("methods", "bloob")
