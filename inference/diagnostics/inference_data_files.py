"""Inference data as netCDF files."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import xarray as xr

from bayes_lora.errors import DataError
from bayes_lora.files import write_whole
from bayes_lora.inference.diagnostics.arviz_bridge import InferenceData, from_groups, group, group_names

_ENGINE: Final = "h5netcdf"


def save_inference_data(data: InferenceData, path: Path | str) -> None:
    """Write what `to_inference_data` returned, whole or not at all. ``arviz.from_netcdf`` reads it, too.

    Example:
        >>> save_inference_data(data, "run/inference_data.nc")  # doctest: +SKIP
    """
    tree = xr.DataTree.from_dict({name: group(data, name) for name in group_names(data)})
    tree.attrs.update(data.attrs)
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "data.nc"
        tree.to_netcdf(file, engine=_ENGINE)
        write_whole(Path(path), file.read_bytes())


def load_inference_data(path: Path | str) -> InferenceData:
    """Read what `save_inference_data` wrote, into memory; the same bit for bit.

    Raises:
        DataError: the file cannot be read, or holds no draws.
    """
    try:
        with xr.open_datatree(path, engine=_ENGINE) as tree:
            groups = {name: child.to_dataset().load() for name, child in tree.children.items()}
            attrs = {str(name): value for name, value in tree.attrs.items()}
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as inference data ({error}). Give a netCDF file of save_inference_data."
        ) from error
    if "posterior" not in groups:
        raise DataError(f"{path} has no group 'posterior'. Give a netCDF file of save_inference_data.")
    return from_groups(groups, attrs)
