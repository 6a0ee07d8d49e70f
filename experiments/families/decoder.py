"""What tasks of causal language models share."""

from abc import ABC
from collections.abc import Sequence
from typing import Any

from bayes_lora.experiments.families.family import TaskFamily


class DecoderFamily(TaskFamily, ABC):
    """The network says the next token, with the head that it comes with."""

    def head(self, label_names: Sequence[str]) -> dict[str, Any]:
        """The network's own."""
        return {}

    def auto_class(self) -> Any:
        """Of networks that say the next token."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def network_fault(self, network: Any, new_modules: Sequence[str]) -> str | None:
        """An encoder, whose outputs depend on later tokens too, or a network without its head."""
        if _looks_ahead(network):
            return (
                "is an encoder: what it says of a token depends on the tokens after it, which a language model is to "
                "predict. Give a decoder, such as smollm2, GPT-2 or LLaMA"
            )
        if new_modules:
            return (
                f"comes without {', '.join(new_modules)}, which would be random. Give it with its language-model head"
            )
        return None


def _looks_ahead(network: Any) -> bool:
    """Whether the last token of a row changes what the network says of those before it."""
    import torch

    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]])
    training = network.training
    network.eval()
    with torch.no_grad():
        logits = network(input_ids=tokens).logits[:, :-1]
    network.train(training)
    return not torch.allclose(logits[0], logits[1], rtol=1e-4, atol=1e-4)
