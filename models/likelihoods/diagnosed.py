"""What diagnoses ask of a likelihood: labels and densities under single draws, and what is in a prediction."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_lora.errors import LikelihoodError
from bayes_lora.metrics.labels import known_labels
from bayes_lora.metrics.language import LanguagePrediction
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.metrics.regression import RegressionPrediction
from bayes_lora.randomness import seeded

_CPU = torch.device("cpu")


class Variable(NamedTuple):
    """Numbers of a prediction with names of their dimensions.

    Attributes:
        values: (sample, ...), or (...) where `of_draws` is false.
        dims: names of the dimensions behind that of the samples, such as "example" and "class".
        long_name: what they are.
        units: of them.
        of_draws: whether every draw has its own.
    """

    values: Tensor
    dims: tuple[str, ...]
    long_name: str
    units: str = ""
    of_draws: bool = True


class Diagnosed(nn.Module, ABC):
    """The part of `Likelihood` that diagnoses need.

    Attributes:
        label_dims: names of the dimensions of a row's label, behind that of the rows.
        named_dim: that of them, or of the classes, which label names are the coordinates of; none without such.
        ordered: whether classes have an order.
        averaged_called: what `averaged` is of, in a sentence.
        statistics_called: what `label_statistics` are of, in a sentence.
    """

    label_dims: ClassVar[tuple[str, ...]] = ()
    named_dim: ClassVar[str | None] = None
    ordered: ClassVar[bool] = False
    averaged_called: ClassVar[str] = "probability"
    statistics_called: ClassVar[str] = "distribution of labels"

    @abstractmethod
    def distribution(self, logits: Tensor) -> TorchDistributionMixin:
        """See `Likelihood`."""

    @abstractmethod
    def log_density(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Likelihood`."""

    def require_density(self) -> None:
        """Nothing, where a prediction says how likely labels are.

        Raises:
            LikelihoodError: it does not.
        """

    def draw_log_density(self, prediction: Any) -> Tensor:
        """ln p(y_i | s) of the labels of each row under every draw, (sample, row), nats, in double precision.

        By default of a prediction whose `logits` are the network's.

        Raises:
            DataError: the rows have no labels.
        """
        with torch.no_grad():
            return self.log_density(prediction.logits.double(), known_labels(prediction.labels))

    def replicated(self, prediction: Any, draw: int, count: int, generator: torch.Generator) -> Tensor | None:
        """Labels of all rows that the likelihood draws under one draw of the posterior, (count, row, ...); None where a
        prediction keeps too little for that. By default of a prediction whose `logits` are the network's."""
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.no_grad(), seeded(seed, _CPU):
            return self.distribution(prediction.logits[draw].double()).sample((count,))  # type: ignore[no-any-return]

    def label_statistics(self, prediction: Any, labels: Tensor) -> dict[str, Tensor]:
        """What observed and replicated labels are compared by, (replicate,) each, by name: of numbers their mean and
        their standard deviation over the rows, in each output.

        Args:
            prediction: that the labels are of, or were drawn from.
            labels: (replicate, row, ...).
        """
        values = labels.double().reshape(*labels.shape[:2], -1)  # (replicate, row, output)
        found = {}
        for output in range(values.shape[-1]):
            of_output = f" of output {output}" if values.shape[-1] > 1 else ""
            found["mean" + of_output] = values[..., output].mean(-1)
            found["standard deviation" + of_output] = values[..., output].std(-1, correction=0)
        return found

    def predictive_variables(self, prediction: Any) -> dict[str, Variable]:
        """What a prediction says of the distribution of the labels, by name, for ArviZ; by default nothing."""
        return {}

    def disagreement(self, prediction: Any) -> Tensor:
        """Mutual information of all that a row's label says and the draw, (row,), nats: how far draws disagree.

        Raises:
            LikelihoodError: this likelihood says nothing of it.
        """
        raise LikelihoodError(
            f"{type(self).__name__} does not say how far draws disagree about a row. Define its `disagreement`."
        )

    def choices(self, prediction: Any) -> Prediction | None:
        """All choices between classes that the prediction makes, one after the other, where it makes such."""
        return None

    def numbers(self, prediction: Any) -> RegressionPrediction | None:
        """The prediction as one of real numbers, where it is that."""
        return None

    def texts(self, prediction: Any) -> LanguagePrediction | None:
        """The prediction as one of tokens that follow each other, where it is that."""
        return None


def label_rates(labels: Tensor, num_classes: int) -> dict[str, Tensor]:
    """Share of each class among labels (replicate, ...), (replicate,) each; labels below 0 do not count."""
    flat = labels.flatten(1)
    counted = (flat >= 0).sum(-1).double()
    return {f"label {c}": (flat == c).sum(-1) / counted for c in range(num_classes)}
