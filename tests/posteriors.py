"""A small saved posterior that the tests share, and what it takes to be the same one."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayes_lora.inference import MonteCLoRAGuide, predict, save_posterior
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_bert, build_network, build_pair, make_batch

FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "bayes_lora.json", "posterior.safetensors"}


def build_base(seed: int = 0) -> Any:
    """The base network alone, the same at every call with one seed, as a hub download is."""
    torch.manual_seed(seed)
    return build_bert().double()


def build_saved(folder: Path, **config: Any) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
    """A pair on that base, with two ranks, saved into `folder`."""
    network = build_network(target_modules=["query", "output.dense"], rank_pattern={"query": 2})
    model, guide = build_pair(network, **config)
    save_posterior(model, guide, folder)
    return model, guide


def sample(model: BayesianLoRA, guide: MonteCLoRAGuide, batch: Batch) -> Tensor:
    """Logits (sample, example, class) under three draws."""
    return predict(model, guide, [batch], num_samples=3).logits


def content(model: BayesianLoRA, guide: MonteCLoRAGuide) -> dict[str, Tensor]:
    """All that makes a posterior the one it is: logits at the mean, and every parameter of the posterior."""
    return {
        "mean": predict(model, guide, [make_batch()], at_mean=True).logits,
        "sample_scale": model.sample_scale,
        **guide.state_dict(),
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two posteriors are the same, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
