"""Methods of fine-tuning for the point estimate: LoRA, DoRA, AdaLoRA, bottleneck adapters, all parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import peft
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, default_data_collator

from bayes_lora.checks import require_choice, require_count, require_seed
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.finetuning.adalora import AdaLoRALikelihood, RankBudget, initial_rank
from bayes_lora.inference.finetuning.bottleneck import add_bottlenecks
from bayes_lora.inference.finetuning.lora import LoRAOptions, add_lora
from bayes_lora.inference.training.fit import Collate, FitResult, fit_network
from bayes_lora.inference.training.fit_options import FitOptions
from bayes_lora.models import Likelihood, LikelihoodNetwork
from bayes_lora.randomness import seeded

Way = Literal["lora", "full", "adalora", "dora", "adapter"]


@dataclass(frozen=True)
class PointNetwork:
    """A network of which the right parameters are trainable, and how it was made.

    Attributes:
        way: of training it.
        network: takes batches as transformers has them; with a likelihood it is a `LikelihoodNetwork`.
        new_modules: paths of the base model's modules that started at random; they are trained in full in every way.
        options: of the adapters; without effect on "full" and "adapter".
        bottleneck_size: of "adapter".
        callbacks: what must accompany training, see `fit_point`.
    """

    way: Way
    network: Any
    new_modules: tuple[str, ...]
    options: LoRAOptions
    bottleneck_size: int
    callbacks: tuple[TrainerCallback, ...] = ()


def make_network(
    way: Way,
    network: PreTrainedModel,
    new_modules: Sequence[str] = (),
    options: LoRAOptions | None = None,
    *,
    bottleneck_size: int = 64,
    likelihood: Likelihood | None = None,
    seed: int = 0,
) -> PointNetwork:
    """Prepare a base model for a way of training.

        lora      W0 + (alpha / r) B A; A and B are trained
        dora      m W / |W|, W = W0 + (alpha / r) B A, the norm by rows; m is trained too (arXiv 2402.09353)
        adalora   W0 + (alpha / r0) B diag(e) A with r0 = 1.5 r, of which r are left on average (arXiv 2303.10512);
                  its loss has 0.5 times the distance of A and B from orthogonal ones besides, see `orthogonality`
        adapter   a bottleneck after each sub-layer (`add_bottlenecks`); LayerNorms are trained too (arXiv 1902.00751)
        full      all parameters are trained

    The task head is trained in each; that of a language model, which comes with it, in `full` alone. All start at the
    base model's function, but for `adapter`, which starts near it.

    Args:
        way: one of these.
        network: the base model, without adapters. It is changed in place.
        new_modules: paths of modules that start at random (see `load_base_model`).
        options: of the adapters; rank, alpha, dropout and targets are those of lora, dora and adalora.
        bottleneck_size: of adapter.
        likelihood: of the network's outputs, trained with it (see `LikelihoodNetwork`); None is the network's own loss.
        seed: of the new adapters.

    Raises:
        ConfigurationError: an unknown way, a value outside its domain, or a network that it cannot be used on.

    Example:
        >>> point = make_network("dora", base.network, base.new_modules)  # doctest: +SKIP
        >>> fit_point(point, dataset, FitOptions(epochs=3))  # doctest: +SKIP
    """
    require_choice("way", way, get_args(Way))
    require_count("bottleneck_size", bottleneck_size)
    require_seed("seed", seed)
    options = options or LoRAOptions()
    callbacks: tuple[TrainerCallback, ...] = ()
    made: Any = network
    with seeded(seed, next(network.parameters()).device):
        if way == "lora":
            made = add_lora(network, new_modules, options)
        elif way == "dora":
            made = add_lora(network, new_modules, options, r=options.rank, use_dora=True)
        elif way == "adalora":
            ranks = {"init_r": initial_rank(options.rank), "target_r": options.rank}
            # PEFT asks for the number of steps now; `RankBudget` gives the schedule when it is known.
            made = add_lora(network, new_modules, options, peft.AdaLoraConfig, total_step=1, **ranks)
            callbacks = (RankBudget(made),)
        elif way == "adapter":
            add_bottlenecks(network, [*_head(network), *new_modules], bottleneck_size)
        else:
            _train_all(network)
    if likelihood is not None:
        made = (AdaLoRALikelihood if way == "adalora" else LikelihoodNetwork)(made, likelihood)
    return PointNetwork(way, made, tuple(new_modules), options, bottleneck_size, callbacks)


def fit_point(
    point: PointNetwork,
    train_dataset: Any,
    options: FitOptions | None = None,
    *,
    collate: Collate = default_data_collator,
    console: Console | None = None,
    checkpoints: Path | None = None,
) -> FitResult:
    """Train the network on its own loss: `fit_network` with what must accompany this way of training."""
    return fit_network(
        point.network,
        train_dataset,
        options,
        collate=collate,
        console=console,
        checkpoints=checkpoints,
        callbacks=point.callbacks,
    )


def count_trainable(network: nn.Module) -> int:
    """The number of parameters that are trained; of AdaLoRA all that it starts with."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _head(network: PreTrainedModel) -> list[str]:
    """Everything outside of the transformer itself, unless it says tokens: then it is pretrained like the rest."""
    if network.get_output_embeddings() is not None:
        return []
    children = dict(network.named_children())
    if network.base_model_prefix not in children:
        raise ConfigurationError(
            f"{type(network).__name__} has no task head. Load it with AutoModelForSequenceClassification."
        )
    return [name for name in children if name != network.base_model_prefix]


def _train_all(network: PreTrainedModel) -> None:
    for name, parameter in network.named_parameters():
        if not parameter.is_floating_point():
            raise ConfigurationError(
                f"{name} is of {parameter.dtype}, so the network is quantized and cannot be trained in full. Load it "
                "without quantization, or train it as lora."
            )
    network.requires_grad_(True)
