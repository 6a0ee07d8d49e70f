"""A Trainer run that puts its posterior on the hub in its environment: `python -m tests.trainer_push_run FOLDER`."""

import json
import sys
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import TrainingArguments

from bayes_lora.inference import SVITrainer, load_posterior
from tests.networks import build_pair
from tests.posteriors import build_base, content, same


def main(folder: Path) -> bool:
    torch.set_num_threads(1)
    tokens = torch.randint(1, 50, (16, 7), generator=torch.Generator().manual_seed(0))
    rows: Any = [{"input_ids": row.tolist(), "attention_mask": [1] * 7, "labels": int(row[0]) % 3} for row in tokens]
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    model, guide = build_pair(peft.get_peft_model(build_base(), lora))
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=2,
        eval_strategy="epoch",
        save_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        push_to_hub=True,
        hub_model_id="tester/trained",
    )
    trainer = SVITrainer(model, guide, arguments, num_samples=2, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    trainer.push_to_hub(language="en", dataset_tags="glue", dataset_args="mrpc", dataset="GLUE MRPC")
    return same(content(*load_posterior(build_base(), "tester/trained")), content(model, guide))


if __name__ == "__main__":
    print("\n" + json.dumps(main(Path(sys.argv[1]))))
