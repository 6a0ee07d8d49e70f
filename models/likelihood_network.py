"""A network and a likelihood as one module, for methods without a posterior."""

from typing import Any

from torch import Tensor, nn

from bayes_lora.errors import LikelihoodError
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.models.likelihoods.likelihood import Likelihood
from bayes_lora.models.trained_module import TrainedModule
from bayes_lora.precision import posterior_dtype

NETWORK, LIKELIHOOD = "network.", "likelihood."
"""How the names of its tensors begin."""


class LikelihoodNetwork(TrainedModule):
    """A point estimate of network and likelihood together: ``loss = -1/n sum_i log p(y_i | f(x_i))``.

    What the likelihood learns, such as the size of the noise, is trained, saved and exchanged with the network's own
    tensors. Called with labels it returns ``{"loss": the loss}``; without, as a network with a head does, a tuple: of
    the packed prediction, (row, ...), see `Likelihood.pack`; of a likelihood that reduces its passes, of the logits.

    Args:
        network: any network with a task head.
        likelihood: of its outputs.
    """

    def __init__(self, network: Any, likelihood: Likelihood) -> None:
        super().__init__()
        self.network = network
        self.likelihood = likelihood

    @property
    def inner_network(self) -> Any:
        """The network without the likelihood."""
        return self.network

    @property
    def batch_columns(self) -> list[str]:
        """With those that the likelihood reads."""
        return [*super().batch_columns, *self.likelihood.batch_columns]

    def forward(self, **batch: Any) -> Any:
        labels = batch.pop("labels", None)
        logits = self.likelihood.logits(self.network, batch, labels, unseen=labels is not None)
        if labels is None and self.likelihood.reduces:
            return (logits.detach(),)
        if labels is None:
            packed = self.likelihood.pack(self.likelihood.prediction(logits.detach().cpu().unsqueeze(0), None))
            return (packed[0],)
        density = self.likelihood.log_density(logits.to(posterior_dtype(logits.dtype)), labels)
        return {"loss": -density.sum() / max(1, self.likelihood.num_observations(labels))}  # of nothing the sum is 0


def prediction_of(network: nn.Module, packed: Tensor, labels: Tensor | None) -> Any:
    """The prediction of a network's outputs (sample, row, ...), packed where it is a `LikelihoodNetwork`.

    Without a likelihood they are logits of classes.

    Raises:
        LikelihoodError: without a likelihood, labels that are not one class for each row.
    """
    if isinstance(network, LikelihoodNetwork):
        return network.likelihood.unpack(packed, labels)
    if labels is not None and (labels.is_floating_point() or labels.numel() != packed.shape[1]):
        raise LikelihoodError(
            f"labels of shape {tuple(labels.shape)}, {labels.dtype}, are not one class for each row. Say what they "
            "are: LikelihoodNetwork(network, likelihood)."
        )
    return Prediction.of(packed, labels)
