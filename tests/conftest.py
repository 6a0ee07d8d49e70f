"""The environment every test runs in, also under a bare `pytest`. It is set before anything reads it at import."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # tests use no network: the base model comes from an installed package
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else tokenizers warns in every forked data-loader worker
os.environ["MPLBACKEND"] = "Agg"  # no display
# The networks here are so small that a second thread only costs, and workers of a parallel run have one core each.
os.environ["OMP_NUM_THREADS"] = "1"

import gc
from collections.abc import Generator, Iterator
from typing import Any

import pyro
import pytest
import torch

from tests.networks import Batch, make_batch


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """A test that docs/support.md names must run: one that is skipped has failed."""
    report = yield
    if report.skipped and item.get_closest_marker("shows") is not None:
        report.outcome, report.longrepr = "failed", f"{item.nodeid} shows a cell of docs/support.md, and was skipped."
    return report


def pytest_collection_finish() -> None:
    """What the imports made stays: half a million objects, which each collection would look through anew.

    accelerate asks for a whole one whenever a Trainer trains, half a second each.
    """
    gc.collect()
    gc.freeze()


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
