"""The posterior over A by NUTS: the truth that the other methods are compared with."""

from dataclasses import dataclass

import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor

from bayes_lora.checks import require_count
from bayes_lora.errors import NotConvergedError
from bayes_lora.experiments.ground_truth.mode import laplace_approximation
from bayes_lora.experiments.ground_truth.problems import Problem
from bayes_lora.inference.diagnostics.arviz_bridge import ess, rhat
from bayes_lora.randomness import seeded, stream

MAX_RHAT = 1.01
MIN_ESS_PER_CHAIN = 100


@dataclass(frozen=True, eq=False)
class Chains:
    """Draws of A by several Markov chains, and what says whether they can be trusted.

    Attributes:
        draws: (chain, draw, rank, in_features).
        rhat: rank-normalized split R-hat of each entry of A, (rank, in_features).
        ess: effective draws of each entry of A, the smaller of bulk and tail, (rank, in_features).
    """

    draws: Tensor
    rhat: Tensor
    ess: Tensor

    @classmethod
    def of(cls, draws: Tensor) -> "Chains":
        """With the diagnostics of these draws (Vehtari et al. 2021, arXiv 1903.08008)."""
        values = draws.numpy()
        bulk, tail = (torch.from_numpy(ess(values, method)) for method in ("bulk", "tail"))
        return cls(draws, torch.from_numpy(rhat(values)), torch.minimum(bulk, tail))

    @property
    def pooled(self) -> Tensor:
        """All draws, (chain * draw, rank, in_features)."""
        return self.draws.flatten(0, 1)

    def require_converged(self) -> None:
        """Raise unless every entry of A has R-hat below 1.01 and 100 effective draws a chain.

        Raises:
            NotConvergedError: names the worst entry.
        """
        largest, fewest = float(self.rhat.max()), float(self.ess.min())
        needed = MIN_ESS_PER_CHAIN * len(self.draws)
        agree = largest < MAX_RHAT  # NaN does not
        if not (agree and fewest >= needed):
            worst = int(self.ess.argmin() if agree else self.rhat.argmax())
            row, column = divmod(worst, self.rhat.shape[1])
            raise NotConvergedError(
                f"{len(self.draws)} chains of {self.draws.shape[1]} draws have not converged at A[{row}, {column}]: "
                f"largest R-hat {largest:.4f} (needed: below {MAX_RHAT}), fewest effective draws {fewest:.0f} (needed: "
                f"{needed}). Give a larger num_samples or num_warmup."
            )


def sample_posterior(
    problem: Problem, *, num_samples: int = 1000, num_warmup: int = 200, num_chains: int = 4, seed: int = 0
) -> Chains:
    """Draws of A from p(A | y) by the No-U-Turn sampler, checked.

    Only A is unknown: under objective "elbo" the prior of A depends on neither pi nor Sigma, so the posterior over A
    is the same with them or without. Chains start at draws from the prior. The sampler moves in
    ``z = C^-1 vec(A - mode)``, ``C C'`` the covariance of the Laplace approximation, where a posterior near that is
    near N(0, I); a linear map changes the density by a constant, so what is sampled stays exact.

    Args:
        problem: regression or classification.
        num_samples: draws a chain, after `num_warmup` steps that adapt the step size.
        num_chains: at least 2, without which chains cannot be compared.
        seed: of starts and moves; chain c depends on (seed, c) only.

    Raises:
        NotConvergedError: R-hat or effective draws are not what `Chains.require_converged` asks for.

    Source: Hoffman and Gelman 2014, The No-U-Turn Sampler, as `pyro.infer.NUTS`.

    Example:
        >>> chains = sample_posterior(regression_problem(0))  # doctest: +SKIP
        >>> chains.pooled.mean(0) - exact_posterior(regression_problem(0)).mean  # doctest: +SKIP
    """
    require_count("num_chains", num_chains - 1)
    draws = torch.stack(
        [run_chain(problem, num_samples, num_warmup, stream(seed, chain)) for chain in range(num_chains)]
    )
    chains = Chains.of(draws)
    chains.require_converged()
    return chains


def run_chain(problem: Problem, num_samples: int, num_warmup: int, seed: int) -> Tensor:
    """One chain of `sample_posterior`, not checked: (draw, rank, in_features)."""
    centre = laplace_approximation(problem)

    def place(z: Tensor) -> Tensor:
        return centre.mean + (z @ centre.scale_tril.mT).unflatten(-1, problem.shape)  # type: ignore[no-any-return]

    with seeded(seed, problem.inputs.device):
        start = problem.prior_scale * torch.randn(problem.shape, dtype=problem.inputs.dtype) - centre.mean
        z = torch.linalg.solve_triangular(centre.scale_tril, start.flatten()[:, None], upper=False).squeeze(1)
        kernel = NUTS(potential_fn=lambda values: -problem.log_joint(place(values["z"])), adapt_mass_matrix=False)
        mcmc = MCMC(kernel, num_samples, num_warmup, initial_params={"z": z}, disable_progbar=True)
        mcmc.run()
        return place(mcmc.get_samples()["z"])
