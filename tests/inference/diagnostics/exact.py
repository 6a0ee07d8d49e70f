"""Posteriors known without variational inference, as guides and as draws."""

import math

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from bayes_lora.experiments.ground_truth.problems import Problem
from bayes_lora.inference.guides.adapter_guide import AdapterGuide
from bayes_lora.inference.guides.autoguides import JointDraw
from bayes_lora.models import BayesianLoRA


class GaussianGuide(AdapterGuide):
    """vec(A) ~ N(mean, L L') over the one adapter of a problem; LoRA-A's weight is put at the mean.

    Args:
        mean: (rank, in_features).
        scale_tril: L, of A's rows one after another.
    """

    def __init__(self, model: BayesianLoRA, mean: Tensor, scale_tril: Tensor) -> None:
        super().__init__(model)
        self.mean, self.distribution = mean, MultivariateNormal(mean.flatten(), scale_tril=scale_tril)
        with torch.no_grad():
            model.sites.adapters[0].linear.weight.copy_(mean)

    def columns(self) -> dict[str, JointDraw]:
        draw = self.distribution.sample()
        columns = draw.unflatten(0, self.mean.shape).mT.unsqueeze(0)  # (adapter, column, rank)
        share = (self.distribution.log_prob(draw) / columns[..., 0].numel()).expand(columns.shape[:-1])
        return {self.model.sites.column_site(self.model.sites.groups[0]): JointDraw(columns, share, event_dim=1)}


def resampled_posterior(
    problem: Problem, num_samples: int, generator: torch.Generator, num_proposals: int = 8000
) -> Tensor:
    """Draws of A from the posterior of a classification, (sample, rank, in_features), by importance resampling.

    Half of the proposals are a Student t around the mode, half are the prior, so no mode is left out (Hesterberg
    1995). With too few effective proposals the draws would be no posterior, and this fails.
    """
    size, df = problem.true_a.numel(), 5.0

    def log_joint(a: Tensor) -> Tensor:
        return problem.log_joint(a.unflatten(-1, problem.shape))

    mode = torch.zeros(size, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([mode], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -log_joint(mode)
        value.backward()
        return value

    optimizer.step(loss)
    hessian = torch.autograd.functional.hessian(lambda a: -log_joint(a), mode.detach())
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian))
    half = num_proposals // 2
    normal = torch.randn(num_proposals, size, generator=generator, dtype=torch.double)
    chi = torch.randn(half, int(df), generator=generator, dtype=torch.double).square().sum(-1)
    local = mode.detach() + (normal[:half] / (chi / df).sqrt()[:, None]) @ factor.mT
    proposals = torch.cat([local, problem.prior_scale * normal[half:]])
    whitened = torch.linalg.solve_triangular(factor, (proposals - mode.detach()).mT, upper=False)
    log_t = (
        math.lgamma((df + size) / 2)
        - math.lgamma(df / 2)
        - size / 2 * math.log(df * math.pi)
        - factor.diagonal().log().sum()
        - (df + size) / 2 * torch.log1p(whitened.square().sum(0) / df)
    )
    log_prior = Normal(0, problem.prior_scale).log_prob(proposals).sum(-1)
    log_weights = log_joint(proposals) - torch.logaddexp(log_t, log_prior)
    weights = log_weights.softmax(0)
    assert 1 / weights.square().sum() > 50
    chosen = torch.multinomial(weights, num_samples, replacement=True, generator=generator)
    return proposals[chosen].reshape(num_samples, *problem.shape)
