"""Methods by name, and what they say of themselves."""

import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.compare import methods as package
from bayes_lora.experiments.compare.method_spec import Method
from bayes_lora.experiments.compare.methods import METHODS, find_methods, parse_methods
from bayes_lora.experiments.compare.schedule import with_bases
from tests.experiments.compare.studies import named


def test_names_options_and_suffixes() -> None:
    written = "map, monteclora[sample_scale=0.05, objective=elbo,temperature=1e-2]+calibrated+temperature,laplace,map"
    assert parse_methods(written) == [
        Method(METHODS["map"]),
        Method(
            METHODS["monteclora"],
            (("objective", "elbo"), ("kl_temperature", 0.01), ("sample_scale", 0.05)),
            calibrated=True,
            tempered=True,
        ),
        Method(METHODS["laplace"]),
    ]


@pytest.mark.parametrize("name", METHODS)
def test_every_name_is_understood_and_read_back(name: str) -> None:
    (method,) = parse_methods(name)
    assert parse_methods(method.label) == [method]
    (tempered,) = parse_methods(f"{name}+temperature")
    assert tempered.tempered
    assert parse_methods(tempered.label) == [tempered]


def test_folders_differ_where_methods_do() -> None:
    written = "map,temperature,monteclora,monteclora[num_components=8],monteclora[num_components=8]+temperature,"
    written += "monteclora[num_components=8]+calibrated,monteclora[sample_scale=0.05],monteclora+calibrated,blob+mean,"
    written += "map+energy,map+energy+temperature"
    methods = parse_methods(written)
    folders = {method.folder for method in methods}
    assert len(folders) == len(methods) == 11
    assert all(set(folder) <= set("abcdefghijklmnopqrstuvwxyz0123456789_=.+-") for folder in folders)


def test_however_it_is_written_it_is_one_method() -> None:
    written = "monteclora[temperature=1,objective=elbo],monteclora[objective=elbo,temperature=1.0],"
    written += "monteclora[objective=elbo,kl_temperature=1],"  # of which temperature is the old name
    (method,) = parse_methods(written + "monteclora[objective=elbo, temperature=10e-1]")
    assert method.label == "monteclora[objective=elbo,kl_temperature=1]"
    # Folders of what was trained under the old name are found.
    assert method.folder == "monteclora_objective=elbo_temperature=1"


def test_two_names_of_one_thing() -> None:
    point = Method(METHODS["map"])
    assert parse_methods("lora,map,temperature,map+temperature,lora+temperature") == [
        point,
        replace(point, tempered=True),
    ]
    assert replace(point, tempered=True).label == "temperature"
    # With options it is a training of its own, not the one that others start from.
    (decayed,) = parse_methods("lora[weight_decay=0.1]")
    assert decayed == Method(METHODS["lora"], (("weight_decay", 0.1),))
    assert decayed.label == "lora[weight_decay=0.1]"


def test_a_temperature_is_applied_to_what_another_predicts() -> None:
    methods = parse_methods("temperature,monteclora+calibrated+temperature,map,blob+mean+temperature")
    halved = replace(named("monteclora+calibrated"), halved=True)
    assert with_bases(methods) == [named("map"), halved, named("blob+mean")]


@pytest.mark.parametrize(
    ("written", "halved"),
    [
        ("early_stopping", True),
        ("monteclora_calibrated", True),
        ("monteclora+calibrated", True),
        ("laplace[tuning=held_out]", True),
        ("laplace", False),  # the evidence needs no rows held out
        ("map", False),
        ("deep_ensemble", False),
        ("monteclora+mean", False),
    ],
)
def test_rows_are_not_chosen_by_twice(written: str, halved: bool) -> None:
    assert named(written).untempered == named(written)
    base = named(written + "+temperature").untempered
    assert base == replace(named(written), halved=halved)
    assert (base.folder == named(written).folder) is not halved
    assert base.training == named(written).training


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (" , ", "names none"),
        ("lapalce", "there is no method 'lapalce'"),
        ("map[rank=3]", "'rank=3' is no option of map. Its options are: none"),
        ("swag[scale]", "'scale' is no option of swag"),
        ("swag[scale=]", "write name=value"),
        ("map+cold", r"has \+cold; there are \+calibrated, \+mean, \+energy, .* and \+temperature"),
        ("laplace+calibrated", r"\+calibrated chooses the scale of a trained posterior's noise, and laplace has none"),
        ("swag+mean", r"\+mean leaves out a trained posterior's noise, and swag has none"),
        ("blob+calibrated+mean", "Write one of them"),
        ("swag+energy", r"\+energy asks one network about each row, and swag is none\. Write map\+energy"),
        ("base_rate+neighbours", "base_rate is none"),
        ("map+energy+mahalanobis", "are told by one score"),
        ("monteclora[sample_scale=0.1", "is not understood"),
        ("map-ensemble", "is not understood"),
    ],
)
def test_errors(written: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_methods(written)


def test_defaults_are_those_of_what_the_options_configure() -> None:
    """What is shown, and what is left to the configuration itself."""
    shown = {option.name: option.default_text for option in METHODS["monteclora"].options}
    assert shown["sample_scale"] == str(MonteCLoRAConfig().sample_scale)
    assert shown["kl_weight"] == f"{MonteCLoRAConfig().kl_weight} with paper"
    assert shown["kl_temperature"] == "1 with elbo"
    assert shown["degrees_of_freedom"] == "rank with paper, in_features with elbo"
    assert named("monteclora").values_of(MonteCLoRAConfig) == {}
    assert named("monteclora[epochs=2,num_components=8]").values_of(MonteCLoRAConfig) == {"num_components": 8}
    assert named("blob").values_of(MonteCLoRAConfig) == {"kl_temperature": 0.01, "prior_scale": 0.2}
    assert named("blob[prior_scale=1]").value("prior_scale") == 1
    assert named("swag").value("scale") == 0.5


def test_a_training_is_shared_by_what_differs_in_its_prediction() -> None:
    assert named("laplace[link=probit]").training == named("laplace[tuning=held_out]+temperature").training
    assert named("laplace[structure=diagonal]").training != named("laplace").training
    assert named("monteclora+calibrated").training == named("monteclora+mean").training == named("monteclora")


def test_methods_come_back_from_other_processes() -> None:
    for method in parse_methods(",".join(METHODS)):
        assert pickle.loads(pickle.dumps(method)) == method


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", r"methods\.odd declares no method\. Write SPECS = "),
        (
            "from bayes_lora.experiments.compare.methods.blob import SPECS",
            "methods.odd: a method 'blob' exists. Choose another name",
        ),
    ],
)
def test_a_module_that_declares_no_method_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    assert find_methods() == METHODS
    (tmp_path / "odd.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    try:
        with pytest.raises(ConfigurationError, match=message):
            find_methods()
    finally:
        del sys.modules[f"{package.__name__}.odd"]
