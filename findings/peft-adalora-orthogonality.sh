#!/usr/bin/env bash
# peft 0.21.2: AdaLoRA adds the distance of its A and B from orthogonal matrices to `outputs.loss`, so only where the
# network itself is given labels. A loss that is made of the logits lacks it, without a word: one's own, or that of
# transformers' Trainer with label smoothing, which takes the labels out of the inputs.
#
# Seen on a random BERT: loss with labels 13.3, of the same logits outside 1.1, of the Trainer with label smoothing 1.1
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0
"$folder/bin/pip" install --quiet peft==0.21.2 transformers==5.23.0 accelerate
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/bin/python" -W ignore - <<'PYTHON'
import torch
from peft import AdaLoraConfig, TaskType, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

torch.manual_seed(0)
config = BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_labels=3,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)
adapters = AdaLoraConfig(
    task_type=TaskType.SEQ_CLS, init_r=6, target_r=4, total_step=10, target_modules=["query", "value"],
    orth_reg_weight=5.0,
)
network = get_peft_model(BertForSequenceClassification(config), adapters)
batch = {"input_ids": torch.randint(1, 50, (8, 12)), "labels": torch.arange(8) % 3}
given_labels = network(**batch).loss.item()
logits = network(input_ids=batch["input_ids"]).logits
outside = torch.nn.functional.cross_entropy(logits, batch["labels"]).item()
arguments = TrainingArguments("out", label_smoothing_factor=1e-6, report_to="none", use_cpu=True)
smoothed = Trainer(network, arguments).compute_loss(network, dict(batch)).item()
print(
    f"loss with labels {given_labels:.3g}, of the same logits outside {outside:.3g}, of the Trainer with label smoothing "
    f"{smoothed:.3g}"
)
if not (given_labels - outside > 1 and abs(smoothed - outside) < 1e-3):
    raise SystemExit("changed: the orthogonality is in every loss, or in none")
PYTHON
