#!/usr/bin/env bash
# peft 0.21.2: saving an adapter with lora_bias=True warns that its tensors have an invalid shape and are incomplete, since
# DeepSpeed or FSDP had sharded them. Nothing is sharded: LoRA-B's bias has one dimension, and what was saved is whole.
#
# Seen: 1 warning, "... 1 LoRA tensor(s) have invalid shape: base_model.model.layer.lora_B.bias:(5,) ..."; opened again, the
# outputs differ by 0.0
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0
"$folder/bin/pip" install --quiet peft==0.21.2 transformers==5.23.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/bin/python" -W ignore - <<'PYTHON'
import copy
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model

x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 5)

    def forward(self, rows):
        return self.layer(rows)


torch.manual_seed(0)
base = Network()
config = LoraConfig(r=2, target_modules=["layer"], lora_bias=True, init_lora_weights=False)
network = get_peft_model(copy.deepcopy(base), config).eval()
torch.nn.init.normal_(network.base_model.model.layer.lora_B["default"].bias)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    network.save_pretrained("adapter")
said = [str(warning.message) for warning in caught if "invalid shape" in str(warning.message)]
with torch.no_grad():
    difference = (PeftModel.from_pretrained(base, "adapter").eval()(x) - network(x)).abs().max().item()
print(f"{len(said)} warning, {said}; opened again, the outputs differ by {difference}")
if difference != 0:
    raise SystemExit("changed: the adapter that was saved is not whole")
if not any("lora_B.bias" in text for text in said):
    raise SystemExit("changed: LoRA-B's bias is no reason to warn any more")
PYTHON
