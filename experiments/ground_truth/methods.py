"""The methods that are compared with the truth. Each gives draws of A."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal
from torch import Tensor, nn

from bayes_lora.experiments.ground_truth.mode import laplace_approximation, posterior_mode
from bayes_lora.experiments.ground_truth.nuts import sample_posterior
from bayes_lora.experiments.ground_truth.problems import GaussianPosterior, Problem
from bayes_lora.inference import ItemizedELBO, LaplaceOptions, MeanFieldGuide, MonteCLoRAGuide, autoguide, fit_laplace
from bayes_lora.models import BayesianLoRA
from bayes_lora.randomness import seeded, stream

NUM_COMPONENTS = (1, 2, 4, 8, 16)
_LEARNING_RATE = 0.05
_DROPOUT = 0.1
_LOW_RANK = 3
_START_SCALE = 0.1  # of the normals that start with one


@dataclass(frozen=True)
class Effort:
    """How much is spent on one method and problem.

    Attributes:
        num_steps: optimizer steps of a variational fit, on all rows.
        num_draws: draws of A that a method is judged by.
        num_mcmc: draws of each of the four chains.
    """

    num_steps: int = 1000
    num_draws: int = 2000
    num_mcmc: int = 1000


@dataclass(frozen=True)
class Contestant:
    """A way to approximate the posterior over A.

    Attributes:
        name: in results and tables.
        draw: gives A (draw, rank, in_features) for a problem, an effort and a seed.
        regression: whether it can do a Gaussian likelihood.
    """

    name: str
    draw: Callable[[Problem, Effort, int], Tensor]
    regression: bool = True


def all_contestants() -> tuple[Contestant, ...]:
    """Every method of the study, the two references first.

    "nuts_again" is NUTS under another seed: what the measures say of the truth itself. "map" is the mode alone.
    MonteCLoRA of objective "elbo" starts with the prior's spread, ``sample_scale = prior_scale``; of "paper" it has the
    library's defaults, and "paper_dense_N4_wide" the prior's spread.
    """
    found = [
        Contestant("nuts_again", _nuts),
        Contestant("map", _map),
        Contestant("laplace", _laplace),
        Contestant("laplace_kfac", partial(_library_laplace, "kfac_reduce"), regression=False),
        Contestant("laplace_diagonal", partial(_library_laplace, "diagonal"), regression=False),
        Contestant("mean_field", _mean_field),
        Contestant("low_rank_normal", _low_rank_normal),
        Contestant("mc_dropout", _mc_dropout),
    ]
    found += [
        Contestant(f"{objective}_{mixture}_N{n}", partial(_monteclora, objective, mixture, n))
        for objective, mixture, n in product(("elbo", "paper"), ("dense", "sparse"), NUM_COMPONENTS)
    ]
    found.append(Contestant("paper_dense_N4_wide", partial(_monteclora, "paper", "dense", 4, wide=True)))
    return tuple(found)


def fit_guide(model: BayesianLoRA, guide: nn.Module, problem: Problem, num_steps: int) -> None:
    """Minimize the objective on all rows at once: Adam, its learning rate falling to 0 by a cosine.

    Run it under `seeded`. `bayes_lora.inference.fit` is for transformers and mini-batches; on ten unknowns its
    bookkeeping would take most of the time.
    """
    learned = [p for module in (model, guide) for p in module.parameters() if p.requires_grad]
    loss_fn = ItemizedELBO()(model, guide)
    _minimize(lambda: loss_fn(**problem.batch), learned, num_steps)
    model.clear_perturbation()


@torch.no_grad()
def draw_adapter(model: BayesianLoRA, guide: Callable[[], object], num_draws: int, seed: int) -> Tensor:
    """Draws of A under a guide of a model with one adapter, (draw, rank, in_features); draw s depends on (seed, s)."""
    (group,) = model.sites.groups
    mean = model.sites.means(group)[0].mT
    found = []
    for draw in range(num_draws):
        with seeded(stream(seed, draw), mean.device):
            found.append(mean + model.perturbations(guide())[0][0])  # type: ignore[arg-type]
    return torch.stack(found)


def fit_monteclora(
    problem: Problem, num_steps: int, seed: int, **config: object
) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
    """A fitted MonteCLoRA posterior; `config` as `Problem.build` takes it.

    The KL of the noise is the one averaged over Sigma: the same objective with less noise in its gradient.
    """
    model = problem.build(normal_kl="expected", **config)
    guide = MonteCLoRAGuide(model)
    with seeded(seed, problem.inputs.device):
        fit_guide(model, guide, problem, num_steps)
    return model, guide


def _monteclora(
    objective: str,
    mixture: str,
    num_components: int,
    problem: Problem,
    effort: Effort,
    seed: int,
    *,
    wide: bool = False,
) -> Tensor:
    config = {"objective": objective, "mixture": mixture, "num_components": num_components}
    if wide or objective == "elbo":
        config["sample_scale"] = problem.prior_scale
    model, guide = fit_monteclora(problem, effort.num_steps, stream(seed, 0), **config)
    return draw_adapter(model, guide, effort.num_draws, stream(seed, 1))


def _nuts(problem: Problem, effort: Effort, seed: int) -> Tensor:
    return sample_posterior(problem, num_samples=effort.num_mcmc, seed=seed).pooled


def _map(problem: Problem, effort: Effort, seed: int) -> Tensor:
    return posterior_mode(problem)[None]


def _laplace(problem: Problem, effort: Effort, seed: int) -> Tensor:
    return laplace_approximation(problem).sample(effort.num_draws, torch.Generator().manual_seed(seed))


def _library_laplace(structure: str, problem: Problem, effort: Effort, seed: int) -> Tensor:
    """Laplace-LoRA's block of LoRA-A, at the mode; the block of LoRA-B, which is known here, is left out."""
    mode = posterior_mode(problem)
    network = problem.build_network()
    layer = network.base_model.model.hidden
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(mode)
    posterior = fit_laplace(network, [problem.batch], LaplaceOptions(structure=structure))
    block = posterior.blocks["hidden.lora_A.default"]
    # J P^-1 J' with J the identity is P^-1 itself, by rows of A.
    identity = torch.eye(mode.numel(), dtype=mode.dtype).unflatten(1, mode.shape)[None]
    covariance = block.output_covariance(identity, problem.prior_scale**-2)[0]
    approximation = GaussianPosterior(mode, covariance)
    return approximation.sample(effort.num_draws, torch.Generator().manual_seed(seed))


def _mean_field(problem: Problem, effort: Effort, seed: int) -> Tensor:
    model = problem.build(sample_scale=_START_SCALE)
    guide = MeanFieldGuide(model)
    with seeded(stream(seed, 0), problem.inputs.device):
        fit_guide(model, guide, problem, effort.num_steps)
    return draw_adapter(model, guide, effort.num_draws, stream(seed, 1))


def _low_rank_normal(problem: Problem, effort: Effort, seed: int) -> Tensor:
    model = problem.build()
    with seeded(stream(seed, 0), problem.inputs.device):
        guide = autoguide(model, AutoLowRankMultivariateNormal, init_scale=_START_SCALE, rank=_LOW_RANK)
        fit_guide(model, guide, problem, effort.num_steps)
    return draw_adapter(model, guide, effort.num_draws, stream(seed, 1))


def dropout_draws(a: Tensor, probability: float, num_draws: int) -> Tensor:
    """LoRA's dropout as draws of A: ``A diag(m) / (1 - p)``, ``m_i ~ Bernoulli(1 - p)``, (draw, rank, in_features).

    `MCDropout` draws a mask for every row: the output of one row is distributed as under such a draw of A. Rows are
    independent there, where a posterior over A correlates them. The variance of an entry is ``A_ji^2 p / (1 - p)``: it
    is set by p and by the entry itself, not by the data, and does not fall as rows are added.

    Source: Gal and Ghahramani 2016, Dropout as a Bayesian Approximation, section 3.
    """
    masks = torch.rand(num_draws, 1, a.shape[1], dtype=a.dtype) >= probability
    return a * masks / (1 - probability)


def _mc_dropout(problem: Problem, effort: Effort, seed: int) -> Tensor:
    """Trained with LoRA's dropout, and the prior as weight decay."""
    network = problem.build_network(dropout=_DROPOUT).train()
    weight = network.base_model.model.hidden.lora_A["default"].weight
    num_rows = len(problem.inputs)

    def loss() -> Tensor:
        penalty = (weight / problem.prior_scale).square().sum() / 2
        return (penalty - problem.label_log_prob(network(inputs=problem.inputs).logits)) / num_rows  # type: ignore[no-any-return]

    with seeded(seed, weight.device), torch.enable_grad():
        _minimize(loss, [weight], effort.num_steps)
        return dropout_draws(weight.detach(), _DROPOUT, effort.num_draws)


def _minimize(loss: Callable[[], Tensor], parameters: list[nn.Parameter], num_steps: int) -> None:
    optimizer = torch.optim.Adam(parameters, lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
