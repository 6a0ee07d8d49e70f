#!/usr/bin/env bash
# peft 0.21.2: a network with batch normalization whose LoRA adapters are trained in training mode, as the Trainer does,
# moves the running statistics of its frozen layers. They are buffers, so that save_pretrained leaves them out; opened
# again on the same base model the adapter is another network, without a warning.
#
# Seen on a random ResNet after 20 steps: largest difference of logits between before saving and after 5.6
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0
"$folder/bin/pip" install --quiet peft==0.21.2 transformers==5.23.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/bin/python" -W ignore - <<'PYTHON'
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import ResNetConfig, ResNetForImageClassification

config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)


def base():
    torch.manual_seed(0)
    return ResNetForImageClassification(config)


images = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))
network = get_peft_model(base(), LoraConfig(r=4, target_modules=["convolution"], modules_to_save=["classifier"]))
optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
network.train()
for _ in range(20):
    network(pixel_values=images, labels=torch.arange(12) % 3).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
network.eval()
network.save_pretrained("adapter")
opened = PeftModel.from_pretrained(base(), "adapter").eval()
with torch.no_grad():
    difference = (network(pixel_values=images).logits - opened(pixel_values=images).logits).abs().max().item()
print(f"largest difference of logits {difference:.2g}")
if difference < 0.1:
    raise SystemExit("changed: what is saved is what was trained")
PYTHON
