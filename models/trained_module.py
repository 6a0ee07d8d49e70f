"""A network and what is trained with it, as one module under the transformers Trainer."""

import inspect
from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from bayes_lora.models.likelihoods.network_arguments import base_of


class TrainedModule(nn.Module, ABC):
    """Answers what the Trainer asks of its module with what the network says, and keeps what is trained only."""

    # Else the Trainer takes the loss as summed over the batches of a step, and does not divide it by their number.
    accepts_loss_kwargs = False
    _keys_to_ignore_on_save = None

    @property
    @abstractmethod
    def inner_network(self) -> Any:
        """The network."""

    @property
    def batch_columns(self) -> list[str]:
        """Columns of rows that a pass reads, and what the Trainer knows labels by."""
        return [*inspect.signature(base_of(self.inner_network).forward).parameters, "label", "label_ids", "labels"]

    @property
    def config(self) -> Any:
        """The base model's configuration, which the Trainer and its reports look at."""
        return getattr(self.inner_network, "config", None)

    def get_input_embeddings(self) -> nn.Module:
        """Those of the network."""
        return self.inner_network.get_input_embeddings()  # type: ignore[no-any-return]

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Passed on to the network."""
        self.inner_network.activation_checkpointing_enable(**options)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """What is trained: the frozen base stays where it came from."""
        state = super().state_dict(*args, **kwargs)
        named = self.named_parameters(remove_duplicate=False)  # a tied tensor has several names in the state
        frozen = {name for name, parameter in named if not parameter.requires_grad}
        prefix = kwargs.get("prefix", "")
        return type(state)((name, value) for name, value in state.items() if name.removeprefix(prefix) not in frozen)

    @property
    def main_input_name(self) -> str:
        """That of the network, whose tokens the Trainer counts."""
        return str(getattr(self.inner_network, "main_input_name", "input_ids"))

    def floating_point_ops(self, inputs: dict[str, Any], exclude_embeddings: bool = True) -> int:
        """The Trainer's estimate for the network; 0 where the network has none."""
        estimate = getattr(self.inner_network, "floating_point_ops", None)
        return 0 if estimate is None else int(estimate(inputs, exclude_embeddings=exclude_embeddings))
