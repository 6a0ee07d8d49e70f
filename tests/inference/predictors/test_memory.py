"""A draw of the posterior of a 7B-parameter model's adapters needs little more memory than the noise itself."""

from contextlib import AbstractContextManager
from functools import cache

import peft
import pytest
import torch
from pyro import poutine
from torch.distributions import MultivariateNormal

import bayes_lora as bl
from bayes_lora.adapters import unwrap
from bayes_lora.inference import MonteCLoRAGuide
from bayes_lora.models import BayesianLoRA
from tests.memory import peak_bytes
from tests.networks import build_bank

# LLaMA-7B: 32 layers, three of its projections of width 4096 each; a rank at the upper end of use.
NUM_ADAPTERS, WIDTH, RANK = 96, 4096, 32
NOISE = NUM_ADAPTERS * WIDTH * RANK * 4


@cache
def network() -> peft.PeftModel:
    return build_bank([WIDTH] * NUM_ADAPTERS, rank=RANK, out_features=8, dtype=torch.float32)


def test_the_measure_counts_moments() -> None:
    size = 4 * 1_000_000

    def call() -> torch.Tensor:
        first = torch.ones(1_000_000)
        return (first + first).sum()

    assert 2 * size <= peak_bytes(call) < 2.01 * size
    assert size <= peak_bytes(lambda: torch.ones(1_000_000)) < 1.01 * size


@pytest.mark.parametrize(
    ("mode", "most"), [(torch.enable_grad(), 2.5), (torch.no_grad(), 1.1)], ids=["with gradients", "without"]
)
@pytest.mark.parametrize("num_components", [4, 16])
def test_one_draw_of_a_7b_model(mode: AbstractContextManager[None], most: float, num_components: int) -> None:
    model = BayesianLoRA(unwrap(network()), bl.MonteCLoRAConfig(num_components=num_components))
    guide = MonteCLoRAGuide(model)
    with mode:
        peak = peak_bytes(lambda: poutine.trace(guide).get_trace())
    assert NOISE <= peak <= most * NOISE


def test_torchs_normal_would_not_fit() -> None:
    # Control, at few columns: it holds the factor once per column, which is `rank` times the noise.
    factor = torch.eye(RANK).expand(NUM_ADAPTERS, 1, RANK, RANK).contiguous()
    width = WIDTH // 128
    normal = MultivariateNormal(torch.zeros(NUM_ADAPTERS, width, RANK), scale_tril=factor)
    assert peak_bytes(normal.rsample) > 2.5 * NUM_ADAPTERS * width * RANK * 4
