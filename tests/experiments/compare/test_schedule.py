"""Jobs side by side: none needs what another one of its stage makes."""

from bayes_lora.experiments.compare.methods import parse_methods
from bayes_lora.experiments.compare.schedule import stages
from tests.experiments.compare.studies import named


def test_point_estimates_come_first_and_trainings_are_done_once() -> None:
    methods = parse_methods(
        "map,mc_dropout,deep_ensemble[members=2],deep_ensemble[members=3],monteclora,monteclora+calibrated,blob,"
        "laplace,laplace[link=probit],laplace[structure=diagonal]"
    )
    first, second = stages([(method, seed) for seed in (0, 1) for method in methods])
    assert first == [(0, [named("map")]), (1, [named("map")])]
    assert [seed for seed, _ in second] == [0] * 6 + [1] * 6
    labels = [[method.label for method in chain] for _, chain in second[:6]]
    assert labels == [
        ["mc_dropout"],
        ["deep_ensemble[members=2]", "deep_ensemble[members=3]"],
        ["monteclora", "monteclora+calibrated"],
        ["blob"],
        ["laplace", "laplace[link=probit]"],
        ["laplace[structure=diagonal]"],
    ]


def test_nothing_is_trained_that_nobody_starts_from() -> None:
    own, first = parse_methods("monteclora,lora[weight_decay=0.1],base_rate"), parse_methods("temperature")
    assert stages([(method, 5) for method in own])[0] == []
    assert stages([(method.untempered, 5) for method in (*own, *first)])[0] == [(5, [named("map")])]
