"""Model and guide as one torch module whose forward pass is the objective."""

from typing import Any

from torch import Tensor, nn

from bayes_lora.inference.training.itemized_elbo import ItemizedELBO
from bayes_lora.inference.training.scale_schedule import SampleScaleSchedule
from bayes_lora.models import BayesianLoRA


class SVIModule(nn.Module):
    """Model and guide as one module, so that DDP, checkpoints and optimizers see the parameters of both.

    Called with a batch it returns ``{"loss": the objective}``. The terms of the last loss are in `elbo.terms`.
    """

    # Else the Trainer takes the loss as summed over the batches of a step, and does not divide it by their number.
    accepts_loss_kwargs = False
    _keys_to_ignore_on_save = None

    def __init__(self, model: BayesianLoRA, guide: nn.Module, schedule: SampleScaleSchedule | None = None) -> None:
        super().__init__()
        self.model = model
        self.guide = guide
        self.schedule = schedule
        self.elbo = ItemizedELBO()

    @property
    def config(self) -> Any:
        """The base model's configuration, which the Trainer and its reports look at."""
        return getattr(self.model.network, "config", None)

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

    def get_input_embeddings(self) -> nn.Module:
        """Those of the network."""
        return self.model.network.get_input_embeddings()  # type: ignore[operator,no-any-return]

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Passed on to the network."""
        self.model.network.activation_checkpointing_enable(**options)  # type: ignore[operator]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """What is trained: the frozen base stays where it came from."""
        state = super().state_dict(*args, **kwargs)
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        prefix = kwargs.get("prefix", "")
        return type(state)((name, value) for name, value in state.items() if name.removeprefix(prefix) not in frozen)

    @property
    def main_input_name(self) -> str:
        """That of the network, whose tokens the Trainer counts."""
        return str(getattr(self.model.network, "main_input_name", "input_ids"))

    def floating_point_ops(self, inputs: dict[str, Any], exclude_embeddings: bool = True) -> int:
        """The Trainer's estimate for the network; 0 where the network has none."""
        estimate = getattr(self.model.network, "floating_point_ops", None)
        return 0 if estimate is None else int(estimate(inputs, exclude_embeddings=exclude_embeddings))
