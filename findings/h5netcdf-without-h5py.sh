#!/usr/bin/env bash
# h5netcdf 1.8.2: `pip install h5netcdf` brings nothing that reads or writes HDF5 (h5py, an extra since then, was a
# requirement in 1.3.0), so that xarray's engine "h5netcdf" cannot write a file although h5netcdf is installed.
#
# Seen: h5py is not installed / ImportError: No module named 'h5py', backend not available.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet h5netcdf==1.8.2 xarray==2026.9.0
cd "$folder"
"$folder/bin/python" - <<'PYTHON'
import importlib.util

import xarray as xr

if importlib.util.find_spec("h5py"):
    raise SystemExit("changed: h5netcdf brings h5py")
print("h5py is not installed")
try:
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf("data.nc", engine="h5netcdf")
except (ImportError, ValueError) as error:
    print(f"{type(error).__name__}: {error}")
else:
    raise SystemExit("changed: a file was written without h5py")
PYTHON
