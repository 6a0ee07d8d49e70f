"""Networks whose weights are not all in memory: on the meta device, loaded late, offloaded or sharded."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import init_empty_weights
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForSequenceClassification

import bayes_lora as bl
from bayes_lora.adapters.perturbation import PerturbedLinear
from bayes_lora.errors import AdapterError, UnsupportedAdapterError
from bayes_lora.inference import ItemizedELBO, load_posterior, predict, save_posterior
from bayes_lora.inference.storage.fingerprint import base_fingerprint
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_bert, build_network, build_pair

CONFIG = bl.MonteCLoRAConfig()
QUERY = r"^bert\.encoder\.layer\.0\.attention\.self\.query: "


def lora() -> peft.LoraConfig:
    return peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random BERT on disk."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    build_bert(num_layers=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def posterior(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A posterior of it, whose B is not zero."""
    network = peft.get_peft_model(load(checkpoint), lora())
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return save_posterior(*build_pair(network, sample_scale=0.3), tmp_path_factory.mktemp("posterior") / "posterior")


def load(checkpoint: Path, **options: Any) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(checkpoint, **options)


def on_meta() -> Any:
    with torch.device("meta"):
        return build_bert(num_layers=1)


def empty() -> Any:
    with init_empty_weights():
        return build_bert(num_layers=1)


def adapted_on_meta() -> Any:
    with torch.device("meta"):
        return peft.get_peft_model(build_bert(num_layers=1), lora())


EMPTY: dict[str, Callable[[], Any]] = {
    "get_peft_model, low_cpu_mem_usage": lambda: peft.get_peft_model(build_bert(1), lora(), low_cpu_mem_usage=True),
    "a base on meta": lambda: peft.get_peft_model(on_meta(), lora()),
    "all on meta": adapted_on_meta,
    "init_empty_weights": lambda: peft.get_peft_model(empty(), lora()),
}


@pytest.mark.parametrize("build", EMPTY.values(), ids=EMPTY)
def test_a_lora_a_without_values_is_refused(build: Callable[[], Any]) -> None:
    network = build()
    with pytest.raises(AdapterError, match=QUERY + r"its LoRA-A is on the meta device.*Load the base model with from_"):
        BayesianLoRA(network, CONFIG)
    assert not any(isinstance(module, PerturbedLinear) for module in network.modules())


@pytest.mark.parametrize("name", ["lora_B.default.weight", "modules_to_save.default.bias", "embeddings.weight"])
def test_other_weights_without_values_are_refused(name: str) -> None:
    network = build_network(num_layers=1)
    path = next(path for path, _ in network.named_parameters() if path.endswith(name))
    module, _, attribute = path.rpartition(".")
    setattr(network.get_submodule(module), attribute, nn.Parameter(network.get_parameter(path).to("meta")))
    with pytest.raises(AdapterError, match=rf"^{path} is on the meta device, without values\. Load the network"):
        BayesianLoRA(network, CONFIG)


def test_filled_afterwards(batch: Batch) -> None:
    network = peft.get_peft_model(build_bert(1), lora(), low_cpu_mem_usage=True)
    network.load_state_dict(peft.get_peft_model(build_bert(1), lora()).state_dict(), assign=True)
    model, guide = build_pair(network)
    assert {p.device.type for p in (*model.parameters(), *guide.parameters())} == {"cpu"}
    ItemizedELBO()(model, guide)(**batch).backward()


def test_an_adapter_opened_with_low_cpu_mem_usage(checkpoint: Path, posterior: Path, batch: Batch) -> None:
    logits = []
    for low in (True, False):
        network = peft.PeftModel.from_pretrained(load(checkpoint), str(posterior), low_cpu_mem_usage=low)
        model, guide = build_pair(network, sample_scale=0.3)
        logits.append(predict(model, guide, [batch], num_samples=2).logits)
    assert torch.equal(*logits)


@pytest.mark.shows("sharding", "works", {"low": "`low_cpu_mem_usage`", "map": "`device_map` of one device"})
@pytest.mark.parametrize("options", [{"low_cpu_mem_usage": True}, {"device_map": {"": "cpu"}}], ids=["low", "map"])
def test_a_posterior_on_a_base_loaded_so(
    checkpoint: Path, posterior: Path, batch: Batch, options: dict[str, Any]
) -> None:
    found = predict(*load_posterior(load(checkpoint, **options), posterior), [batch], num_samples=2)
    expected = predict(*load_posterior(load(checkpoint), posterior), [batch], num_samples=2)
    assert torch.equal(found.logits, expected.logits)


@pytest.mark.shows("sharding", "works", "layers without adapters offloaded to disk")
@pytest.mark.shows("sharding", "refused", "layers with adapters offloaded")
def test_layers_without_adapters_may_stay_on_disk(checkpoint: Path, tmp_path: Path, batch: Batch) -> None:
    places = {"bert.embeddings": "disk", "bert.encoder": "cpu", "bert.pooler": "disk", "dropout": "cpu"}
    options: dict[str, Any] = {"device_map": {**places, "classifier": "cpu"}, "offload_folder": str(tmp_path)}

    def outcome(**options: Any) -> list[Tensor]:
        torch.manual_seed(1)
        network = peft.get_peft_model(load(checkpoint, **options), lora())
        torch.manual_seed(2)
        for parameter in network.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.3)
        model, guide = build_pair(network, sample_scale=0.3)
        loss = ItemizedELBO().differentiable_loss(model, guide, **batch)
        loss.backward()
        trained = [p.grad for p in (*model.parameters(), *guide.parameters()) if p.grad is not None]
        assert len(trained) == 6
        return [loss.detach(), predict(model, guide, [batch], num_samples=2).logits, *trained]

    torch.testing.assert_close(outcome(**options), outcome(), rtol=0, atol=0)
    options["device_map"]["bert.encoder"] = "disk"
    network = peft.get_peft_model(load(checkpoint, **options), lora())
    with pytest.raises(AdapterError, match=QUERY + r"its LoRA-A is on the meta device.*without offloading layers that"):
        BayesianLoRA(network, CONFIG)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """A device mesh of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.shows("sharding", "refused", "FSDP 2 (`fully_shard`), and other sharded LoRA-A")
@pytest.mark.parametrize("part", ["", "bert.encoder.layer.0", "query", "query.lora_A.default"])
def test_sharded_adapters_are_refused(mesh: Any, part: str) -> None:
    network = build_network(num_layers=1)
    fully_shard(next(module for path, module in network.named_modules() if path.endswith(part)), mesh=mesh)
    with pytest.raises(
        UnsupportedAdapterError, match=QUERY + r"its LoRA-A is not one whole parameter but a DTensor of"
    ):
        BayesianLoRA(network, CONFIG)


@pytest.mark.shows("sharding", "refused", "FSDP 1 (flattened parameters)")
def test_flattened_adapters_are_refused() -> None:
    network = build_network(num_layers=1)
    linear = network.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.default")
    linear.weight = nn.Parameter(linear.weight.detach().reshape(-1))  # as FSDP does with use_orig_params
    with pytest.raises(UnsupportedAdapterError, match=QUERY + r"its LoRA-A is not one whole .* of shape \(64,\): FSDP"):
        BayesianLoRA(network, CONFIG)


def test_a_posterior_is_not_loaded_onto_weights_without_values(tmp_path: Path) -> None:
    model, guide = build_pair()
    save_posterior(model, guide, tmp_path / "posterior")
    with torch.device("meta"):
        empty = build_bert()
    with pytest.raises(AdapterError, match="is on the meta device, without values"):
        load_posterior(empty, tmp_path / "posterior")
    with pytest.raises(AdapterError, match="so the base model cannot be told from another one"):
        base_fingerprint(empty)
