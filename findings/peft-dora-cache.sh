#!/usr/bin/env bash
# peft 0.21.2: inside `peft.helpers.DoraCaching`, in eval mode, the product B A and the norm of the weights are those of the
# first pass, also after load_state_dict has put other weights there: the output is that of neither, without a warning.
# Leaving the context, or a pass in train mode, forgets them.
#
# Seen, largest difference inside the context from the network with the old weights 6.9, from that with the new ones 6.9
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
from peft.helpers import DoraCaching

x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 5)

    def forward(self, rows):
        return self.layer(rows)


torch.manual_seed(0)
config = LoraConfig(r=2, target_modules=["layer"], use_dora=True, init_lora_weights=False)
network = get_peft_model(Network(), config).eval()
other = {name: value * 3 if "lora_A" in name else value for name, value in network.state_dict().items()}
with torch.no_grad():
    old = network(x)
    with DoraCaching():
        network(x)
        network.load_state_dict(other)
        cached = network(x)
    new = network(x)
from_old, from_new = ((cached - of).abs().max().item() for of in (old, new))
print(f"from the network with the old weights {from_old:.2g}, from that with the new ones {from_new:.2g}")
if from_new < 1e-4:
    raise SystemExit("changed: other weights end what is cached")
if from_old < 1e-4:
    raise SystemExit("changed: the output is that of the old weights")
PYTHON
