"""Stacking: the mixture of methods that would have predicted the rows best."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]


def stacking_weights(log_densities: Array) -> Array:
    """Weights of methods, 0 or more and of sum 1, under which their mixture predicts the rows best.

        argmax_w sum_i ln sum_k w_k p_ik

    It is concave, so every maximum is the maximum. Methods that predict alike share what is theirs in some way.

    Args:
        log_densities: (example, method) ln p_ik of rows that method k has not seen, such as `loo` estimates them.

    Returns:
        (method,).

    Source: Yao et al. (2018), arXiv 1704.02030, section 3.1.

    Example:
        >>> stacking_weights(np.log([[0.6, 0.2], [0.2, 0.6]])).round(3)
        array([0.5, 0.5])
    """
    num_methods = log_densities.shape[1]
    # Each row by its best method: the maximum stays where it is, and nothing underflows.
    densities = np.exp(log_densities - log_densities.max(1, keepdims=True))

    def loss(weights: Array) -> tuple[float, Array]:
        mixed = densities @ weights
        return -float(np.log(mixed).mean()), -(densities / mixed[:, None]).mean(0)

    found = minimize(
        loss,
        np.full(num_methods, 1 / num_methods),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * num_methods,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    weights = np.clip(found.x, 0, 1)
    return weights / weights.sum()  # type: ignore[no-any-return]
