"""Opens a saved posterior with PEFT alone, in a process that never sees this library.

    python tests/peft_alone.py BASE FOLDER BATCH OUTPUT

writes the logits of the adapter, and those of the adapter merged into its base, to OUTPUT.
"""

import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

base, folder, batch, output = sys.argv[1:]
torch.set_num_threads(1)
network = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
network = PeftModel.from_pretrained(network, folder).eval()
with torch.no_grad():
    found = {"adapter": network(**load_file(batch)).logits}
    found["merged"] = network.merge_and_unload()(**load_file(batch)).logits
save_file(found, output)
if any(name.partition(".")[0] in ("bayes_lora", "pyro") for name in sys.modules):
    raise SystemExit("this process was not to import bayes_lora")
