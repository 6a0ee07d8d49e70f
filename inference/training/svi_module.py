"""Model and guide as one torch module whose forward pass is the objective."""

from typing import Any

from torch import Tensor, nn

from bayes_lora.inference.training.itemized_elbo import ItemizedELBO
from bayes_lora.inference.training.scale_schedule import SampleScaleSchedule
from bayes_lora.models import BayesianLoRA, TrainedModule


class SVIModule(TrainedModule):
    """Model and guide as one module, so that DDP, checkpoints and optimizers see the parameters of both.

    Called with a batch it returns ``{"loss": the objective}``. The terms of the last loss are in `elbo.terms`.
    """

    def __init__(self, model: BayesianLoRA, guide: nn.Module, schedule: SampleScaleSchedule | None = None) -> None:
        super().__init__()
        self.model = model
        self.guide = guide
        self.schedule = schedule
        self.elbo = ItemizedELBO()

    @property
    def inner_network(self) -> Any:
        """The model's."""
        return self.model.network

    @property
    def batch_columns(self) -> list[str]:
        """With those that the likelihood reads."""
        return [*super().batch_columns, *self.model.likelihood.batch_columns]

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        schedule = self.schedule if self.training else None
        if schedule is None:
            return {"loss": self.elbo.differentiable_loss(self.model, self.guide, **batch)}
        seen: list[Tensor] = []

        def watched(**batch: Any) -> Tensor:
            seen.append(self.model(**batch))
            return seen[-1]

        loss = self.elbo.differentiable_loss(watched, self.guide, **batch)
        schedule.observe(seen[-1], self.elbo.terms["nll"])
        return {"loss": loss}
