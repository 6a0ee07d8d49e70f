"""What a likelihood says about itself, and the network outputs that it takes."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol, Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_lora.effect_handlers import SiteHandler, densities_only
from bayes_lora.errors import LikelihoodError
from bayes_lora.metrics.uncertainty import outside_aurocs
from bayes_lora.models.likelihoods.diagnosed import Diagnosed
from bayes_lora.models.likelihoods.words import Words
from bayes_lora.precision import kept_precise, posterior_dtype


def network_logits(network: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Run a network with a task head and return its logits.

    Raises:
        LikelihoodError: its output has none.
    """
    output = network(**inputs)
    logits = output[0] if isinstance(output, tuple) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise LikelihoodError(
            f"the network returned {type(output).__name__} without logits. Load it with a task head, "
            "for example AutoModelForSequenceClassification."
        )
    return logits


class Reduction(Protocol):
    """Takes in the logits of a batch draw by draw, and makes a prediction of what it kept of them.

    Attributes:
        inputs: what to run the network with.
        draws_per_pass: that may share one, for their logits' sake.
    """

    inputs: Mapping[str, Any]
    draws_per_pass: int

    def add(self, logits: Tensor) -> None:
        """Take in logits (draw, row, ...)."""

    def prediction(self) -> Any:
        """Of all that was taken in."""


class Likelihood(Diagnosed):
    """p(y_i | logits_i), independent over rows: all that a kind of label differs by from another.

    The model opens `logits` and `y` with it, ``loss = -1/n sum_i log p(y_i | logits_i)`` where n is what
    `num_observations` counts; predictions, their metrics and saved posteriors ask it the rest. A subclass in a file of
    this package is found by its `kind`: nothing else has to name it.

    Parameters of it, such as the size of the noise, are points: trained beside the guide's, and saved with them.

    Attributes:
        kind: its name in files.
        row_dims: dimensions of one row's logits: (output,), or more.
        reduces: whether predictions are made by a `reduction`, since the logits of all draws are too many to be kept.
        batch_columns: what it reads in a batch, beside labels and what the network itself takes.
        one_pass: whether `logits` runs the network once.
    """

    kind: ClassVar[str]
    row_dims: ClassVar[int] = 1
    reduces: ClassVar[bool] = False
    batch_columns: ClassVar[tuple[str, ...]] = ()
    one_pass: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def of_network(cls, network: nn.Module) -> Self:
        """The likelihood for this network's head, at the settings it starts with.

        Raises:
            LikelihoodError: the head is for labels of another kind.
        """

    def settings(self) -> dict[str, Any]:
        """Plain data from which `from_settings` makes it again."""
        return {}

    @classmethod
    def from_settings(cls, network: nn.Module, settings: Mapping[str, Any]) -> Self:
        """The likelihood that had these settings, for this network.

        Raises:
            TypeError, ConfigurationError: settings that it cannot have.
            LikelihoodError: see `of_network`.
        """
        return cls(**settings)

    def start_at(self, labels: Tensor) -> None:
        """Begin where the training labels (row, ...) alone put the likelihood's own tensors, where it has some."""

    def inputs(
        self, network: nn.Module, batch: Mapping[str, Any], labels: Tensor | None = None, *, unseen: bool = False
    ) -> Mapping[str, Any]:
        """What the network is run with for a batch without its labels: the batch, and what else it has to be told.

        Args:
            network: that is run.
            batch: without labels.
            labels: that its logits are for, where there are some.
            unseen: nobody looks at the logits but for the density of these labels.
        """
        return batch

    def logits(
        self, network: nn.Module, batch: Mapping[str, Any], labels: Tensor | None = None, *, unseen: bool = False
    ) -> Tensor:
        """What the likelihood takes for logits of a batch, (row, ...); by one pass of the network unless it says so.

        Args:
            network, batch, labels, unseen: see `inputs`.

        Raises:
            LikelihoodError: the network's output has none.
        """
        return network_logits(network, self.inputs(network, batch, labels, unseen=unseen))

    @abstractmethod
    def checked_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Labels in the shape and type in which `distribution` takes them.

        Args:
            logits: (row, ...), of the rows that the labels are of.
            labels: as the batch has them.

        Raises:
            LikelihoodError: labels that the distribution gives no density, or logits of another kind of head.
        """

    @abstractmethod
    def distribution(self, logits: Tensor) -> TorchDistributionMixin:
        """The distribution of y given logits (..., row, output): batch shape (..., row)."""

    def num_observations(self, labels: Tensor) -> int:
        """What the mean of the loss, and ``num_train_examples``, count: rows, unless a row has several labels."""
        return len(labels)

    def num_observations_in(self, dataset: Any) -> int | None:
        """The same of a whole data set; None where it cannot be counted: it has no length, or labels say too little."""
        return len(dataset) if self.counts_rows and hasattr(dataset, "__len__") else None

    def require_observations(self, dataset: Any) -> None:
        """Something in a data set is observed; where every row has a label, that is so.

        Raises:
            DataError: nothing is.
        """

    @property
    def counts_rows(self) -> bool:
        """Whether an observation is a row."""
        return type(self).num_observations is Likelihood.num_observations

    def log_density(self, logits: Tensor, labels: Tensor) -> Tensor:
        """log p(y_i | logits_i) of each row, (..., row), nats.

        Args:
            logits: (..., row, output); what stands before the rows, such as draws, is kept.
            labels: as the batch has them, (row, ...).
        """
        checked = self.checked_labels(logits.reshape(-1, *logits.shape[-1 - self.row_dims :])[0], labels)
        return self.distribution(logits).log_prob(checked)  # type: ignore[no-any-return]

    @classmethod
    def words(cls, settings: Mapping[str, Any]) -> Words:
        """What a model card says of the likelihood that has these settings; by default as of classes."""
        return Words()

    @abstractmethod
    def prediction(self, logits: Tensor, labels: Tensor | None) -> Any:
        """What `predict` returns, of logits (sample, row, output) and the rows' labels where they have some."""

    def reduction(self, network: nn.Module, inputs: Mapping[str, Any], labels: Tensor | None) -> Reduction:
        """Where `reduces`: what makes the prediction of one batch, of passes that follow each other.

        Args:
            network: that the passes are of.
            inputs: the batch without its labels, on the network's device.
            labels: as the batch has them.
        """
        raise NotImplementedError

    def joined(self, parts: Sequence[Any]) -> Any:
        """Where `reduces`: the predictions of several batches as one."""
        raise NotImplementedError

    @abstractmethod
    def metrics(self, prediction: Any) -> dict[str, float]:
        """What an evaluation reports of labelled predictions; `nll` is one of them."""

    def summary(self, prediction: Any) -> Tensor:
        """What a prediction's metrics need of its draws, (row, ...): what the Trainer gathers from all processes."""
        return prediction.logits.movedim(0, 1)  # type: ignore[no-any-return]

    def of_summary(self, summary: Tensor, labels: Tensor | None) -> Any:
        """A prediction with the metrics of the one that `summary` was made of."""
        return self.prediction(summary.movedim(1, 0), labels)

    @torch.no_grad()
    def log_predictive_density(self, logits: Tensor, labels: Tensor) -> Tensor:
        """ln 1/S sum_s p(y_i | logits_si) of each row, (row,), nats, in double precision.

        Args:
            logits: (sample, row, output).
            labels: as the batch has them.
        """
        return self.log_density(logits.double(), labels).logsumexp(0) - math.log(len(logits))

    def labelled(self, prediction: Any, labels: Tensor) -> Any:
        """A prediction of rows whose labels are known now, (row, ...)."""
        return replace(prediction, labels=self.prediction(prediction.logits, labels).labels)

    def pack(self, prediction: Any) -> Tensor:
        """A prediction without its labels as one tensor (sample, row, ...), all that `unpack` needs to make it again.

        What the likelihood has learned is in it, so that samples of networks that learned different things go together.
        """
        return prediction.logits  # type: ignore[no-any-return]

    def unpack(self, packed: Tensor, labels: Tensor | None) -> Any:
        """The prediction that `pack` was given, with labels (row, ...)."""
        return self.prediction(packed, labels)

    def all_metrics(self, prediction: Any, outside: Any = None) -> dict[str, float]:
        """What a comparison reports of labelled predictions; with those of rows from elsewhere, how well they are told.

        By default `metrics`, and ``ood_auroc_NAME`` for each `uncertainty`, see `outside_aurocs`.
        """
        found = self.metrics(prediction)
        return found if outside is None else found | self.outside_metrics(prediction, outside)

    def outside_metrics(self, prediction: Any, outside: Any) -> dict[str, float]:
        """How well rows from elsewhere are told, those of the prediction `outside`: see `outside_aurocs`."""
        return outside_aurocs(self.uncertainty(prediction), self.uncertainty(outside))

    def row_log_density(self, prediction: Any) -> Tensor:
        """``ln 1/S sum_s p(y_i | s)`` of the labels of each row, (row,), nats."""
        return self.log_predictive_density(prediction.logits, prediction.labels)

    def losses(self, prediction: Any) -> dict[str, Tensor]:
        """Metrics that are means over rows, as values of the rows, (row,) each: what tests of a comparison resample."""
        return {"nll": -self.row_log_density(prediction)}

    def uncertainty(self, prediction: Any) -> dict[str, Tensor]:
        """How unsure a prediction is of each row, (row,) each, by name; the first is what out-of-distribution rows are
        told by. By default nothing says so."""
        return {}

    def averaged(self, prediction: Any) -> Tensor:
        """What the predictive is the mean over draws of, (sample, row, ...), such as probabilities; of other things so
        measured that .005 is little. ``num_samples="auto"`` draws until its mean is known so well.

        Raises:
            LikelihoodError: this likelihood says nothing of it.
        """
        raise LikelihoodError(
            f"num_samples='auto' has to know what draws are averaged for, and {type(self).__name__} does not say. Say "
            "how many draws to take, such as num_samples=16; or define its `averaged`."
        )

    def rescaled(self, prediction: Any, temperature: float) -> Any:
        """The predictive, made less sure by a temperature above 1, or surer by one below; it has one sample or more.

        Raises:
            LikelihoodError: this likelihood says nothing of temperatures.
        """
        raise LikelihoodError(f"{type(self).__name__} does not say what a temperature does. Define its `rescaled`.")

    def forward(self, logits: Tensor, labels: Tensor | None) -> None:
        """Open `logits` (deterministic) and `y` in the plate `data`, observed if there are labels.

        Args:
            logits: (row, output).
            labels: as the batch has them, or None to sample them.

        Raises:
            LikelihoodError: see `checked_labels`.
        """
        num_rows = len(logits)
        # Without labels to look at, the logits still are.
        observed = None if labels is None else self.checked_labels(logits, labels)
        num_observations = num_rows if observed is None else self.num_observations(observed)
        logits = logits.to(posterior_dtype(logits.dtype))
        listened_to = not densities_only()  # asked outside of the handler below, which would count as a listener
        with SiteHandler({"data": num_rows}, 1 / max(1, num_observations)):  # of nothing the sum is 0
            if listened_to:
                # `pyro.deterministic`, less its look for NaN: on an accelerator that would stall every step.
                known = dist.Delta(logits, event_dim=logits.dim() - 1, validate_args=False).mask(False)
                pyro.sample("logits", known, obs=logits, infer={"_deterministic": True})
            pyro.sample("y", self.distribution(logits), obs=observed)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(kept_precise(fn), recurse)  # type: ignore[no-untyped-call,no-any-return]
