"""Counts on the meta device against what PEFT, the guide and the allocator have."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import bayes_lora as bl
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.bench.memory import watched
from bayes_lora.experiments.plan.planning import Batch, meta_network, plan, read_shape, shape_names
from bayes_lora.inference import MonteCLoRAGuide
from bayes_lora.inference.finetuning.lora import LoRAOptions
from bayes_lora.models import BayesianLoRA, CausalLanguageModel
from tests.experiments.commands import run

# As their publishers count them.
PUBLISHED = {
    "llama-1-7b": 6_738_415_616,
    "llama-3.2-3b": 3_212_749_824,
    "llama-70b": 68_976_648_192,
    "qwen-14b": 14_770_033_664,
}
ONE = Batch(rows=1, length=8)


def at_depth(name: str, depth: int, **changes: Any) -> dict[str, Any]:
    return {**read_shape(name), "num_hidden_layers": depth, **changes}


def test_every_shape_has_a_count() -> None:
    assert shape_names() == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_counts_are_those_of_a_peft_model(name: str) -> None:
    shape = read_shape(name)
    found = plan(shape, LoRAOptions(rank=32, targets="q_proj,k_proj,v_proj"), bl.MonteCLoRAConfig(), ONE, devices=8)
    assert found.parameters == PUBLISHED[name]
    options = {key: value for key, value in shape.items() if key != "model_type"}
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape["model_type"], **options))
        lora = peft.LoraConfig(task_type="CAUSAL_LM", r=32, target_modules=["q_proj", "k_proj", "v_proj"])
        network = peft.get_peft_model(base, lora)
    trainable, everything = network.get_nb_trainable_parameters()
    assert (found.trainable, found.parameters + found.trainable) == (trainable, everything)
    depth, width = shape["num_hidden_layers"], shape["hidden_size"]
    assert found.adapters == 3 * depth
    assert found.noise == 3 * depth * 32 * width
    assert found.posterior == 3 * depth * (32 + bl.MonteCLoRAConfig().num_components)
    # In bf16 weights are two bytes; each of eight devices has an eighth of them, and the noise whole.
    assert found.ddp.weights == 2 * found.parameters
    assert found.fsdp.weights == found.parameters // 4
    assert found.fsdp.noise == found.ddp.noise == 4 * found.noise


@pytest.mark.parametrize("sampler", ["collapsed", "explicit"])
def test_noise_is_what_the_allocator_sees(sampler: str) -> None:
    shape = at_depth("llama-1-7b", 1, vocab_size=64, intermediate_size=64)
    lora, config = LoRAOptions(rank=32), bl.MonteCLoRAConfig(num_components=3, sampler=sampler)  # type: ignore[arg-type]
    found = plan(shape, lora, config, ONE, dtype="fp32")
    with torch.device("meta"):
        base, _ = meta_network(shape, lora, "fp32")
    network = base.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    model = BayesianLoRA(network, config, CausalLanguageModel())
    guide = MonteCLoRAGuide(model)
    assert sum(parameter.numel() for parameter in guide.parameters()) == found.posterior
    with torch.no_grad():
        guide()  # what is made once
        _, held, peak = watched(lambda: guide())
    assert held == pytest.approx(found.ddp.noise, rel=0.05)
    assert peak <= 2.1 * found.ddp.noise


def test_activations_grow_with_rows_and_layers() -> None:
    def activations(depth: int, rows: int, *, checkpointing: bool = False) -> int:
        shape = at_depth("llama-1-7b", depth, vocab_size=96)
        batch = Batch(rows, 64, checkpointing)
        return plan(shape, LoRAOptions(), bl.MonteCLoRAConfig(), batch).ddp.activations

    one, two, three = (activations(depth, 2) for depth in (1, 2, 3))
    assert three - two == pytest.approx(two - one, rel=1e-6)
    assert activations(2, 4) == pytest.approx(2 * two, rel=1e-3)
    assert activations(8, 2, checkpointing=True) < activations(8, 2) / 4


def test_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(at_depth("qwen-14b", 2)))
    done = run("plan", "--model-config", path, "--rank", 4, "--devices", 2, "--batch", 2, "--length", 16)
    assert "6 adapters" in done.stdout
    found = json.loads(run("plan", "--model-config", path, "--rank", 4, "--json", "--length", 16).stdout)
    parts = dict(found["ddp"])
    assert parts.pop("total") == sum(parts.values())


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_shape(str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="has no model_type"):
        read_shape(str(tmp_path / "config.json"))
    with pytest.raises(ConfigurationError, match="of no causal language model"):
        meta_network({"model_type": "vit"}, LoRAOptions())
