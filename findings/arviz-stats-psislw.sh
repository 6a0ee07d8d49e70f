#!/usr/bin/env bash
# arviz-stats 1.3.3 (ArviZ 1.3): `psislw` has no answer for importance weights that ArviZ 0.23.4 had one for. Python >= 3.12.
#
# - 25 independent normal log ratios: k-hat is nan. The tail has 5 draws, whose "first quartile" is then the smallest of
#   them, which the fit refuses. 0.23.4: 0.096 and 0.317.
# - 100 log ratios that agree, as those of perfect weights do: ValueError. 0.23.4: k-hat inf.
#
# Seen: nan nan / ValueError: All tail values are the same
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet arviz-stats==1.3.3 arviz-base==1.3.1 xarray==2026.9.0 numpy==2.5.5 scipy==1.18.1
"$folder/bin/python" - <<'PYTHON'
import numpy as np
from arviz_stats.base import array_stats

log_ratios = np.random.default_rng(0).normal(size=(2, 25))
_, k_hat = array_stats.psislw(-log_ratios, r_eff=1.0, axis=-1)
print("25 normal log ratios, twice: k-hat", *k_hat)
assert np.isnan(k_hat).all(), "changed: there is a k-hat for 25 draws"

try:
    _, k_hat = array_stats.psislw(np.zeros((1, 100)), r_eff=1.0, axis=-1)
except ValueError as error:
    print("100 equal log ratios: ValueError:", error)
else:
    raise SystemExit(f"changed: equal log ratios have k-hat {k_hat}")
PYTHON
