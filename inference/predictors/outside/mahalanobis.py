"""The Mahalanobis distance to the nearest class, of what the classification head reads."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from torch import Tensor

from bayes_lora.checks import require_choice
from bayes_lora.inference.predictors.outside.hidden_states import (
    hidden_states,
    labelled_states,
    require_classes,
)
from bayes_lora.inference.predictors.predictor import NetworkPredictor
from bayes_lora.metrics.prediction import Prediction

_ESTIMATORS = {"ledoit_wolf": LedoitWolf, "empirical": EmpiricalCovariance}


@dataclass(frozen=True, eq=False)
class MahalanobisDistance:
    """Predicts as a network does, and tells foreign rows by how far their hidden states h are from every class:

        M(x) = min_c (h - mu_c)' P (h - mu_c)

    mu_c is the mean of the training rows of class c, P the inverse of the covariance that all classes share, both of
    the inputs of the classification head (`hidden_states`).

    Cost: that of the predictor, and in `fit` one pass over the training rows.

    Attributes:
        predictor: of classes, by one pass of its network, see `hidden_states`.
        means: mu (class, width), double precision, of the classes that training rows have.
        precision: P (width, width).
        head: see `hidden_states`.

    Source: Lee et al. 2018, A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
    Attacks (arXiv 1807.03888), without perturbed inputs and of one layer. The covariance there is the
    empirical one; Ledoit and Wolf's, the default here, is shrunk, as few rows need it (both by scikit-learn).

    Example:
        >>> detector = MahalanobisDistance.fit(PointEstimate(network), training_loader)  # doctest: +SKIP
        >>> detector(loader).foreignness  # doctest: +SKIP
    """

    predictor: NetworkPredictor
    means: Tensor
    precision: Tensor
    head: str | None = None

    @classmethod
    def fit(
        cls,
        predictor: NetworkPredictor,
        loader: Iterable[Mapping[str, Any]],
        *,
        covariance: str = "ledoit_wolf",
        head: str | None = None,
    ) -> Self:
        """From training rows.

        Args:
            predictor: see above.
            loader: labelled batches of the rows that the network was trained on.
            covariance: "ledoit_wolf" or "empirical", of the rows about the means of their classes. Where the empirical
                one has no inverse, P is its pseudo-inverse: what no training row differs in counts nothing.
            head: see `hidden_states`.

        Raises:
            ConfigurationError: no such covariance, or multiple choice; see `hidden_states`.
            DataError: rows without labels.
        """
        require_choice("covariance", covariance, tuple(_ESTIMATORS))
        require_classes(predictor.network)
        states, labels = labelled_states(predictor, loader, head)
        classes, own = labels.unique(return_inverse=True)
        means = torch.stack([states[own == index].mean(0) for index in range(len(classes))])
        estimator = _ESTIMATORS[covariance](assume_centered=True).fit((states - means[own]).numpy())
        return cls(predictor, means, torch.from_numpy(estimator.precision_), head)

    def distance(self, states: Tensor) -> Tensor:
        """M of hidden states (row, width): (row,)."""
        eigenvalues, vectors = torch.linalg.eigh(self.precision)
        whitening = vectors * eigenvalues.clamp_min(0).sqrt()  # P = W W'
        gaps = torch.cdist(states @ whitening, self.means @ whitening, compute_mode="donot_use_mm_for_euclid_dist")
        return gaps.amin(-1).square()

    def __call__(
        self,
        loader: Iterable[Mapping[str, Any]],
        *,
        num_samples: int = 32,
        seed: int = 0,
        on_batch: Callable[[], None] | None = None,
    ) -> Prediction:
        prediction, states = hidden_states(self.predictor, loader, head=self.head, on_batch=on_batch)
        return replace(prediction, foreignness=self.distance(states))
