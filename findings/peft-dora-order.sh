#!/usr/bin/env bash
# peft 0.21.2: of two adapters active on one layer, a DoRA scales what the adapters before it in the list have added to the
# layer's output, and leaves alone what those after it add. So set_adapter(["dora", "plain"]) and (["plain", "dora"]) are
# two networks, merged as well as unmerged, though each looks like a sum; with plain LoRA alone the order does not matter.
#
# Seen, largest difference between the two orders: plain and plain 4.8e-07, DoRA and plain 5.6, DoRA and DoRA 7.8
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0
"$folder/bin/pip" install --quiet peft==0.21.2 transformers==5.23.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/bin/python" -W ignore - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model

x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 5)

    def forward(self, rows):
        return self.layer(rows)


def output(first_dora, second_dora, order):
    torch.manual_seed(0)
    options = {"r": 2, "target_modules": ["layer"], "init_lora_weights": False}
    network = get_peft_model(Network(), LoraConfig(use_dora=first_dora, **options), adapter_name="first")
    network.add_adapter("second", LoraConfig(use_dora=second_dora, **options))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "magnitude" in name:
                parameter.mul_(2.0)  # as training would, away from the norm it starts at
        network.base_model.set_adapter(order)
        return network.eval()(x)


def difference(*kinds):
    return (output(*kinds, ["first", "second"]) - output(*kinds, ["second", "first"])).abs().max().item()


plain, mixed, both = difference(False, False), difference(True, False), difference(True, True)
print(f"plain and plain {plain:.2g}, DoRA and plain {mixed:.2g}, DoRA and DoRA {both:.2g}")
if plain > 1e-4:
    raise SystemExit("changed: the order of plain adapters matters")
if min(mixed, both) < 0.1:
    raise SystemExit("changed: the order of adapters with a DoRA does not matter any more")
PYTHON
