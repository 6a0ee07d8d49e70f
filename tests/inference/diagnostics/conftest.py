"""Inference data of small networks, which several files look at."""

from typing import Any

import pytest

from bayes_lora.inference.diagnostics.inference_data import to_inference_data
from tests.networks import build_network, build_pair, make_batch


@pytest.fixture(scope="package")
def inference_data() -> Any:
    """400 draws, five rows, six steps."""
    history = [{"step": step, "loss": 2 / step, "nll": 1 / step} for step in range(1, 7)]
    pair = build_pair(build_network(num_layers=1), sample_scale=0.05)
    return to_inference_data(*pair, [make_batch()], num_samples=400, seed=3, history=history)


@pytest.fixture(scope="package")
def other_inference_data() -> Any:
    """The same rows under another network."""
    pair = build_pair(build_network(seed=1, num_layers=1), sample_scale=0.05)
    return to_inference_data(*pair, [make_batch()], num_samples=400)
