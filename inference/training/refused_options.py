"""Options of the Trainer under which an `SVITrainer` would not do what they say."""

import os
from typing import Any

from transformers import TrainingArguments

from bayes_lora.errors import ConfigurationError


def refuse_unsupported(args: TrainingArguments | None, given: dict[str, Any]) -> None:
    """Raise for what would train something else than the objective, or nothing."""
    sharded = {
        "FSDP": getattr(args, "fsdp", None) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true",
        "DeepSpeed": getattr(args, "deepspeed", None)
        or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true",
    }
    for name, found in sharded.items():
        if found:
            raise ConfigurationError(
                f"{name} is not supported: it keeps a part of each weight on each process, while noise is added to "
                "whole LoRA-A matrices, and the ELBO reads them outside the network's forward pass. Use one process "
                f"per GPU without {name} (torchrun or accelerate launch), with a 4-bit base if it is too large."
            )
    if getattr(args, "label_smoothing_factor", 0.0) != 0:
        raise ConfigurationError(
            "label_smoothing_factor changes the loss outside the model, which would no longer be the ELBO. Drop it."
        )
    if given.get("compute_loss_func") is not None:
        raise ConfigurationError(
            "compute_loss_func would replace the ELBO. Pass a likelihood of your own to BayesianLoRA instead."
        )
    if getattr(args, "batch_eval_metrics", False):
        raise ConfigurationError("batch_eval_metrics is not supported: metrics are of all predictions. Drop it.")
    if given.get("preprocess_logits_for_metrics") is not None:
        raise ConfigurationError(
            "preprocess_logits_for_metrics is not supported: there are no logits, but the posterior predictive's log "
            "probabilities, (example, class). Do it in compute_metrics."
        )
