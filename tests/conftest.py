"""The environment every test runs in, also under a bare `pytest`. It is set before anything reads it at import."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # tests use no network: the base model comes from an installed package
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else tokenizers warns in every forked data-loader worker
os.environ["MPLBACKEND"] = "Agg"  # no display
# The networks here are so small that a second thread only costs, and workers of a parallel run have one core each.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Iterator

import pyro
import pytest
import torch

from tests.networks import Batch, make_batch


@pytest.fixture(autouse=True)
def _state_unchanged() -> Iterator[None]:
    """No test may leave anything in Pyro's global store, nor change the user's settings."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    # torch.compile turns it off for good, with torch 2.7 already where an import compiles something.
    pyro.settings.set(validate_distributions_torch=True)
    before = pyro.settings.get()
    yield
    assert not list(pyro.get_param_store().keys())
    assert pyro.settings.get() == before


@pytest.fixture
def batch() -> Batch:
    """Five rows of seven tokens, the last one padded, with labels of three classes."""
    return make_batch()
