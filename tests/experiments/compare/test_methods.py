"""Methods by name."""

import pytest

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.compare.methods import METHODS, Method, parse_methods, with_bases


def test_names_options_and_suffixes() -> None:
    written = "map, monteclora[sample_scale=0.05, objective=elbo,temperature=1e-2]+calibrated+temperature,laplace,map"
    assert parse_methods(written) == [
        Method("map"),
        Method(
            "monteclora",
            (("objective", "elbo"), ("temperature", 0.01), ("sample_scale", 0.05)),
            calibrated=True,
            tempered=True,
        ),
        Method("laplace"),
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
    written += "monteclora[num_components=8]+calibrated,monteclora[sample_scale=0.05],monteclora+calibrated,blob+mean"
    methods = parse_methods(written)
    folders = {method.folder for method in methods}
    assert len(folders) == len(methods) == 9
    assert all(set(folder) <= set("abcdefghijklmnopqrstuvwxyz0123456789_=.+-") for folder in folders)


def test_however_it_is_written_it_is_one_method() -> None:
    written = "monteclora[temperature=1,objective=elbo],monteclora[objective=elbo,temperature=1.0],"
    (method,) = parse_methods(written + "monteclora[objective=elbo, temperature=10e-1]")
    assert method.label == "monteclora[objective=elbo,temperature=1]"
    assert method.folder == "monteclora_objective=elbo_temperature=1"


def test_two_names_of_one_thing() -> None:
    assert parse_methods("lora,map,temperature,map+temperature") == [Method("map"), Method("map", tempered=True)]
    assert Method("map", tempered=True).label == "temperature"
    # With options it is a training of its own, not the one that others start from.
    (decayed,) = parse_methods("lora[weight_decay=0.1]")
    assert decayed == Method("lora", (("weight_decay", 0.1),))
    assert decayed.label == "lora[weight_decay=0.1]"


def test_a_temperature_is_applied_to_what_another_predicts() -> None:
    methods = parse_methods("temperature,monteclora+calibrated+temperature,map,blob+mean+temperature")
    assert with_bases(methods) == [Method("map"), Method("monteclora", calibrated=True), Method("blob", at_mean=True)]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (" , ", "names none"),
        ("lapalce", "there is no method 'lapalce'"),
        ("map[rank=3]", "'rank=3' is no option of map. Its options are: none"),
        ("swag[scale]", "'scale' is no option of swag"),
        ("swag[scale=]", "write name=value"),
        ("map+cold", r"has \+cold; there are \+calibrated, \+mean and \+temperature"),
        ("laplace+calibrated", r"\+calibrated chooses the scale of a trained posterior's noise, and laplace has none"),
        ("swag+mean", r"\+mean leaves out a trained posterior's noise, and swag has none"),
        ("blob+calibrated+mean", "Write one of them"),
        ("monteclora[sample_scale=0.1", "is not understood"),
        ("map-ensemble", "is not understood"),
    ],
)
def test_errors(written: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_methods(written)
