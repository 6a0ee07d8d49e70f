#!/usr/bin/env bash
# transformers 5.24.0: a model's own `add_adapter` asks for peft 0.22.0 or newer. The newest peft that was published with
# it is 0.21.2, so it raises, while `peft.get_peft_model` on the same model, with the same two packages, works.
#
# Seen: add_adapter: The version of PEFT you are using is not compatible, please use a version >= 0.22.0
#       get_peft_model: PeftModel
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0
"$folder/bin/pip" install --quiet transformers==5.24.0 peft==0.21.2
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/bin/python" - <<'PYTHON'
import peft
from transformers import BertConfig, BertModel

sizes = dict(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
lora = peft.LoraConfig(r=2, target_modules=["query"])
try:
    BertModel(BertConfig(**sizes)).add_adapter(lora)
except ValueError as error:
    print(f"add_adapter: {error}")
else:
    raise SystemExit("changed: add_adapter works with peft 0.21.2")
print(f"get_peft_model: {type(peft.get_peft_model(BertModel(BertConfig(**sizes)), lora)).__name__}")
PYTHON
