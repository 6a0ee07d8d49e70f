#!/usr/bin/env bash
# ivon-opt 0.1.3: `state_dict` leaves out `current_step`, by which the mean gradient is corrected (debias=True), so that an
# optimizer that goes on from a checkpoint takes its first steps as if it began: with beta1=0.9 the momentum is divided by
# 0.1 again. And a step leaves all parameters as views of one tensor.
#
# Seen: after resuming the step is 0; parameters share one storage: True
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0
"$folder/bin/pip" install --quiet numpy==2.4.6
"$folder/bin/pip" install --quiet --no-deps ivon-opt==0.1.3
cd "$folder"
"$folder/bin/python" - <<'PYTHON'
import torch
from ivon import IVON

network = torch.nn.Linear(2, 2)
optimizer = IVON(network.parameters(), lr=0.1, ess=10)
for _ in range(5):
    with optimizer.sampled_params(train=True):
        optimizer.zero_grad()
        network(torch.ones(1, 2)).square().sum().backward()
    optimizer.step()
resumed = IVON(network.parameters(), lr=0.1, ess=10)
resumed.load_state_dict(optimizer.state_dict())
shared = len({parameter.untyped_storage().data_ptr() for parameter in network.parameters()}) == 1
print(f"after resuming the step is {resumed.current_step}; parameters share one storage: {shared}")
if resumed.current_step != 0 or not shared:
    raise SystemExit("changed: the state holds the step, or parameters stay apart")
PYTHON
