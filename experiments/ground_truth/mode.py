"""The mode of a posterior over A, and the curvature there."""

from collections.abc import Callable

import torch
from torch import Tensor

from bayes_lora.errors import NonFiniteLossError
from bayes_lora.experiments.ground_truth.problems import GaussianPosterior, Problem

_MAX_STEPS = 500
_GRADIENT_TOLERANCE = 1e-8  # of ln p(y, A), in nats per unit of A; its curvature is of order 1 or more


def posterior_mode(problem: Problem) -> Tensor:
    """argmax_A ln p(y, A), the MAP estimate (rank, in_features), by L-BFGS from A = 0.

    Raises:
        NonFiniteLossError: the search ended where the gradient is not zero.
    """
    a = torch.zeros(problem.shape, dtype=problem.inputs.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [a], max_iter=_MAX_STEPS, tolerance_grad=_GRADIENT_TOLERANCE, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -problem.log_joint(a)
        loss.backward()
        return loss

    optimizer.step(closure)
    (gradient,) = torch.autograd.grad(problem.log_joint(a), a)
    if not gradient.abs().max() < 1e3 * _GRADIENT_TOLERANCE:
        raise NonFiniteLossError(
            f"the search for the posterior's mode ended with a gradient of {float(gradient.abs().max()):.2g} nats. "
            "Look for NaN or very large values in the problem's inputs and labels."
        )
    return a.detach()


def laplace_approximation(problem: Problem) -> GaussianPosterior:
    """N(mode, H^-1) with H the whole Hessian of -ln p(y, A) at the mode (MacKay 1992): no block, no Gauss-Newton.

    Of a regression it is the posterior itself.
    """
    mode = posterior_mode(problem)
    covariance = torch.linalg.inv(hessians(lambda a: -problem.log_joint(a), mode))
    return GaussianPosterior(mode, (covariance + covariance.mT) / 2)


def hessians(function: Callable[[Tensor], Tensor], a: Tensor) -> Tensor:
    """The Hessian of a function with respect to the rows of A, one after another, at many A at once.

    Args:
        function: takes A (..., rank, in_features) and gives (...,), each number from its own A.
        a: (..., rank, in_features).

    Returns:
        (..., rank * in_features, rank * in_features).
    """
    flat = a.detach().flatten(-2).requires_grad_()
    (gradient,) = torch.autograd.grad(function(flat.unflatten(-1, a.shape[-2:])).sum(), flat, create_graph=True)
    rows = [torch.autograd.grad(part.sum(), flat, retain_graph=True)[0] for part in gradient.unbind(-1)]
    return torch.stack(rows, dim=-2)
