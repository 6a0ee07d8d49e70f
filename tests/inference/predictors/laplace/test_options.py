"""Laplace over the adapters of a language model that chooses among a row's own options."""

from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from bayes_lora.adapters import unwrap
from bayes_lora.errors import ConfigurationError, LikelihoodError
from bayes_lora.inference import (
    LaplaceOptions,
    LaplacePosterior,
    LaplacePredictor,
    PointEstimate,
    fit_laplace,
    load_laplace,
    save_laplace,
    tune_prior_precision,
)
from bayes_lora.inference.predictors.laplace.linears import NamedLinear, select_linears
from bayes_lora.inference.predictors.laplace.option_logits import Layout
from bayes_lora.inference.predictors.laplace.predictive import LINKS, output_gaussians
from bayes_lora.models import GaussianRegression, LikelihoodNetwork, MultipleChoice
from bayes_lora.models.likelihoods.option_passes import OPTIONS
from tests.choices import Row, choice_batch, questions, slow_log_probs
from tests.inference.predictors.laplace.dense import dense_ggn, relative_error, without_labels
from tests.language import pair_of

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
# LLaMA takes norms in float32.
ROUNDED: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-7}
EACH = pytest.mark.parametrize(("name", "tolerance"), [("gpt2", EXACT), ("llama", ROUNDED)], ids=["gpt2", "llama"])
STRUCTURES = pytest.mark.parametrize("structure", ["kfac_reduce", "kfac_expand", "diagonal"])
SCORING = pytest.mark.parametrize(
    ("letters", "per_token"),
    [(True, False), (False, False), (False, True)],
    ids=["letter", "likelihood", "likelihood_per_token"],
)


def choosing(name: str = "gpt2", *, per_token: bool = False, shares: bool = True) -> LikelihoodNetwork:
    """A random language model with adapters that matter; its options share their question, or are rows of their own."""
    model, _ = pair_of(name, likelihood=MultipleChoice(per_token=per_token))
    network: Any = unwrap(model.network)
    if not shares:
        network.get_base_model().config.model_type = "another"
    return LikelihoodNetwork(network, MultipleChoice(per_token=per_token))


def linears_of(network: LikelihoodNetwork) -> tuple[NamedLinear, ...]:
    return select_linears(network.network, "all")


def dense(network: LikelihoodNetwork, rows: list[Row], *, per_token: bool) -> tuple[Tensor, list[Tensor]]:
    """Scores (row, option) and their Jacobians (row, option, out, in) by autograd, each option in a pass of its own."""
    linears = linears_of(network)
    for linear in linears:
        linear.module.weight.requires_grad_()
    scores = slow_log_probs(network.network, rows, per_token=per_token)
    found = [scores.new_zeros(*scores.shape, *linear.shape) for linear in linears]
    for row, (_, options) in enumerate(rows):
        for option in range(len(options)):
            weights = [linear.module.weight for linear in linears]
            grads = torch.autograd.grad(scores[row, option], weights, retain_graph=True)
            for jacobian, grad in zip(found, grads, strict=True):
                jacobian[row, option] = grad
    return scores.detach(), found


def same_curvature(one: LaplacePosterior, other: LaplacePosterior) -> bool:
    """Of H itself: eigenvectors of one matrix may come out in several ways."""
    eye = {name: torch.eye(shape.shape[0] * shape.shape[1]).double() for name, shape in one.blocks.items()}
    pairs = [(one.blocks[name], other.blocks[name], noise) for name, noise in eye.items()]
    return all(
        torch.allclose(
            first.draw(noise.reshape(-1, *first.shape), 0.1), second.draw(noise.reshape(-1, *first.shape), 0.1), **EXACT
        )
        for first, second, noise in pairs
    )


@EACH
@SCORING
@pytest.mark.parametrize("shares", [True, False], ids=["shared", "apart"])
def test_the_diagonal_and_the_predictive_are_those_of_autograd(
    name: str, tolerance: dict[str, Any], shares: bool, letters: bool, per_token: bool
) -> None:
    """The exact GGN of the softmax over each row's own options, in whatever batches and by whichever passes."""
    network, rows = choosing(name, per_token=per_token, shares=shares), questions(letters=letters)
    scores, jacobians = dense(network, rows, per_token=per_token)
    probs = scores.softmax(-1)
    hessians = probs.diag_embed() - probs.unsqueeze(-1) * probs.unsqueeze(-2)
    batches = [choice_batch(rows[:2], "left"), choice_batch(rows[2:], "right")]
    posterior = fit_laplace(network, batches, LaplaceOptions(structure="diagonal"))
    expected = torch.zeros_like(hessians)
    for block, jacobian in zip(posterior.blocks.values(), jacobians, strict=True):
        exact = dense_ggn(jacobian, hessians).diagonal()
        assert exact.max() > 1e-6
        assert relative_error(block.curvature.flatten(), exact) < tolerance["rtol"]  # type: ignore[attr-defined]
        flat = jacobian.flatten(2)
        expected = expected + flat @ ((exact + 0.1).reciprocal()[:, None] * flat.mT)
    labels = choice_batch(rows)["labels"]
    total = float(scores.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).sum())
    assert posterior.log_likelihood == pytest.approx(total, rel=tolerance["rtol"])
    assert posterior.num_rows == 5
    batch = without_labels(choice_batch(rows))
    mean, (covariance,) = output_gaussians(network, posterior, linears_of(network), batch, [0.1])
    torch.testing.assert_close(mean, scores, **tolerance)
    torch.testing.assert_close(covariance, expected, **tolerance)


@STRUCTURES
def test_options_in_rows_of_their_own_have_the_same_curvature(structure: str) -> None:
    """What the question says to all options is there once, as where they share it: so the factors are the same."""
    options, batch = LaplaceOptions(structure=structure), [choice_batch(questions(), "left")]
    together, apart = (fit_laplace(choosing(shares=shares), batch, options) for shares in (True, False))
    assert same_curvature(together, apart)


def test_questions_that_were_counted_once_for_each_option_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: rows of the network taken as further positions of their example."""
    together = fit_laplace(choosing(), [choice_batch(questions())])
    for name in ("of_inputs", "of_gradients"):
        monkeypatch.setattr(
            Layout, name, lambda own, values: values.reshape(len(values) // own.copies, -1, values.shape[-1])
        )
    assert not same_curvature(together, fit_laplace(choosing(shares=False), [choice_batch(questions())]))


class Letters(nn.Module):
    """The classifier that says of every question the logits of three letters."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, **batch: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.network(**batch).logits[:, -1, 10:13])


@STRUCTURES
def test_letters_are_classes(structure: str) -> None:
    """That log-probabilities differ from logits by a number that all letters share matters nowhere."""
    network = choosing()
    rows: list[Row] = [(question[:3], [[10], [11], [12]]) for question, _ in questions()]
    batch = choice_batch(rows)
    plain = {name: value for name, value in batch.items() if name != OPTIONS}
    options = LaplaceOptions(structure=structure)
    ours, classes = fit_laplace(network, [batch], options), fit_laplace(Letters(network.network), [plain], options)
    assert same_curvature(ours, replace(classes, blocks=dict(zip(ours.blocks, classes.blocks.values(), strict=True))))
    assert ours.log_likelihood == pytest.approx(classes.log_likelihood, rel=1e-12)
    for link in ("joint", "probit"):  # of the third, draws are through another root of the covariance
        of_options = LaplacePredictor(network, tune_prior_precision(ours), link)([batch], num_samples=4)
        of_classes = LaplacePredictor(Letters(network.network), tune_prior_precision(classes), link)(
            [plain], num_samples=4
        )
        torch.testing.assert_close(of_options.probs, of_classes.probs, rtol=1e-5, atol=1e-7)


@SCORING
@pytest.mark.parametrize("link", LINKS)
def test_predictions(link: str, letters: bool, per_token: bool) -> None:
    """Options that a row lacks are impossible; batches do not matter; without variance it is the network itself."""
    network, rows = choosing(per_token=per_token), questions(letters=letters)
    whole, halves = [choice_batch(rows)], [choice_batch(rows[:1]), choice_batch(rows[1:], "left")]
    posterior = fit_laplace(network, whole).with_prior_precision(0.1)
    predictor = LaplacePredictor(network, posterior, link)
    found, again = (predictor(loader, num_samples=6, seed=3) for loader in (whole, halves))
    torch.testing.assert_close(found.probs, again.probs, rtol=1e-6, atol=1e-9)
    lacking = (whole[0][OPTIONS] == -100).all(-1)
    assert (found.mean_probs[lacking] == 0).all()
    assert (found.mean_probs[~lacking] > 0).all()
    torch.testing.assert_close(found.mean_probs.sum(-1), torch.ones(5, dtype=torch.double))
    point = PointEstimate(network)(whole)
    assert (found.mean_probs - point.mean_probs).abs().max() > 1e-4
    sure = LaplacePredictor(network, posterior.with_prior_precision(1e14), link)(whole, num_samples=2)
    torch.testing.assert_close(sure.mean_probs, point.mean_probs, rtol=1e-5, atol=1e-7)
    metrics = network.likelihood.all_metrics(found, found)
    assert all(value == value for value in metrics.values())


def test_draws_have_the_distribution_of_the_linearized_network() -> None:
    """Means of probabilities by logits and by parameters are those of one Gaussian, to the error of 2,000 draws."""
    network, rows = choosing(), questions()
    posterior = fit_laplace(network, [choice_batch(rows)]).with_prior_precision(0.05)
    found = [
        LaplacePredictor(network, posterior, link, "independent")([choice_batch(rows)], num_samples=2000, seed=seed)
        for seed, link in enumerate(("monte_carlo", "joint"))
    ]
    errors = [prediction.probs.std(0) / 2000**0.5 for prediction in found]
    difference = found[0].mean_probs - found[1].mean_probs
    exists = errors[0] > 0
    z = difference[exists] / (errors[0].square() + errors[1].square()).sqrt()[exists]
    assert z.abs().max() < 4.5  # of 14, which fails once in 10,000


def test_it_is_kept_in_a_file(tmp_path: Any) -> None:
    network, batch = choosing(), choice_batch(questions())
    posterior = tune_prior_precision(fit_laplace(network, [batch], LaplaceOptions(max_rank=8)))
    again = load_laplace(network, save_laplace(posterior, tmp_path / "laplace.safetensors"))
    for name, block in posterior.blocks.items():
        for field in fields(block):  # type: ignore[arg-type]
            assert torch.equal(getattr(again.blocks[name], field.name), getattr(block, field.name))
    assert again.prior_precision == posterior.prior_precision


def test_refused() -> None:
    network, batch = choosing(), choice_batch(questions())
    for parameters in ("last_layer", "all_and_head"):
        with pytest.raises(ConfigurationError, match=f"'{parameters}' takes the last layer, and that of a language"):
            fit_laplace(network, [batch], LaplaceOptions(parameters))
    with pytest.raises(LikelihoodError, match="over a row's own options, and a GaussianRegression has another"):
        fit_laplace(LikelihoodNetwork(network.network, GaussianRegression(1.0)), [batch])
    with pytest.raises(LikelihoodError, match="row 0 of the batch has the label 2, an option that it does not have"):
        fit_laplace(network, [{**batch, "labels": torch.full((5,), 2)}])
    assert isinstance(network.network, peft.PeftModel)
