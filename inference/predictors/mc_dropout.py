"""Monte Carlo dropout: LoRA's dropout stays on while predicting."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from bayes_lora.adapters import check_state
from bayes_lora.checks import require_count, require_seed
from bayes_lora.errors import AdapterError, ConfigurationError
from bayes_lora.inference.predictors.predictor import Inputs, NetworkPredictor, Passes
from bayes_lora.models import network_logits
from bayes_lora.randomness import seeded, stream


@dataclass(frozen=True, eq=False)
class MCDropout(NetworkPredictor):
    """Every draw drops each input of a LoRA layer with probability p: ``W0 x + (alpha / r) B A (m * x) / (1 - p)``.

    ``m_i ~ Bernoulli(1 - p)``, anew for every token, layer and draw. Nothing else is random: the rest of the network,
    its own dropout included, is in evaluation mode. At p = 0 every draw is the point estimate, bit for bit.

    The masks of draw s in batch b depend on (seed, s, b) and on the shape of the batch. So 16 draws are the first 16
    of 32, but, alone among the methods here, the draws change when the same rows come in other batches.

    Cost: `num_samples` forward passes.

    Args:
        network: a PEFT model with LoRA layers (also DoRA and AdaLoRA), alone or inside a `BayesianLoRA`, whose
            noise stays off.
        probability: p of all LoRA layers while predicting, 0 <= p < 1, whatever they were trained with; afterwards
            they are as they were. None keeps each layer's own, that of LoraConfig's lora_dropout.

    Raises:
        ConfigurationError: a probability out of range, or None where the network was built with lora_dropout=0.
        AdapterError: no active LoRA layers, or merged or disabled ones.
        DataError: when called: an empty loader, or labels in some batches only.

    Source: Gal and Ghahramani 2016, Dropout as a Bayesian Approximation, section 4.

    Example:
        >>> prediction = MCDropout(network, probability=0.1)(loader, num_samples=16, seed=0)  # doctest: +SKIP
    """

    network: nn.Module
    probability: float | None = None
    joint: ClassVar[bool] = False  # every row has a mask of its own

    def __post_init__(self) -> None:
        p = self.probability
        if p is not None and not (isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p < 1):
            raise ConfigurationError(f"probability={p!r} must be at least 0 and below 1.")
        self._dropouts()

    @contextmanager
    def drawing(self, num_samples: int, seed: int) -> Iterator[Passes]:
        """Under one dropout mask each, which depends on (seed, draw, batch)."""
        require_count("num_samples", num_samples)
        require_seed("seed", seed)
        device = next(self.network.parameters()).device
        batch = 0

        def logits(inputs: Inputs) -> Iterator[Tensor]:
            nonlocal batch
            for draw in range(num_samples):
                with seeded(stream(stream(seed, draw), batch), device):
                    of_draw = network_logits(self.network, inputs)
                yield of_draw.unsqueeze(0)
            batch += 1

        with self._dropping():
            yield logits

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """The dropout of the LoRA layers acts inside; the network is in evaluation mode, and is so again afterwards."""
        found = self._dropouts()
        before = [layer.lora_dropout[key] for layer, key, _ in found]
        try:
            for layer, key, probability in found:
                # A new module, since PEFT has an Identity where the network was built without dropout.
                layer.lora_dropout[key] = nn.Dropout(probability)
                layer.training = True  # DoRA asks its layer, not the dropout
            yield
        finally:
            for (layer, key, _), module in zip(found, before, strict=True):
                layer.lora_dropout[key] = module
                layer.training = False

    def _dropouts(self) -> list[tuple[LoraLayer, str, float]]:
        """(layer, adapter, probability) of the active LoRA layers, without those where it is 0."""
        found = []
        for path, layer in self.network.named_modules():
            if not isinstance(layer, LoraLayer):
                continue
            active = [key for key in layer.active_adapters if key in layer.lora_dropout]
            if active:
                check_state(path.removeprefix("base_model.model."), layer)
            for key in active:
                own = getattr(layer.lora_dropout[key], "p", 0.0)
                found.append((layer, key, own if self.probability is None else float(self.probability)))
        if not found:
            raise AdapterError(
                f"{type(self.network).__name__} has no active LoRA layers, whose dropout makes the draws. Pass the "
                "PEFT model: peft.get_peft_model(network, peft.LoraConfig(lora_dropout=0.1, ...))."
            )
        dropping = [entry for entry in found if entry[2] > 0]
        if not dropping and self.probability is None:
            raise ConfigurationError(
                "the network was built with lora_dropout=0, so that all draws would be the point estimate. Train with "
                "LoraConfig(lora_dropout=0.1, ...), or pass MCDropout(network, probability=0.1) to drop while "
                "predicting only."
            )
        return dropping
