"""What the likelihoods say, against closed forms and against the losses of transformers, and how noise is learned."""

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from bayes_lora.adapters import unwrap
from bayes_lora.errors import ConfigurationError, LikelihoodError
from bayes_lora.inference import ItemizedELBO, predict
from bayes_lora.models import GaussianRegression, MultiLabel, Ordinal, StudentTRegression
from tests.heads import build, labels_of, rows_of

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


def batch_of(name: str, count: int = 6) -> dict[str, Tensor]:
    rows = rows_of(name, count)
    return {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "attention_mask")} | {
        "labels": labels_of(name, count)
    }


# How transformers names the problem, and what its loss, a mean, is multiplied by and added to for a density: it leaves
# out the size of the noise, and takes the mean over labels as well as over rows.
OF_TRANSFORMERS: dict[str, tuple[str, float, float]] = {
    "classification": ("single_label_classification", 1.0, 0.0),
    "known noise": ("regression", 2 / (2 * 0.3**2), 2 * math.log(0.3 * math.sqrt(2 * math.pi))),
    "multi-label": ("multi_label_classification", 3.0, 0.0),
    "tokens": ("tokens", 1.0, 0.0),
}


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_without_noise_it_is_the_loss_of_transformers(name: str) -> None:
    problem, factor, constant = OF_TRANSFORMERS[name]
    batch = batch_of(name)
    model, guide = build(name, objective="paper", num_train_examples=None, sample_scale=0.0, cooperative_weight=0.0)
    elbo = ItemizedELBO()
    elbo.differentiable_loss(model, guide, **batch)
    network: Any = model.network
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        logits = model(**{key: value for key, value in batch.items() if key != "labels"})
        density = model.likelihood.log_density(logits, batch["labels"]).sum()
        nll = -density / model.likelihood.num_observations(batch["labels"])
    own = torch.autograd.grad(nll, parameters, allow_unused=True)
    unwrap(network)
    if problem != "tokens":
        network.config.problem_type = problem
    labels = batch["labels"].double() if problem == "multi_label_classification" else batch["labels"]
    loss = network(**{**batch, "labels": labels}).loss
    theirs = torch.autograd.grad(loss, parameters, allow_unused=True)
    torch.testing.assert_close(elbo.terms["nll"], factor * loss.detach() + constant, **EXACT)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in theirs)
    for one, other in zip(own, theirs, strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one, factor * other, rtol=1e-9, atol=1e-10)


def test_gaussian_and_t_densities() -> None:
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    labels = labels_of("known noise", 5)
    scales = torch.tensor([0.5, 1.7], dtype=torch.double)
    for likelihood, law in (
        (GaussianRegression(learned=True, num_outputs=2), stats.norm()),
        (StudentTRegression(1.0, 3.5, learned=True, num_outputs=2), stats.t(3.5)),
    ):
        likelihood.double().log_scale.data.copy_(scales.log())
        expected = (torch.from_numpy(law.logpdf(((labels - logits) / scales).numpy())) - scales.log()).sum(-1)
        torch.testing.assert_close(likelihood.log_density(logits, labels), expected, **EXACT)


def test_the_gradient_of_the_noise() -> None:
    """-d/d ln sigma log N = 1 - (y - f)^2 / sigma^2."""
    logits = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    labels = labels_of("learned noise", 5)
    likelihood = GaussianRegression(0.8, learned=True, num_outputs=2).double()
    (-likelihood.log_density(logits, labels).sum()).backward()
    expected = (1 - ((labels - logits) / likelihood.noise_scale.detach()).square()).sum(0)
    torch.testing.assert_close(likelihood.log_scale.grad, expected, **EXACT)
    assert not list(GaussianRegression(0.8).parameters())


def _naive_log_probs(likelihood: Ordinal, logits: Tensor) -> Tensor:
    below = torch.cat(
        [
            torch.zeros_like(logits),
            torch.sigmoid(likelihood.thresholds - logits),
            torch.ones_like(logits),
        ],
        dim=-1,
    )
    return below.diff(dim=-1).log()


def test_ordinal_probabilities_are_differences_of_sigmoids() -> None:
    likelihood = Ordinal(5).double()
    logits = torch.linspace(-4, 4, 9, dtype=torch.double).unsqueeze(-1)
    with torch.no_grad():
        likelihood.log_steps.add_(torch.tensor([0.3, -0.5, 0.1]))
    torch.testing.assert_close(likelihood.log_probs(logits), _naive_log_probs(likelihood, logits), **EXACT)
    parameters = [likelihood.first, likelihood.log_steps]
    own, naive = (
        torch.autograd.grad(of[:, 2].sum(), parameters)
        for of in (likelihood.log_probs(logits), _naive_log_probs(likelihood, logits))
    )
    for one, other in zip(own, naive, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    uniform = Ordinal(5).double().log_probs(torch.zeros(1, 1, dtype=torch.double))
    torch.testing.assert_close(uniform.exp(), torch.full((1, 5), 0.2, dtype=torch.double), rtol=1e-6, atol=1e-6)


def test_ordinal_probabilities_do_not_cancel_far_out() -> None:
    """Where the naive difference of sigmoids is 0, or its gradient NaN."""
    likelihood = Ordinal(4)
    logits = torch.tensor([[-200.0], [-40.0], [40.0], [200.0]], requires_grad=True)
    found = likelihood.log_probs(logits)
    assert found.isfinite().all()
    assert _naive_log_probs(likelihood, logits).isinf().any()
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(4))
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", ["learned noise", "Student's t", "ordinal", "one output"])
def test_plain_pyro_learns_the_likelihood_as_well(name: str) -> None:
    import pyro
    from pyro.infer import SVI, TraceMeanField_ELBO

    model, guide = build(name, num_train_examples=24)
    before = {key: value.detach().clone() for key, value in model.likelihood.named_parameters()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), TraceMeanField_ELBO())
    for _ in range(2):
        svi.step(**batch_of(name))
    assert all(not torch.equal(value, before[key]) for key, value in model.likelihood.named_parameters())


@pytest.mark.parametrize("name", ["learned noise", "ordinal"])
def test_half_precision_leaves_the_likelihood_whole(name: str) -> None:
    model, _ = build(name)
    model.float().bfloat16()
    assert {parameter.dtype for parameter in model.likelihood.parameters()} == {torch.float32}
    assert model.network.get_submodule("base_model.model.bert").dtype == torch.bfloat16


def test_draws_are_predicted() -> None:
    count = 6
    for name, shape in (("ordinal", (3, count, 4)), ("multi-label", (3, count, 3)), ("one output", (3, count, 1))):
        prediction = predict(*build(name), [batch_of(name)], num_samples=3)
        assert prediction.logits.shape == shape, name
    assert predict(*build("ordinal"), [batch_of("ordinal")], num_samples="auto").num_draws is not None


@pytest.mark.parametrize(
    ("build_it", "error", "message"),
    [
        (lambda: GaussianRegression(0), ConfigurationError, "noise_scale=0"),
        (lambda: GaussianRegression(1.0, learned=True, num_outputs=0), ConfigurationError, "num_outputs=0"),
        (lambda: StudentTRegression(1.0, 2.0), ConfigurationError, r"degrees_of_freedom=2\.0 leaves the noise"),
        (lambda: Ordinal(1), ConfigurationError, "num_classes=1 must be an integer of at least 2"),
    ],
)
def test_settings_out_of_range(build_it: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_it()


@pytest.mark.parametrize(
    ("likelihood", "shape", "labels", "message"),
    [
        (MultiLabel(), (2, 3), torch.tensor([0, 1]), r"labels have shape \(2,\).*multi-hot"),
        (MultiLabel(), (1, 3), torch.tensor([[0, 1, 2]]), "labels must be 0 or 1"),
        (MultiLabel(), (1, 3), torch.tensor([[0, 0.5, 1]]), "labels must be 0 or 1"),
        (Ordinal(3), (2, 3), torch.tensor([0, 1]), "Load it with num_labels=1"),
        (Ordinal(3), (2, 1), torch.tensor([0, 3]), r"Build Ordinal\(num_classes=4\)"),
        (Ordinal(3), (2, 1), torch.tensor([0.0, 1.0]), r"grades are integers"),
        (Ordinal(3), (2, 1), torch.tensor([[0, 1], [1, 0]]), "one grade for each row"),
        (GaussianRegression(learned=True, num_outputs=2), (2, 3), torch.zeros(2, 3), r"Build the .*num_outputs=3"),
    ],
)
def test_labels_that_do_not_fit(likelihood: Any, shape: tuple[int, int], labels: Tensor, message: str) -> None:
    with pytest.raises(LikelihoodError, match=message):
        likelihood.checked_labels(torch.zeros(shape), labels)


@pytest.mark.parametrize(
    "likelihood",
    [GaussianRegression(learned=True, num_outputs=2), StudentTRegression(learned=True, num_outputs=2)],
    ids=["Gaussian", "t"],
)
def test_regression_starts_at_the_mean_of_the_labels(likelihood: Any) -> None:
    """Whatever their units: the density of labels in other units is that of the first, by the unit's Jacobian."""
    logits = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    labels = labels_of("learned noise", 50)
    likelihood.double().start_at(labels)
    torch.testing.assert_close(likelihood.locations(torch.zeros(1, 2).double())[0], labels.mean(0))
    torch.testing.assert_close(likelihood.noise_scale.detach(), labels.std(0, correction=0))
    density = likelihood.log_density(logits, labels).detach()
    summary = likelihood.summary(likelihood.prediction(logits.unsqueeze(0), labels))
    expected = likelihood.metrics(likelihood.prediction(logits.unsqueeze(0), labels))
    assert likelihood.metrics(likelihood.of_summary(summary, labels)) == pytest.approx(expected)
    likelihood.start_at(1000 * labels - 7e5)
    torch.testing.assert_close(
        likelihood.log_density(logits, 1000 * labels - 7e5).detach(), density - 2 * math.log(1000), rtol=1e-7, atol=1e-7
    )
    likelihood.start_at(torch.ones(3, 2).double())  # which do not vary
    assert likelihood.noise_scale.tolist() == [1.0, 1.0]
    known = GaussianRegression(0.3)
    known.start_at(labels)
    assert known.locations(logits) is logits


def test_grades_start_as_often_as_they_occur() -> None:
    likelihood = Ordinal(4).double()
    likelihood.start_at(torch.tensor([0] * 50 + [1] * 30 + [3] * 20))
    found = likelihood.log_probs(torch.zeros(1, 1).double()).exp()[0]
    torch.testing.assert_close(found, torch.tensor([50.5, 30.5, 0.5, 20.5], dtype=torch.double) / 102)
