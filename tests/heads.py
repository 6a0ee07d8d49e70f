"""Every likelihood on a small network, with rows whose labels are its own."""

from collections.abc import Callable
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import BertForTokenClassification

import bayes_lora as bl
from bayes_lora.inference import MonteCLoRAGuide
from bayes_lora.models import (
    BayesianLoRA,
    CausalLanguageModel,
    Classification,
    GaussianRegression,
    GeneratedChoice,
    Likelihood,
    MultiLabel,
    MultipleChoice,
    Ordinal,
    StudentTRegression,
    TokenClassification,
)
from tests.networks import build_bert, build_llama

Pair = tuple[BayesianLoRA, MonteCLoRAGuide]

# Likelihoods, and how many outputs their networks have.
HEADS: dict[str, tuple[Callable[[], Likelihood], int]] = {
    "classification": (Classification, 3),
    "known noise": (lambda: GaussianRegression(0.3), 2),
    "learned noise": (lambda: GaussianRegression(0.7, learned=True, num_outputs=2), 2),
    "Student's t": (lambda: StudentTRegression(0.7, 5.0, learned=True, num_outputs=2), 2),
    "one output": (lambda: GaussianRegression(learned=True), 1),
    "multi-label": (MultiLabel, 3),
    "ordinal": (lambda: Ordinal(4), 1),
    "tokens": (lambda: TokenClassification(("O", "B-x", "I-x")), 3),
    "language": (CausalLanguageModel, 50),
    "choice": (lambda: MultipleChoice(per_token=True), 50),
    "written": (lambda: GeneratedChoice(max_new_tokens=2), 50),
}
# Of other networks than classifiers of rows.
_TASK_TYPES = {"tokens": "TOKEN_CLS", "language": "CAUSAL_LM", "choice": "CAUSAL_LM", "written": "CAUSAL_LM"}
# Three options for a row, the last of which some lack.
_OPTIONS = [[[5, 6], [7, -100], [8, 9]], [[5, 6], [7, -100], [-100, -100]], [[5, 6], [7, -100], [8, 9]]]


def build(name: str, seed: int = 0, **config: Any) -> Pair:
    """Model and guide; B is not zero, so that A matters, and the likelihood is away from its start."""
    likelihood, _ = HEADS[name]
    torch.manual_seed(seed)
    task_type = _TASK_TYPES.get(name, "SEQ_CLS")
    targets = ["q_proj", "v_proj"] if task_type == "CAUSAL_LM" else ["query", "value"]
    lora = peft.LoraConfig(task_type=task_type, r=4, target_modules=targets)
    network = peft.get_peft_model(build_base(name), lora).double()
    for parameter_name, parameter in network.named_parameters():
        if "lora_B" in parameter_name:
            nn.init.normal_(parameter, std=0.3)
    settings: dict[str, Any] = {"objective": "elbo", "num_train_examples": None, "sample_scale": 0.2} | config
    model = BayesianLoRA(network, bl.MonteCLoRAConfig(**settings), likelihood().double())
    with torch.no_grad():
        for parameter in model.likelihood.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, MonteCLoRAGuide(model)


def build_base(name: str) -> Any:
    """The base network with a new head."""
    if _TASK_TYPES.get(name) == "CAUSAL_LM":
        return build_llama()
    bert = build_bert(num_labels=HEADS[name][1])
    return BertForTokenClassification(bert.config) if name == "tokens" else bert


def labels_of(name: str, count: int) -> Tensor:
    """Labels of rows, as batches have them."""
    _, num_outputs = HEADS[name]
    generator = torch.Generator().manual_seed(5)
    if name == "classification":
        return torch.randint(0, num_outputs, (count,), generator=generator)
    if name in ("choice", "written"):
        return torch.zeros(count, dtype=torch.long)
    if name == "ordinal":
        return torch.randint(0, 4, (count,), generator=generator)
    if name in _TASK_TYPES:  # of six, the first and the last have none, and some rows have fewer than others
        labels = torch.randint(0, num_outputs, (count, 6), generator=generator)
        labels[:, 0], labels[:, -1] = -100, -100
        labels[::3, 1:4] = -100
        return labels
    if name == "multi-label":
        return torch.randint(0, 2, (count, num_outputs), generator=generator)
    values = torch.randn(count, num_outputs, generator=generator, dtype=torch.double)
    return values.squeeze(-1) if num_outputs == 1 else values


def rows_of(name: str, count: int = 24) -> list[dict[str, Any]]:
    """Rows of six tokens with labels, as a data set has them."""
    tokens = torch.randint(1, 50, (count, 6), generator=torch.Generator().manual_seed(1))
    labels = labels_of(name, count)
    rows = [
        {"input_ids": row.tolist(), "attention_mask": [1] * 6, "labels": label.tolist()}
        for row, label in zip(tokens, labels, strict=True)
    ]
    for column in HEADS[name][0]().batch_columns:
        for number, row in enumerate(rows):
            row[column] = _OPTIONS[number % 3]
    return rows
