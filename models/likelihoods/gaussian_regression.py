"""Real numbers for each row, with Gaussian noise."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_lora.checks import require_count, require_positive
from bayes_lora.errors import LikelihoodError
from bayes_lora.metrics.regression import RegressionPrediction
from bayes_lora.models.likelihoods.diagnosed import Variable
from bayes_lora.models.likelihoods.likelihood import Likelihood
from bayes_lora.models.likelihoods.words import Words


class GaussianRegression(Likelihood):
    """``y_i ~ N(c + u logits_i, diag(sigma)^2)`` in the plate `data`, scaled by 1 / batch size.

    Centre c and unit u are 0 and 1, until `start_at` sets them to the labels' mean and standard deviation, so that a
    network that begins near 0 begins at the mean, whatever the labels' units. Learned, sigma is a point, one for each
    output, found together with the posterior: its maximum likelihood value under the guide's predictions. It is trained
    without weight decay, at a learning rate of its own.

    Args:
        noise_scale: sigma, in units of the labels; where it is learned, at its start.
        learned: whether it is learned.
        num_outputs: of the network, where it is learned.

    Attributes:
        log_scale: ln (sigma / u), (output,), or (1,) where sigma is known.
        centre, unit: c and u, (output,), or (1,).

    Raises:
        ConfigurationError: a noise_scale not above 0, or no outputs.
    """

    kind = "gaussian_regression"
    label_dims = ("output",)
    named_dim = "output"
    averaged_called = "mean, in standard deviations of the predictive,"

    def __init__(self, noise_scale: float = 1.0, *, learned: bool = False, num_outputs: int = 1) -> None:
        super().__init__()
        require_positive("noise_scale", noise_scale)
        require_count("num_outputs", num_outputs)
        self._start, self._learned = float(noise_scale), learned
        start = torch.full((num_outputs if learned else 1,), noise_scale).log()
        self.log_scale: Tensor
        if learned:
            self.log_scale = nn.Parameter(start)
        else:
            # Known, it is a setting, and no tensor that files have to hold.
            self.register_buffer("log_scale", start, persistent=False)
        self.centre: Tensor
        self.unit: Tensor
        self.register_buffer("centre", torch.zeros_like(start), persistent=learned)
        self.register_buffer("unit", torch.ones_like(start), persistent=learned)

    @property
    def noise_scale(self) -> Tensor:
        """sigma, (output,), or (1,) where it is known."""
        return (
            self.unit * self.log_scale.exp()
            if self._learned
            else self.log_scale.new_full((1,), self._start, dtype=torch.double)
        )

    @classmethod
    def of_network(cls, network: nn.Module) -> Self:
        """Known noise of 1: half the squared error, but for a constant, as in a regression head of transformers."""
        return cls(1.0)

    def settings(self) -> dict[str, Any]:
        """The noise scale, or where it started and of how many outputs it is learned."""
        found: dict[str, Any] = {"noise_scale": self._start}
        return found | {"learned": True, "num_outputs": len(self.log_scale)} if self._learned else found

    def start_at(self, labels: Tensor) -> None:
        """Centre and unit are the labels' mean and standard deviation, and sigma the latter; known noise stays."""
        if self._learned:
            values = labels.to(self.centre).reshape(len(labels), -1)
            deviation = values.std(0, correction=0)
            self.centre.copy_(values.mean(0))
            self.unit.copy_(deviation.where(deviation > 0, 1.0))
            self.log_scale.data.zero_()

    def locations(self, logits: Tensor) -> Tensor:
        """c + u logits, in units of the labels."""
        return logits * self.unit.to(logits) + self.centre.to(logits) if self._learned else logits

    @classmethod
    def words(cls, settings: Mapping[str, Any]) -> Words:
        """Numbers, and what they are made of."""
        return Words(
            answer="a number" if settings.get("num_outputs", 1) == 1 else "numbers",
            label="output",
            shown=(
                "prediction.mean)  # (example, output), in units of the labels",
                "prediction.total_variance.sqrt())  # of noise and ignorance together",
                "prediction.epistemic_variance.sqrt())  # of ignorance alone: how far the draws disagree",
                "prediction.interval(0.9))  # bounds, (example, output) each",
            ),
            point="network(**batch).logits)  # in standard deviations of the training labels, from their mean"
            if settings.get("learned")
            else "network(**batch).logits)",
            num_outputs=settings.get("num_outputs", 1) if settings.get("learned") else None,
        )

    def checked_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(example, output).

        Raises:
            LikelihoodError: as many labels as outputs are needed, and a noise scale for each.
        """
        if labels.numel() != logits.numel():
            raise LikelihoodError(
                f"the labels have shape {tuple(labels.shape)}, the network's outputs {tuple(logits.shape)}. Pass "
                "one real number for each output of each row."
            )
        if len(self.log_scale) not in (1, logits.shape[-1]):
            raise LikelihoodError(
                f"the noise is of {len(self.log_scale)} outputs, and the network has {logits.shape[-1]}. Build the "
                f"likelihood with num_outputs={logits.shape[-1]}."
            )
        return labels.reshape(logits.shape).to(logits.dtype)

    def distribution(self, logits: Tensor) -> TorchDistributionMixin:
        """N(c + u logits, diag(sigma)^2)."""
        return dist.Normal(self.locations(logits), self.noise_scale.to(logits), validate_args=False).to_event(1)

    def prediction(self, logits: Tensor, labels: Tensor | None) -> RegressionPrediction:
        """Means of y under every draw, with the noise."""
        return self.of_locations(self.locations(logits), labels)

    def of_locations(self, locations: Tensor, labels: Tensor | None) -> RegressionPrediction:
        """The prediction with these locations (sample, example, output) of y."""
        known = None if labels is None else labels.reshape(locations.shape[1:])
        scale = self.noise_scale.detach().double().cpu().expand(locations.shape[-1])
        return RegressionPrediction(locations, known, scale)

    def labelled(self, prediction: Any, labels: Tensor) -> RegressionPrediction:
        """With these labels."""
        return self.of_locations(prediction.logits, labels)

    def of_summary(self, summary: Tensor, labels: Tensor | None) -> RegressionPrediction:
        """All draws, which is what the summary has."""
        return self.of_locations(summary.movedim(1, 0), labels)

    def pack(self, prediction: Any) -> Tensor:
        """Locations of y and logarithms of sigma, (sample, example, output, 2), in double precision."""
        scales = prediction.scales.log().expand_as(prediction.logits)
        return torch.stack([prediction.logits.double(), scales], dim=-1)

    def unpack(self, packed: Tensor, labels: Tensor | None) -> RegressionPrediction:
        """Sigma is the same for all rows of a sample."""
        locations, log_scales = packed.unbind(-1)
        return replace(self.of_locations(locations, labels), noise_scale=log_scales[:, 0].exp())

    def metrics(self, prediction: Any) -> dict[str, float]:
        """See `RegressionPrediction.metrics`."""
        return prediction.metrics()  # type: ignore[no-any-return]

    def row_log_density(self, prediction: Any) -> Tensor:
        """See `RegressionPrediction.log_density`."""
        return prediction.log_density  # type: ignore[no-any-return]

    def draw_log_density(self, prediction: Any) -> Tensor:
        """See `RegressionPrediction.draw_log_density`."""
        return prediction.draw_log_density  # type: ignore[no-any-return]

    def replicated(self, prediction: Any, draw: int, count: int, generator: torch.Generator) -> Tensor:
        """Numbers, with their noise."""
        return prediction.drawn(draw, count, generator)  # type: ignore[no-any-return]

    def predictive_variables(self, prediction: Any) -> dict[str, Variable]:
        """Where the labels are, and the scale of their noise, in units of the labels."""
        return {
            "location": Variable(prediction.logits.double(), ("example", "output"), "location of the label"),
            "noise_scale": Variable(prediction.scales.squeeze(1), ("output",), "scale of the noise"),
        }

    def disagreement(self, prediction: Any) -> Tensor:
        """See `RegressionPrediction.mutual_information`."""
        return prediction.mutual_information  # type: ignore[no-any-return]

    def numbers(self, prediction: Any) -> RegressionPrediction:
        """The prediction itself."""
        return prediction  # type: ignore[no-any-return]

    def losses(self, prediction: Any) -> dict[str, Tensor]:
        """NLL, and CRPS as the mean over outputs."""
        return {"nll": -prediction.log_density, "crps": prediction.crps.mean(-1)}

    def uncertainty(self, prediction: Any) -> dict[str, Tensor]:
        """Standard deviation of the predictive, of several outputs the mean of it in units of the noise."""
        return {"std": (prediction.total_variance / prediction.noise_variance).sqrt().mean(-1)}

    def averaged(self, prediction: Any) -> Tensor:
        """Locations in standard deviations of the predictive."""
        return prediction.logits.double() / prediction.total_variance.sqrt()  # type: ignore[no-any-return]

    def rescaled(self, prediction: Any, temperature: float) -> RegressionPrediction:
        """Drawn out about its mean by T: of ``m + T (y - m)``; as many samples as there were."""
        return prediction.spread(temperature)  # type: ignore[no-any-return]
