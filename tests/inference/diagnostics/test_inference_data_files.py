"""Inference data on disk: every bit comes back, and what is no such file is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from bayes_lora.errors import DataError
from bayes_lora.inference.diagnostics.arviz_bridge import arviz, group, group_names
from bayes_lora.inference.diagnostics.inference_data import to_inference_data
from bayes_lora.inference.diagnostics.inference_data_files import load_inference_data, save_inference_data
from tests.networks import build_network, build_pair, make_batch


@pytest.fixture(scope="module")
def data() -> Any:
    """Several outer draws, LoRA-A of one adapter, named classes, and a history with gaps."""
    network = build_network(num_layers=1)
    network.config.id2label = {0: "nö", 1: "maybe", 2: "yes"}
    model, guide = build_pair(network, num_outer_samples=2)
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5, "nll": 1.0}]
    options: dict[str, Any] = {"history": history, "adapters": model.sites.names[:1], "example_ids": list("abcde")}
    return to_inference_data(model, guide, [make_batch()], num_samples=5, seed=3, **options)


def assert_same(one: Any, two: Any) -> None:
    assert set(group_names(one)) == set(group_names(two))
    for name in group_names(one):
        xr.testing.assert_identical(group(one, name), group(two, name))
        for variable, values in group(one, name).data_vars.items():
            assert values.dtype == group(two, name)[variable].dtype
    assert one.attrs == two.attrs


def test_the_file_gives_back_every_bit(data: Any, tmp_path: Path) -> None:
    path = tmp_path / "run" / "data.nc"
    save_inference_data(data, path)
    found = load_inference_data(path)
    assert_same(found, data)
    assert found.attrs["seed"] == 3
    # What was read can be written, over the file it was read from, and is what ArviZ itself reads.
    save_inference_data(found, path)
    assert_same(load_inference_data(path), data)
    opened = arviz().from_netcdf(path)
    assert_same(opened, data)
    opened.close()
    assert [file.name for file in path.parent.iterdir()] == ["data.nc"]


def test_a_tree_of_groups_is_read_and_written_too(data: Any, tmp_path: Path) -> None:
    """The container of ArviZ 1.x, with any ArviZ."""
    tree = xr.DataTree.from_dict({name: group(data, name) for name in group_names(data)})
    tree.attrs.update(data.attrs)
    assert_same(tree, data)
    save_inference_data(tree, tmp_path / "data.nc")
    assert_same(load_inference_data(tmp_path / "data.nc"), data)


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b"", lambda whole: b"{}"])
def test_damaged_files(data: Any, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "data.nc"
    save_inference_data(data, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"data\.nc cannot be read as inference data .* save_inference_data"):
        load_inference_data(path)


def test_files_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as inference data"):
        load_inference_data(tmp_path / "missing.nc")
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(DataError, match="has no group 'posterior'"):
        load_inference_data(tmp_path / "other.nc")
