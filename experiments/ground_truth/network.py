"""The network of the ground-truth problems, and the likelihood of those that are regressions."""

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput


class TwoLayer(nn.Module):
    """``V g(W0 x)`` without biases, g the identity or tanh; LoRA goes to its Linear `hidden`."""

    def __init__(self, base: Tensor, head: Tensor, *, linear: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(base.shape[1], base.shape[0], bias=False, dtype=base.dtype)
        self.activation = nn.Identity() if linear else nn.Tanh()
        self.head = nn.Linear(head.shape[1], head.shape[0], bias=False, dtype=head.dtype)
        with torch.no_grad():
            self.hidden.weight.copy_(base)
            self.head.weight.copy_(head)

    def forward(self, inputs: Tensor) -> SequenceClassifierOutput:
        """Logits (example, output) of inputs (example, in_features)."""
        return SequenceClassifierOutput(logits=self.head(self.activation(self.hidden(inputs))))
