"""Saving and loading a Laplace posterior, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from bayes_lora.errors import (
    AdapterError,
    ConfigurationError,
    DataError,
    LikelihoodError,
    NonFiniteLossError,
    PosteriorFileError,
    RunExistsError,
    UnsupportedAdapterError,
)
from bayes_lora.inference.predictors.laplace import (
    LaplaceOptions,
    LaplacePredictor,
    fit_laplace,
    load_laplace,
    save_laplace,
)
from bayes_lora.inference.predictors.laplace.linears import find_head, select_linears
from tests.inference.predictors.laplace.dense import without_labels
from tests.networks import Batch, build_bank, build_bert, build_network

OPTIONS = [
    LaplaceOptions(),
    LaplaceOptions("all_and_head", "kfac_expand", max_rank=3),
    LaplaceOptions("last_layer", "diagonal", head="classifier"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=["kfac", "low rank", "diagonal"])
def test_what_was_saved_is_loaded(tmp_path: Path, batch: Batch, options: LaplaceOptions) -> None:
    network = build_network()
    posterior = fit_laplace(network, [batch], options).with_prior_precision(0.37)
    path = save_laplace(posterior, tmp_path / "new" / "laplace.safetensors")
    loaded = load_laplace(build_network(), path)
    assert (loaded.options, loaded.prior_precision, loaded.num_rows) == (options, 0.37, 5)
    assert loaded.log_likelihood == posterior.log_likelihood
    assert list(loaded.blocks) == list(posterior.blocks)
    assert torch.equal(loaded.log_marginal_likelihood(), posterior.log_marginal_likelihood())
    expected = LaplacePredictor(network, posterior)([batch], num_samples=3).logits
    logits = LaplacePredictor(network, loaded)([batch], num_samples=3).logits
    # Where a tensor lies in memory decides on some processors in which order a product is summed.
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture
def saved(tmp_path: Path, batch: Batch) -> Path:
    return save_laplace(fit_laplace(build_network(), [batch]), tmp_path / "laplace.safetensors")


def test_a_file_is_not_overwritten_unasked(saved: Path, batch: Batch) -> None:
    posterior = load_laplace(build_network(), saved).with_prior_precision(5.0)
    with pytest.raises(RunExistsError, match=r"exists already.*overwrite=True"):
        save_laplace(posterior, saved)
    save_laplace(posterior, saved, overwrite=True)
    assert load_laplace(build_network(), saved).prior_precision == 5.0
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("position", [0.05, 0.5, 0.999])
def test_a_damaged_byte_is_refused(saved: Path, position: float) -> None:
    data = bytearray(saved.read_bytes())
    data[int(position * len(data))] ^= 0x10
    saved.write_bytes(data)
    with pytest.raises(PosteriorFileError, match=r"Save the posterior again|does not fit"):
        load_laplace(build_network(), saved)


def test_a_file_cut_short_missing_or_strange_is_refused(saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[:-100])
    with pytest.raises(PosteriorFileError, match="cannot be read as a safetensors file"):
        load_laplace(build_network(), saved)
    with pytest.raises(PosteriorFileError, match="is missing"):
        load_laplace(build_network(), tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(PosteriorFileError, match="is not a file that save_laplace wrote"):
        load_laplace(build_network(), tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("prior_precision", 9.0, "does not have the checksum"),
        ("linears", [], "does not have the checksum"),
        ("schema_version", 2, "has schema version 2, this library reads 1"),
    ],
)
def test_an_edited_description_is_refused(saved: Path, key: str, value: object, message: str) -> None:
    with safe_open(saved, "pt") as file:
        description = json.loads(file.metadata()["laplace"])
    save_file(load_file(saved), saved, metadata={"laplace": json.dumps({**description, key: value})})
    with pytest.raises(PosteriorFileError, match=message):
        load_laplace(build_network(), saved)


def test_a_posterior_of_another_network_is_refused(saved: Path, batch: Batch) -> None:
    with pytest.raises(PosteriorFileError, match=r"does not fit this PeftModel.*: they differ in .*lora_A"):
        load_laplace(build_network(r=2), saved)
    with pytest.raises(PosteriorFileError, match="does not fit"):
        load_laplace(build_network(target_modules=["query"]), saved)
    with pytest.raises(PosteriorFileError, match=r"query\.lora_A\.default has other weights"):
        load_laplace(build_network(seed=1), saved)
    network = build_network()
    predictor = LaplacePredictor(network, load_laplace(network, saved))
    with torch.no_grad():
        select_linears(network, "all")[3].module.weight.mul_(1.01)
    with pytest.raises(PosteriorFileError, match=r"value\.lora_B\.default has other weights.*fit again"):
        predictor([batch])


def test_the_head_is_the_last_linear_in_use() -> None:
    network = build_network()
    head = find_head(network)
    assert (head.name, head.shape) == ("classifier", (3, 17))
    assert head.module is network.base_model.model.classifier.modules_to_save["default"]
    assert find_head(network, "classifier").module is head.module
    assert find_head(build_bert(), "bert.pooler.dense").name == "bert.pooler.dense"


def test_a_missing_head_is_an_error_with_a_way_out(batch: Batch) -> None:
    with pytest.raises(ConfigurationError, match=r"head='clasifier' names no Linear .*pooler\.dense, classifier"):
        fit_laplace(build_network(), [batch], LaplaceOptions("last_layer", head="clasifier"))
    with pytest.raises(ConfigurationError, match=r"no last layer to take\. Use LaplaceOptions\(parameters='all'\)"):
        find_head(nn.Sequential(nn.ReLU()))
    with pytest.raises(ConfigurationError, match=r"bert\.pooler\.dense, has 16 outputs .* 3 classes.*head="):
        fit_laplace(build_network(), [batch], LaplaceOptions("last_layer", head="bert.pooler.dense"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameters": "some"}, "parameters='some' is none of 'all', 'all_and_head', 'last_layer'"),
        ({"structure": "kfac"}, "structure='kfac' is none of"),
        ({"max_rank": 0}, "max_rank=0 must be an integer >= 1"),
        ({"structure": "diagonal", "max_rank": 4}, "max_rank=4 belongs to the Kronecker factors"),
        ({"head": "classifier"}, "parameters='all' leaves the head out"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LaplaceOptions(**options)  # type: ignore[arg-type]


def test_adapters_that_are_not_in_use_are_refused(batch: Batch) -> None:
    network = build_network()
    network.base_model.disable_adapter_layers()
    with pytest.raises(AdapterError, match=r"adapters are disabled"):
        fit_laplace(network, [batch])
    with pytest.raises(AdapterError, match=r"no LoRA Linear found in BertForSequenceClassification"):
        fit_laplace(build_bert(), [batch])
    with pytest.raises(UnsupportedAdapterError, match="DoRA"):
        fit_laplace(build_network(use_dora=True), [batch])
    with pytest.raises(UnsupportedAdapterError, match="leave embeddings out of target_modules"):
        fit_laplace(build_network(target_modules=["query", "word_embeddings"]), [batch])


def test_a_linear_that_is_never_called_is_an_error(batch: Batch) -> None:
    network = build_network()
    layer = network.base_model.model.bert.encoder.layer[1].attention.self.query
    layer.forward = layer.base_layer.forward
    with pytest.raises(AdapterError, match=r"layer\.1\.attention\.self\.query\.lora_A\.default was not called"):
        fit_laplace(network, [batch])


def test_a_shared_weight_is_refused() -> None:
    network = build_bank([4, 4], 2)
    layers = network.base_model.model.layers
    layers[1].lora_A["default"].weight = layers[0].lora_A["default"].weight
    with pytest.raises(UnsupportedAdapterError, match=r"layers\.0\.lora_A\.default and layers\.1\.lora_A\.default"):
        select_linears(network, "all")


def test_rows_that_cannot_be_fitted(batch: Batch) -> None:
    network = build_network()
    with pytest.raises(DataError, match="the loader has no batches"):
        fit_laplace(network, [])
    with pytest.raises(DataError, match="a training batch has no labels"):
        fit_laplace(network, [without_labels(batch)])
    with pytest.raises(LikelihoodError, match=r"labels run from 0 to 3, but there are 3 classes"):
        fit_laplace(network, [{**batch, "labels": torch.tensor([0, 1, 2, 3, 0])}])


def test_one_output_is_a_regression_head(batch: Batch) -> None:
    torch.manual_seed(0)
    with pytest.raises(LikelihoodError, match="regression head"):
        fit_laplace(build_bert(num_labels=1), [batch], LaplaceOptions("last_layer"))


@pytest.mark.parametrize("structure", ["kfac_reduce", "diagonal"])
def test_nan_is_named(batch: Batch, structure: str) -> None:
    network = build_network()
    first = select_linears(network, "all")[0].module.weight
    value = first[0, 0].item()
    with torch.no_grad():
        first[0, 0] = float("nan")
    with pytest.raises(NonFiniteLossError, match="the logits: NaN or infinite"):
        fit_laplace(network, [batch], LaplaceOptions(structure=structure))
    with torch.no_grad():
        first[0, 0] = value
    layer = network.base_model.model.bert.encoder.layer[0].attention.self.query
    handle = layer.register_forward_hook(lambda _m, _a, output: (output.register_hook(lambda g: g / 0), output)[1])
    with pytest.raises(NonFiniteLossError, match=r"the gradients at bert\.encoder\.layer\.0\..*query\.lora_A\.default"):
        fit_laplace(network, [batch], LaplaceOptions(structure=structure))
    handle.remove()
