#!/usr/bin/env bash
# transformers 5.23.0 with accelerate 1.15.0: the Trainer shuffles each epoch by a generator that is seeded with the seed
# plus the number of the epoch. So epoch e of seed s has the order of epoch e - 1 of seed s + 1, and repeats with the
# seeds 0, 1, 2 share all but one of their orders. `data_seed` far apart for each repeat makes them independent.
#
# Seen: epoch 1 of seed 0: [5, 4, 2, 6, 7, 3, 1, 0], epoch 0 of seed 1: [5, 4, 2, 6, 7, 3, 1, 0]
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0
"$folder/bin/pip" install --quiet transformers==5.23.0 accelerate==1.15.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/bin/python" - <<'PYTHON'
import torch
from transformers import Trainer, TrainingArguments


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.seen, self.weight = [], torch.nn.Parameter(torch.zeros(()))

    def forward(self, number):
        self.seen += number.tolist()
        return {"loss": self.weight**2}


def orders(seed, **more):
    network = Network()
    quiet = dict(report_to="none", disable_tqdm=True, save_strategy="no", logging_strategy="no", use_cpu=True)
    options = TrainingArguments("out", seed=seed, num_train_epochs=3, per_device_train_batch_size=1, **quiet, **more)
    Trainer(network, options, train_dataset=[{"number": number} for number in range(8)]).train()
    return [network.seen[start : start + 8] for start in (0, 8, 16)]


first, second = orders(0), orders(1)
for epoch in (0, 1):
    print(f"epoch {epoch + 1} of seed 0: {first[epoch + 1]}, epoch {epoch} of seed 1: {second[epoch]}")
if first[1:] != second[:2]:
    raise SystemExit("changed: seeds next to each other have orders of their own")
apart = orders(0, data_seed=1_000_003), orders(1, data_seed=2_000_003)
if any(one == other for one in apart[0] for other in apart[1]):
    raise SystemExit("changed: data_seed does not keep the orders apart")
PYTHON
