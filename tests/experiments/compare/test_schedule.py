"""Jobs side by side: none needs what another one of its stage makes."""

from bayes_lora.experiments.compare.methods import METHODS, Method, parse_methods
from bayes_lora.experiments.compare.schedule import stages


def test_point_estimates_come_first_and_trainings_are_done_once() -> None:
    methods = parse_methods(
        "map,mc_dropout,deep_ensemble[members=2],deep_ensemble[members=3],monteclora,monteclora+calibrated,blob,"
        "laplace,laplace[link=probit],laplace[structure=diagonal]"
    )
    first, second = stages([(method, seed) for seed in (0, 1) for method in methods])
    assert first == [(0, [Method("map")]), (1, [Method("map")])]
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


def test_only_what_starts_from_a_point_estimate_asks_for_one() -> None:
    # These train a network of their own, or none; every other method starts from the shared one.
    own = {"base_rate", "monteclora", "monteclora_sparse", "blob", "full", "dora", "adalora", "adapter"}
    for method in parse_methods(",".join(METHODS)):
        first, _ = stages([(method.untempered, 5)])
        assert first == ([] if method.name in own else [(5, [Method("map")])]), method.label
    (decayed,) = parse_methods("lora[weight_decay=0.1]")
    assert stages([(decayed, 5)])[0] == []
