"""The distance to the k-th nearest training row, of what the classification head reads."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn.functional import normalize

from bayes_lora.checks import require_count
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.predictors.outside.hidden_states import (
    asks_for_options,
    hidden_states,
    labelled_states,
)
from bayes_lora.inference.predictors.predictor import NetworkPredictor
from bayes_lora.metrics.prediction import Prediction

_MOST_NEIGHBOURS = 50


@dataclass(frozen=True, eq=False)
class NearestNeighbours:
    """Predicts as a network does, and tells foreign rows by the distance of their hidden states h to training rows:

        r_k(x) = |h / |h| - z_(k)|,     z_(k) the k-th nearest of the training rows' z = h / |h|

    h are the inputs of the classification head (`hidden_states`).

    Cost: that of the predictor and n distances for each row, and in `fit` one pass over the n training rows.

    Attributes:
        predictor: of classes, by one pass of its network, see `hidden_states`.
        neighbours: z of the training rows (row, width), double precision.
        k: which neighbour.
        head: see `hidden_states`.

    Raises:
        ConfigurationError: a k below 1, or above the number of training rows.

    Source: Sun et al. 2022, Out-of-Distribution Detection with Deep Nearest Neighbors (arXiv 2204.06507).

    Example:
        >>> detector = NearestNeighbours.fit(PointEstimate(network), training_loader)  # doctest: +SKIP
        >>> detector(loader).foreignness  # doctest: +SKIP
    """

    predictor: NetworkPredictor
    neighbours: Tensor
    k: int
    head: str | None = None

    def __post_init__(self) -> None:
        require_count("k", self.k)
        if self.k > len(self.neighbours):
            raise ConfigurationError(
                f"k={self.k} is more than the {len(self.neighbours)} training rows. Take a nearer neighbour."
            )

    @classmethod
    def fit(
        cls,
        predictor: NetworkPredictor,
        loader: Iterable[Mapping[str, Any]],
        *,
        k: int | None = None,
        head: str | None = None,
    ) -> Self:
        """From training rows.

        Args:
            predictor: see above.
            loader: labelled batches of the rows that the network was trained on.
            k: which neighbour. None is 50, the paper's for CIFAR-10, or the mean number of rows of a class where that
                is less: a neighbour that is further is one of another class. Rows with options of their own are all of
                one.
            head: see `hidden_states`.

        Raises:
            ConfigurationError: see above, and `hidden_states`.
            DataError: rows without labels.
        """
        states, labels = labelled_states(predictor, loader, head)
        if k is None:
            classes = 1 if asks_for_options(predictor.network) else len(labels.unique())
            k = min(_MOST_NEIGHBOURS, max(1, len(labels) // classes))
        return cls(predictor, normalize(states, dim=-1), k, head)

    @cached_property
    def _search(self) -> Any:
        return NearestNeighbors(n_neighbors=self.k, algorithm="brute").fit(self.neighbours.numpy())

    def distance(self, states: Tensor) -> Tensor:
        """r_k of hidden states (row, width): (row,)."""
        distances, _ = self._search.kneighbors(normalize(states, dim=-1).numpy())
        return torch.from_numpy(distances[:, -1])

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
