"""Every method, fitted on a tiny task, keeps what its spec promises, and satisfies the protocol of predictors."""

from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from transformers import DataCollatorWithPadding

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.compare.fitting import POINT, Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import SUFFIXES, Method, MethodSpec, Needs
from bayes_lora.experiments.compare.methods import METHODS, parse_methods
from bayes_lora.experiments.compare.study import EncodedRows, Study
from bayes_lora.experiments.networks.base_models import load_base_model
from bayes_lora.inference import (
    LaplacePredictor,
    PointEstimate,
    checkpoint_states,
    fit_laplace,
    load_laplace,
    tune_prior_precision,
)
from bayes_lora.inference.predictors.predictor import evaluation_mode
from bayes_lora.metrics.classification import negative_log_likelihood
from tests.experiments.compare.studies import named


@pytest.fixture(scope="module")
def fitting(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Fitting:
    rows = study.load()
    tokenizer = load_base_model(study.base_model, rows.task.label_names).processor
    fit, held_out = (EncodedRows.of(rows.task, part, tokenizer, study) for part in study.split(rows, 0))
    return Fitting(study, rows.task, fit, held_out, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def evaluated(study: Study) -> EncodedRows:
    rows = study.load()
    tokenizer = load_base_model(study.base_model, rows.task.label_names).processor
    return EncodedRows.of(rows.task, rows.evaluated, tokenizer, study)


def assert_protocol(method: Method, fitting: Fitting, evaluated: EncodedRows) -> None:
    """Predictions are of the form, as random and as free of the batches as the spec says, and found again."""
    spec = method.spec
    method.check(fitting)
    before = torch.get_rng_state()
    fitted = method.build(fitting, 0)
    calls: list[int] = []
    prediction = fitted.predictor(evaluated.loader(), num_samples=3, seed=1, on_batch=lambda: calls.append(1))
    assert torch.equal(torch.get_rng_state(), before)
    samples = {"one": 1, "draws": 3}.get(spec.samples) or method.value("members")
    assert prediction.logits.shape == (samples, 12, 2)
    assert prediction.logits.isfinite().all()
    assert prediction.labels is not None
    assert len(calls) == 2
    assert fitted.cost.seconds > 0

    again = fitted.predictor(evaluated.loader(), num_samples=3, seed=1)
    assert torch.equal(again.logits, prediction.logits)
    silent = fitted.chosen.get("sample_scale") == 0  # calibrated, and no noise was better than some
    random = spec.samples == "draws" and not silent
    other = fitted.predictor(evaluated.loader(), num_samples=3, seed=2)
    assert torch.equal(other.logits, prediction.logits) == (not random)

    single = replace(evaluated, batch_size=5)
    batches = fitted.predictor(single.loader(), num_samples=3, seed=1)
    assert torch.allclose(batches.logits, prediction.logits, rtol=1e-3, atol=1e-4) == spec.any_batches

    # What was trained is found again, and says the same.
    found = method.build(fitting, 0)
    assert torch.equal(found.predictor(evaluated.loader(), num_samples=3, seed=1).logits, prediction.logits)


@pytest.mark.parametrize("name", [*METHODS, *(f"map+{name}" for name, of in SUFFIXES.items() if of.of_network)])
def test_the_protocol(name: str, fitting: Fitting, evaluated: EncodedRows) -> None:
    assert_protocol(named(name).untempered, fitting, evaluated)


@pytest.mark.parametrize(
    "lie",
    [
        replace(METHODS["map"], samples="draws"),
        replace(METHODS["mc_dropout"], samples="one"),
        replace(METHODS["mc_dropout"], any_batches=True),
        replace(METHODS["swag"], any_batches=False),
        replace(METHODS["checkpoint_ensemble"], samples="one"),
        replace(METHODS["deep_ensemble"], samples="draws"),  # as many as there are, but not random
    ],
    ids=lambda lie: lie.name,
)
def test_a_spec_that_promises_something_else_is_seen(lie: MethodSpec, fitting: Fitting, evaluated: EncodedRows) -> None:
    with pytest.raises(AssertionError):
        assert_protocol(Method(lie), fitting, evaluated)


class _Stop(Exception):
    """Before anything is trained."""


def trained_first(method: Method, fitting: Fitting, monkeypatch: pytest.MonkeyPatch) -> Needs:
    """What building asks for first, where nothing has been trained yet: the folder it would be trained in says so."""
    folders: list[Path] = []

    def stop(_: Fitting, *arguments: object, **__: object) -> None:
        folders.extend(argument for argument in arguments if isinstance(argument, Path))
        raise _Stop

    monkeypatch.setattr(Fitting, "train_point", stop)
    monkeypatch.setattr(Fitting, "train", stop)
    with suppress(_Stop):
        method.build(fitting, 0)
    if not folders:
        return "nothing"
    return "point" if folders == [fitting.place(POINT, 0)] else "own"


@pytest.mark.parametrize("name", METHODS)
def test_who_starts_from_the_point_estimate(
    name: str, fitting: Fitting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the schedule goes by is what building does: the first network a method asks for is the shared one."""
    method = named(name).untempered
    assert trained_first(method, replace(fitting, folder=tmp_path), monkeypatch) == method.spec.needs


@pytest.mark.parametrize(("name", "lie"), [("laplace", "own"), ("blob", "point"), ("blob", "nothing"), ("map", "own")])
def test_a_spec_that_starts_from_something_else_is_seen(
    name: str, lie: Needs, fitting: Fitting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Method(replace(METHODS[name], needs=lie))
    assert trained_first(method, replace(fitting, folder=tmp_path), monkeypatch) != method.spec.needs


@pytest.mark.parametrize("name", [name for name, spec in METHODS.items() if spec.has_noise])
def test_the_mean_is_the_network_without_noise(name: str, fitting: Fitting, evaluated: EncodedRows) -> None:
    drawn, mean = (method.build(fitting, 0) for method in parse_methods(f"{name},{name}+mean"))
    assert mean.cost == drawn.cost  # trained once
    found = mean.predictor(evaluated.loader(), num_samples=3, seed=1)
    assert found.logits.shape == (1, 12, 2)
    model = drawn.predictor.args[0]  # type: ignore[attr-defined]
    with evaluation_mode(model):
        expected = torch.cat([model.network_logits(batch) for batch in evaluated.loader()])
    torch.testing.assert_close(found.logits[0], expected.double(), check_dtype=False)
    assert not torch.equal(drawn.predictor(evaluated.loader(), num_samples=3, seed=1).logits[0], found.logits[0])


def test_what_differs_in_its_prediction_only_is_fitted_once(fitting: Fitting, evaluated: EncodedRows) -> None:
    (sampled, probit), files = parse_methods("laplace,laplace[link=probit]"), []
    for method in (sampled, probit):
        fitted = method.build(fitting, 0)
        prediction = fitted.predictor(evaluated.loader(), num_samples=3, seed=1)
        assert prediction.logits.shape == ((3, 12, 2) if method == sampled else (1, 12, 2))
        files.append(fitting.place(method.training.folder, 0) / "laplace.safetensors")
    assert files[0] == files[1]
    # What is found is what would be fitted anew.
    point, _ = fitting.point(0)
    anew, found = fit_laplace(point.network, fitting.fit.loader()), load_laplace(point.network, files[0])
    assert found.prior_precision == anew.prior_precision  # the file is from before it was tuned
    for name, block in anew.blocks.items():
        for field in fields(block):  # type: ignore[arg-type]
            assert torch.equal(getattr(found.blocks[name], field.name), getattr(block, field.name))
    tuned = LaplacePredictor(point.network, tune_prior_precision(anew), "probit")
    assert torch.equal(tuned(evaluated.loader(), num_samples=3, seed=1).logits, prediction.logits)


def test_lora_with_options_is_the_same_training_under_them(fitting: Fitting, evaluated: EncodedRows) -> None:
    written = "map,lora[weight_decay=0],lora[weight_decay=50]"
    shared, same, decayed = (method.build(fitting, 0) for method in parse_methods(written))
    predicted = [fitted.predictor(evaluated.loader()).logits for fitted in (shared, same, decayed)]
    assert torch.equal(predicted[0], predicted[1])
    assert not torch.allclose(predicted[0], predicted[2], atol=1e-3)

    def size(fitted: Fitted) -> float:
        """Of the matrices that decay acts on: B started at 0, so the less of them, the more was decayed."""
        named = fitted.predictor.network.named_parameters()  # type: ignore[attr-defined]
        return sum(float(weight.detach().square().sum()) for name, weight in named if "lora_" in name)

    assert size(decayed) < 0.9 * size(same) == 0.9 * size(shared)


@pytest.mark.parametrize(("written", "low", "high"), [("1", 1, 1), ("random", 0, 1), ("rows", 32, 32)])
def test_where_the_concentration_starts(written: str, low: float, high: float, fitting: Fitting) -> None:
    """A training at rate 0 leaves it there."""
    method = named(f"monteclora[init_concentration={written},posterior_learning_rate=1e-12]")
    method.check(fitting)
    guide = method.build(fitting, 0).predictor.args[1]  # type: ignore[attr-defined]
    found = guide.concentration.detach()
    assert len(fitting.fit.data) == 32
    torch.testing.assert_close(found.clamp(low, high), found, rtol=1e-4, atol=1e-4)
    assert (found.std() > 0.1) == (written == "random")


def test_a_schedule_of_one_method_is_that_of_the_study(
    fitting: Fitting, evaluated: EncodedRows, tmp_path: Path
) -> None:
    shared = replace(fitting.study, training=replace(fitting.study.training, scale_schedule="linear"))
    of_all = replace(fitting, study=shared, folder=tmp_path)
    moved, all_moved, constant = (
        named(written).build(where, 0).predictor(evaluated.loader(), num_samples=1, seed=1).logits
        for written, where in (
            ("monteclora[sample_scale=0.1,scale_schedule=linear]", fitting),
            ("monteclora[sample_scale=0.1]", of_all),
            ("monteclora[sample_scale=0.1]", fitting),
        )
    )
    assert torch.equal(moved, all_moved)
    assert not torch.equal(moved, constant)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (
            "init_concentration=some",
            r"init_concentration='some' must be positive .*or 'rows', the number of training rows",
        ),
        ("init_concentration=0", "init_concentration=0 must be positive"),
        ("scale_schedule=steep", "scale_schedule='steep' is none of 'constant', 'linear'"),
    ],
)
def test_options_of_a_posterior_that_cannot_be(written: str, said: str, fitting: Fitting) -> None:
    with pytest.raises(ConfigurationError, match=said):
        named(f"monteclora[{written}]").check(fitting)


def test_untrained_is_the_base_model(fitting: Fitting, evaluated: EncodedRows) -> None:
    (method,) = parse_methods("untrained")
    found = method.build(fitting, 0).predictor(evaluated.loader()).logits
    expected = PointEstimate(fitting.base(0).network)(evaluated.loader()).logits
    assert torch.equal(found, expected)


def test_early_stopping_takes_the_best_checkpoint(fitting: Fitting) -> None:
    (method,) = parse_methods("early_stopping")
    fitted = method.build(fitting, 0)
    point, _ = fitting.point(0)
    states = checkpoint_states(fitting.place(POINT, 0) / "checkpoints", point.network)
    assert len(states) > 2
    nlls = []
    for state in states:
        point.network.load_state_dict(state, strict=False)
        found = PointEstimate(point.network)(fitting.held_out.loader())
        assert found.labels is not None
        nlls.append(negative_log_likelihood(found.mean_probs, found.labels))
    assert len(set(nlls)) == len(states)
    assert fitted.chosen == {"checkpoint": 1 + nlls.index(min(nlls))}
    point.network.load_state_dict(states[nlls.index(min(nlls))], strict=False)
    expected = PointEstimate(point.network)(fitting.held_out.loader()).logits
    assert torch.equal(fitted.predictor(fitting.held_out.loader()).logits, expected)


def test_rows_are_padded_by_the_batch(evaluated: EncodedRows) -> None:
    assert isinstance(evaluated.collate, DataCollatorWithPadding)
    assert sum(len(batch["labels"]) for batch in evaluated.loader()) == len(evaluated.row_ids) == 12
