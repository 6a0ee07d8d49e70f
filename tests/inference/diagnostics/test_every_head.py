"""Inference data, map of uncertainty and number of draws, of every kind of label, against one pass at a time."""

import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from pyro import poutine

from bayes_lora.errors import ConfigurationError, DataError, LikelihoodError
from bayes_lora.inference import MCDropout, load_inference_data, predict, save_inference_data, to_inference_data
from bayes_lora.inference.diagnostics import (
    check_labels,
    draws_needed,
    elpd_held_out,
    enough_draws,
    loo,
    uncertainty_map,
)
from bayes_lora.inference.diagnostics.arviz_bridge import arviz, group, group_names
from bayes_lora.inference.diagnostics.plots import plot_ppc
from bayes_lora.metrics.monte_carlo_error import error_of_mean
from bayes_lora.models import LikelihoodNetwork
from bayes_lora.randomness import stream
from tests.heads import HEADS, build, rows_of

KINDS = [name for name in HEADS if name != "written"]
EACH = pytest.mark.parametrize("name", KINDS)
NUM_ROWS, NUM_DRAWS, SEED = 8, 30, 5
# Dimensions of y behind `example`, and of what is beside it in posterior_predictive.
DIMS: dict[str, tuple[tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "classification": ((), {"probs": ("example", "class")}),
    "choice": ((), {"probs": ("example", "class")}),
    "known noise": (("output",), {"location": ("example", "output"), "noise_scale": ("output",)}),
    "learned noise": (("output",), {"location": ("example", "output"), "noise_scale": ("output",)}),
    "Student's t": (("output",), {"location": ("example", "output"), "noise_scale": ("output",)}),
    "one output": ((), {"location": ("example",), "noise_scale": ()}),
    "multi-label": (("label",), {"probs": ("example", "label")}),
    "ordinal": ((), {"probs": ("example", "class")}),
    "tokens": (("token",), {"probs": ("example", "token", "class")}),
    "language": (("token",), {"log_probs": ("example", "token")}),
}


def batches(name: str, sizes: tuple[int, ...] = (5, 3)) -> list[dict[str, Any]]:
    rows, found = rows_of(name, sum(sizes)), []
    for size in sizes:
        part, rows = rows[:size], rows[size:]
        found.append({key: torch.stack([torch.as_tensor(row[key]) for row in part]) for key in part[0]})
        if found[-1]["labels"].is_floating_point():
            found[-1]["labels"] = found[-1]["labels"].double()
    return found


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """Model, guide and inference data of each head."""
    found = {}
    for name in KINDS:
        pair = build(name, num_train_examples=NUM_ROWS, sample_scale=2.0)
        found[name] = (*pair, to_inference_data(*pair, batches(name), num_samples=NUM_DRAWS, seed=SEED))
    return found


@EACH
def test_log_likelihoods_are_those_of_the_models_own_site(name: str, made: dict[str, Any]) -> None:
    """Against one replay of the model for each draw: the site `y`, in the plate `data`."""
    model, guide, data = made[name]
    found = group(data, "log_likelihood")["y"]
    assert found.dims == ("chain", "draw", "example")
    for draw in (0, 1, NUM_DRAWS - 1):
        torch.manual_seed(stream(SEED, draw))
        with torch.no_grad():
            drawn = poutine.trace(guide).get_trace()
            sites = [
                poutine.trace(poutine.replay(model, trace=drawn)).get_trace(**batch).nodes["y"]
                for batch in batches(name)
            ]
        assert all(site["is_observed"] for site in sites)
        expected = torch.cat([site["fn"].log_prob(site["value"]) for site in sites])
        np.testing.assert_allclose(found.isel(chain=0, draw=draw), expected, rtol=1e-9, atol=1e-12)


def test_written_answers_have_no_density() -> None:
    pair = build("written", num_train_examples=NUM_ROWS)
    with pytest.raises(LikelihoodError, match=r"no density of the labels.*Fit with --scoring letter"):
        to_inference_data(*pair, batches("written"), num_samples=2)


@EACH
def test_dimensions_and_coordinates(name: str, made: dict[str, Any]) -> None:
    model, _, data = made[name]
    of_label, others = DIMS[name]
    predictive, observed = group(data, "posterior_predictive"), group(data, "observed_data")["y"]
    assert observed.dims == ("example", *of_label)
    if name != "language":
        assert predictive["y"].dims == ("chain", "draw", "example", *of_label)
        assert predictive["y"].dtype.kind == observed.dtype.kind
    for variable, dims in others.items():
        assert predictive[variable].dims == ("chain", "draw", *dims)
    for dim in predictive.dims:
        assert dim in predictive.coords, dim
    assert predictive.sizes["example"] == NUM_ROWS
    labels = torch.cat([batch["labels"] for batch in batches(name)])
    np.testing.assert_array_equal(observed, labels)
    if name == "tokens":
        assert predictive["class"].to_numpy().tolist() == list(model.likelihood.label_names)
    if name in ("multi-label", "learned noise"):
        assert predictive[of_label[0]].to_numpy()[0] == "LABEL_0"  # as transformers calls it


@pytest.mark.parametrize("name", ["tokens", "language"])
def test_tokens_without_a_label_are_masked(name: str, made: dict[str, Any]) -> None:
    _, _, data = made[name]
    predictive, observed = group(data, "posterior_predictive"), group(data, "observed_data")["y"]
    masked = observed.to_numpy() == -100
    assert masked.any()
    assert not masked.all()
    if name == "tokens":
        np.testing.assert_array_equal(predictive["y"].to_numpy()[0] == -100, np.stack([masked] * NUM_DRAWS))
        np.testing.assert_array_equal(np.isnan(predictive["probs"].to_numpy()[0, 0, ..., 0]), masked)
        sums = predictive["probs"].sum("class", skipna=False).to_numpy()[0][:, ~masked]
        np.testing.assert_allclose(sums, 1, rtol=1e-12)
        return
    assert "y" not in predictive
    np.testing.assert_array_equal(np.isnan(predictive["log_probs"].to_numpy()[0, 0]), masked)
    of_rows = group(data, "log_likelihood")["y"]
    xr.testing.assert_allclose(predictive["log_probs"].sum("token"), of_rows.drop_attrs(), rtol=1e-12)
    for entropy in ("total_entropy", "aleatoric_entropy"):
        assert predictive[entropy].dims == ("example", "token")
        np.testing.assert_array_equal(np.isnan(predictive[entropy]), masked)


@EACH
def test_arviz_takes_them(name: str, made: dict[str, Any], tmp_path: Path) -> None:
    """Its own leave-one-out, and its picture of the labels; and ours, which is the same with every release."""
    _, _, data = made[name]
    with warnings.catch_warnings():
        # 30 draws are few, both say of some rows.
        warnings.simplefilter("ignore", UserWarning)
        theirs, ours = arviz().loo(data), loo(data)
        elpd = theirs.elpd_loo if hasattr(theirs, "elpd_loo") else theirs.elpd
        assert theirs.n_data_points == NUM_ROWS
        assert float(elpd) == pytest.approx(ours.elpd, abs=0.05 * abs(ours.elpd) + 0.5)
    assert elpd_held_out(data).elpd > ours.elpd
    if name == "language":
        with pytest.raises(DataError, match=r"no labels were drawn.*See check_surprise"):
            plot_ppc(data)
    else:
        assert plot_ppc(data).axes
        if arviz().__version__.startswith("0."):  # 1.x has another name for it, in a package of its own
            with mpl.rc_context({"backend": "agg"}), warnings.catch_warnings():
                # ArviZ 0.23 passes on its arguments as matplotlib before 3.11 had it.
                warnings.filterwarnings("ignore", "Passing a dict or None as alias_mapping", DeprecationWarning)
                assert np.size(arviz().plot_ppc(data, num_pp_samples=5)) > 0
                plt.close("all")
    save_inference_data(data, tmp_path / "data.nc")
    again = load_inference_data(tmp_path / "data.nc")
    for of in group_names(data):
        xr.testing.assert_identical(group(again, of), group(data, of))


@EACH
def test_rows_without_labels(name: str) -> None:
    pair = build(name)
    unlabelled = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches(name)]
    found = to_inference_data(*pair, unlabelled, num_samples=2)
    assert not {"log_likelihood", "observed_data"} & set(group_names(found))
    assert group(found, "posterior_predictive").sizes["example"] == NUM_ROWS


def test_names_of_the_users_own(made: dict[str, Any]) -> None:
    model, guide, _ = made["ordinal"]
    grades = ["poor", "fair", "good", "fine"]
    found = to_inference_data(model, guide, batches("ordinal"), num_samples=2, label_names=grades)
    assert group(found, "posterior_predictive")["class"].to_numpy().tolist() == grades
    with pytest.raises(DataError, match="there are 2 names for 4 coordinates of 'class'"):
        to_inference_data(model, guide, batches("ordinal"), num_samples=2, label_names=grades[:2])


@EACH
def test_the_map_is_of_what_draws_disagree_about(name: str, made: dict[str, Any]) -> None:
    model, guide, _ = made[name]
    likelihood, of_rows = model.likelihood, batches(name)
    found = uncertainty_map(model, guide, of_rows, num_samples=4, seed=3)
    predictions = [predict(model, guide, [batch], num_samples=4, draws="independent", seed=3) for batch in of_rows]
    information = torch.cat([likelihood.disagreement(of) for of in predictions])
    assert information.shape == (NUM_ROWS,)
    assert information.min() > -1e-12
    assert found.whole.mutual_information == pytest.approx(float(information.mean()))
    variance = torch.cat([likelihood.averaged(of).var(0, correction=0).flatten(1).sum(-1) for of in predictions])
    assert found.whole.variance == pytest.approx(float(variance.mean()))
    assert not found.flagged


@pytest.mark.parametrize("name", [name for name in KINDS if name != "language"])
def test_predictions_say_how_their_draws_belong_together(name: str, made: dict[str, Any]) -> None:
    model, guide, _ = made[name]
    designed = predict(model, guide, batches(name), num_samples=4)
    assert (designed.block_size, designed.joint, designed.kl_temperature) == (4, True, model.config.kl_temperature)
    assert predict(model, guide, batches(name), num_samples=4, draws="independent").block_size == 1
    dropped = MCDropout(LikelihoodNetwork(model.network, model.likelihood), probability=0.1)
    prediction = dropped(batches(name), num_samples=2)
    assert not prediction.joint
    with pytest.raises(ConfigurationError, match="draws of each row are independent of those of other rows"):
        check_labels(prediction, model.likelihood)


@EACH
def test_draws_needed_are_those_of_auto(name: str, made: dict[str, Any]) -> None:
    """Each batch for itself: the predictive under as many draws, and the network at the mean."""
    model, guide, _ = made[name]
    tolerance = 0.05
    found = draws_needed(model, guide, batches(name), tolerance=tolerance)
    averaged, counts, errors, differences = model.likelihood.averaged, [], [], []
    for batch in batches(name):
        drawn = predict(model, guide, [batch], num_samples="auto", tolerance=tolerance)
        point = predict(model, guide, [batch], at_mean=True)
        counts.append(len(averaged(drawn)))
        if name in ("classification", "multi-label", "ordinal", "tokens", "language"):  # numbers: in other units each
            of_draws, at_mean = averaged(drawn), averaged(point)[0]
            errors.append(error_of_mean(of_draws, 2, at_mean).max().item())
            differences.append((of_draws.mean(0) - at_mean).abs().max().item())
    assert found.num_draws == (min(counts), max(counts))
    assert found.of == model.likelihood.averaged_called
    assert f"of the predictive in every {found.of}" in found.message
    if errors:
        assert found.standard_error == pytest.approx(max(errors))
        assert found.mean_within == pytest.approx(max(differences))
    assert found.flagged == (found.standard_error > tolerance)


def test_draws_needed_of_classes_are_enough_draws(made: dict[str, Any]) -> None:
    model, guide, _ = made["classification"]
    of_rows = batches("classification")
    expected = enough_draws(predict(model, guide, of_rows, num_samples="auto", tolerance=0.02), 0.02)
    found = draws_needed(model, guide, of_rows, tolerance=0.02)
    for attribute in ("mean_within", "mean_differs", "standard_error", "num_draws", "flagged", "message"):
        assert getattr(found, attribute) == pytest.approx(getattr(expected, attribute)), attribute


def test_noise_that_changes_nothing_needs_no_draws() -> None:
    model, guide = build("tokens")
    with torch.no_grad():
        for adapter in model.sites.adapters:
            adapter.layer.lora_B[adapter.key].weight.zero_()
    found = draws_needed(model, guide, batches("tokens"))
    assert (found.mean_within, found.standard_error, found.num_draws) == (0.0, 0.0, (2, 2))


def test_a_language_model_needs_labels() -> None:
    pair = build("language")
    unlabelled = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches("language")]
    with pytest.raises(LikelihoodError, match="these rows have none"):
        uncertainty_map(*pair, unlabelled, num_samples=2)
    with pytest.raises(LikelihoodError, match="these rows have none"):
        draws_needed(*pair, unlabelled)
