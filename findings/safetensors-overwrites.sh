#!/usr/bin/env bash
# safetensors 0.7.0 (and 0.6.1; not 0.8.0): tensors of `safetensors.torch.load_file` are mapped from the file, and
# `save_file` writes into that same file. Zeros that were loaded become ones when ones are saved under the same name.
#
# Seen: loaded 0.0, after saving 1000.0
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0
"$folder/bin/pip" install --quiet safetensors==0.7.0 numpy==2.4.6 packaging==26.3
cd "$folder"
"$folder/bin/python" - <<'PYTHON'
import torch
from safetensors.torch import load_file, save_file

save_file({"a": torch.zeros(1000)}, "a.safetensors")
loaded = load_file("a.safetensors")["a"]
before = loaded.sum().item()
save_file({"a": torch.ones(1000)}, "a.safetensors")
print(f"loaded {before}, after saving {loaded.sum().item()}")
if loaded.sum().item() != 1000:
    raise SystemExit("changed: what was loaded stays as it was")
PYTHON
