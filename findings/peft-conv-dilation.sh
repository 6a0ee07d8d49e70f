#!/usr/bin/env bash
# peft 0.21.2: LoRA on a Conv2d builds its LoRA-A with the kernel, stride and padding of the layer, but not with its
# dilation and padding_mode. Unmerged, a dilated convolution gets the update of one that is not; merged, the update is in
# the kernel and so is dilated. The two are different networks, without a warning; the shapes agree wherever padding does.
#
# Seen, largest difference between merged and unmerged outputs: plain 1.9e-06, dilation=2 13, padding_mode="circular" 6.4
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

x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Network(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 4, 3, **options)

    def forward(self, images):
        return self.layer(images)


def difference(**options):
    torch.manual_seed(0)
    network = get_peft_model(Network(**options), LoraConfig(r=2, target_modules=["layer"])).eval()
    torch.nn.init.normal_(network.base_model.model.layer.lora_B["default"].weight)
    with torch.no_grad():
        unmerged = network(x)
        network.merge_adapter()
        return (network(x) - unmerged).abs().max().item()


found = {
    "plain": difference(padding="same"),
    "dilation=2": difference(padding="same", dilation=2),
    'padding_mode="circular"': difference(padding=1, padding_mode="circular"),
}
print(", ".join(f"{name} {value:.2g}" for name, value in found.items()))
if found.pop("plain") > 1e-4:
    raise SystemExit("changed: a plain convolution is another one when merged")
if min(found.values()) < 0.1:
    raise SystemExit("changed: dilation or padding_mode reach LoRA-A")
PYTHON
