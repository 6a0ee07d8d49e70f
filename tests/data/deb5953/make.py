"""Runs, posteriors, checkpoints and a study of the build whose commit names this folder, and how they were made.

    git worktree add BUILD deb5953
    cd BUILD && OMP_NUM_THREADS=1 PYTHONPATH=BUILD python .../tests/data/deb5953/make.py

with a Python that has the packages of `about.json` writes `files.tar.xz` and `about.json`. A later build refuses to:
that the files are old is the point of them. `tests/test_compatibility.py` opens them with today's. Everything is done
in one folder, PLACE, and whatever takes a path is given a relative one; where the old build made it a full one, PLACE
is what stands in the files.
"""

import csv
import gzip
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peft
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    BertTokenizer,
    TrainingArguments,
)

import bayes_lora as bl
from bayes_lora.inference import MonteCLoRAGuide, SVITrainer, predict, save_posterior
from bayes_lora.models import BayesianLoRA

COMMIT = "deb5953"
HERE, PLACE = Path(__file__).parent, Path("/tmp/bayes_lora_fixture")

# Both relative to the folder of the files.
ROWS_FILE, TRAINER_FOLDER = Path("rows.csv"), Path("trainer")
POSTERIORS: dict[str, dict[str, Any]] = {
    "paper-dense": {"num_outer_samples": 2},
    "paper-sparse": {"mixture": "sparse", "sampler": "explicit"},
    "elbo-dense": {"objective": "elbo", "num_train_examples": 16},
    "elbo-sparse": {"objective": "elbo", "num_train_examples": 16, "mixture": "sparse"},
}
# 21 rows to train on: 6 steps an epoch, and a checkpoint amid the second one.
FIT = [
    *("fit", "--train-file", str(ROWS_FILE), "--text-columns", "first,second", "--label-column", "bird"),
    *("--base-model", "base", "--rank", "2", "--targets", "query,value", "--lora-dropout", "0.1", "--lr", "2e-2"),
    *("--sample-scale", "0.2", "--epochs", "4", "--batch-size", "4", "--save-every", "8", "--num-samples", "4"),
    *("--max-length", "16", "--seed", "3", "--device", "cpu"),
]
OF_STUDY = [
    *("compare", "--task", "mrpc", "--data-dir", "data", "--base-model", "base", "--rank", "2"),
    *("--targets", "query,value", "--epochs", "6", "--batch-size", "8", "--lr", "2e-2", "--held-out", "0.2"),
    *("--num-samples", "4", "--max-length", "16", "--device", "cpu"),
]
_METHODS = "map,temperature,laplace,swag,blob,monteclora[sample_scale=0.1]"
STUDY = [*OF_STUDY, "--seeds", "0", "--methods", _METHODS]
# What may be asked of the same study later: another method, and another seed.
GROWN = [*OF_STUDY, "--seeds", "0,1", "--methods", f"{_METHODS},mc_dropout"]

_BEASTS, _BIRDS = ("fox", "bear", "wolf"), ("owl", "crow", "hen")
_COLOURS = ("red", "blue", "grey", "white")
_PLACES = ("wood", "barn", "river", "field")
_DEEDS = ("sleeps", "runs", "waits", "sings")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORDS = (*_SPECIAL, "a", "in", "the", *_BEASTS, *_BIRDS, *_COLOURS, *_PLACES, *_DEEDS)


def environment() -> dict[str, Any]:
    """What the last bits of a number on the CPU depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    first = dict(line.replace("\t", "").split(":", 1) for line in text.partition("\n\n")[0].splitlines())
    return {
        "processor": [first.get(key, "").strip() for key in ("model name", "cpu family", "model")],
        "system": [platform.system(), platform.machine()],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in ("torch", "numpy", "pyro-ppl", "transformers", "peft")},
    }


def network(dropout: float = 0.0) -> Any:
    """The base model in the folder "base", with a new head for two classes."""
    return AutoModelForSequenceClassification.from_pretrained(
        "base", num_labels=2, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )


def pair(dropout: float = 0.0, **config: Any) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
    """Model and guide away from their start, with two ranks."""
    torch.manual_seed(0)
    lora = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=["query", "value"], rank_pattern={"query": 3}
    )
    wrapped = peft.get_peft_model(network(dropout), lora)
    model = BayesianLoRA(wrapped, bl.MonteCLoRAConfig(**{"sample_scale": 0.3, "num_components": 3, **config}))
    guide = MonteCLoRAGuide(model)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        for parameter in guide.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval(), guide


def token_rows() -> list[dict[str, Any]]:
    """16 rows of seven tokens; the class is whether the first one is odd."""
    rows = [[2, *(5 + (7 * row + 3 * place + row * place) % 20 for place in range(5)), 3] for row in range(16)]
    return [{"input_ids": row, "attention_mask": [1] * 7, "labels": row[1] % 2} for row in rows]


def batches() -> Iterator[dict[str, Tensor]]:
    """Those rows in two batches."""
    rows = token_rows()
    for half in (rows[:8], rows[8:]):
        yield {name: torch.tensor([row[name] for row in half]) for name in half[0]}


def trainer(folder: Path) -> SVITrainer:
    """Nine steps, a checkpoint after four; there are two steps in an epoch."""
    model, guide = pair(dropout=0.1, kl_weight=0.01)
    arguments = TrainingArguments(
        str(folder),
        max_steps=9,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
        save_steps=4,
        save_total_limit=3,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    return SVITrainer(model, guide, arguments, train_dataset=token_rows())


def trained(of: SVITrainer) -> dict[str, Tensor]:
    """All that it trains."""
    return {name: value.detach().clone().contiguous() for name, value in of.svi.state_dict().items()}


def stored_logits(study: Path) -> dict[str, Tensor]:
    """(sample, example, class), by method and seed, of the rows that a study is about."""
    found = {}
    for path in sorted((study / "predictions").glob("*/*-evaluated.parquet")):
        rows = torch.tensor(pq.read_table(path)["logits"].to_pylist(), dtype=torch.float32)
        found[f"{path.parent.name}/{path.stem}"] = rows.transpose(0, 1).contiguous()
    return found


def main() -> None:
    """Make all fixtures, and copy them here."""
    _check_build()
    PLACE.mkdir()  # an older one is in the way
    os.chdir(PLACE)
    torch.set_num_threads(1)
    _write_base()
    _write_rows()
    _make_posteriors()
    _make_trainer()
    _run([*FIT, "--out", "run"])
    _run(["predict", "run", "--device", "cpu", "--output", "predicted.jsonl"])
    _run([*FIT, "--out", "interrupted"], killed_at="checkpoint-16")
    _run([*STUDY, "--out", "study"])
    # Again from what was trained: a Laplace posterior that was saved differs in its last bit from one that was not.
    shutil.rmtree("study/predictions")
    _run([*STUDY, "--out", "study"])
    shutil.copytree("study", "grown")
    _run([*GROWN, "--out", "grown"])
    _drop_what_need_not_be_kept()
    with tarfile.open(HERE / "files.tar.xz", "w:xz", preset=9) as archive:
        archive.add(".", filter=_anonymous)
    about = {"commit": COMMIT, "python": platform.python_version(), **environment()}
    (HERE / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(PLACE)


def _check_build() -> None:
    root = Path(bl.__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if not found.startswith(COMMIT):
        raise SystemExit(f"bayes_lora is {root} at {found.strip()}. Check {COMMIT} out, and put it in PYTHONPATH.")


def _run(arguments: list[str], killed_at: str | None = None) -> None:
    """The command line of the old build; killed when it first opens a file in the checkpoint of that name."""
    lines = ["from bayes_lora.experiments.cli import main", "main()"]
    if killed_at is not None:
        lines = [
            "import os, signal, sys",
            "def watch(event, arguments):",
            f"    if event == 'open' and {killed_at!r} in str(arguments[0]):",
            "        os.kill(os.getpid(), signal.SIGKILL)",
            "sys.addaudithook(watch)",
            *lines,
        ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines), *arguments], check=killed_at is None)
    assert killed_at is None or done.returncode == -9, done


def _write_base() -> None:
    torch.manual_seed(0)
    BertTokenizer({word: index for index, word in enumerate(_WORDS)}, model_max_length=24).save_pretrained("base")
    config = BertConfig(
        vocab_size=len(_WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=24,
        initializer_range=0.3,  # else every row is the same to so small a network
    )
    BertModel(config).save_pretrained("base")


def _write_rows() -> None:
    """Pairs of sentences; the class is whether the first one is about a bird."""
    generator = torch.Generator().manual_seed(0)

    def any_of(words: tuple[str, ...]) -> str:
        return words[int(torch.randint(len(words), (), generator=generator))]

    def sentence(animals: tuple[str, ...]) -> str:
        return f"a {any_of(_COLOURS)} {any_of(animals)} {any_of(_DEEDS)} in the {any_of(_PLACES)}"

    kinds = (_BEASTS, _BIRDS)
    rows = [(sentence(kinds[index % 2]), sentence(_BEASTS + _BIRDS), index % 2) for index in range(24)]
    with ROWS_FILE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("first", "second", "bird"))
        writer.writerows((first, second, "yes" if bird else "no") for first, second, bird in rows)
    folder = Path("data/mrpc")
    folder.mkdir(parents=True)
    for split, part in (("train", rows[:20]), ("validation", rows[20:])):
        lines = [json.dumps(dict(zip(("sentence1", "sentence2", "label"), row, strict=True))) + "\n" for row in part]
        (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def _make_posteriors() -> None:
    found = {}
    for name, config in POSTERIORS.items():
        model, guide = pair(**config)
        save_posterior(model, guide, Path("posteriors") / name)
        found[f"{name}.drawn"] = predict(model, guide, batches(), num_samples=4, seed=0).logits
        found[f"{name}.mean"] = predict(model, guide, batches(), at_mean=True).logits
    save_file({name: value.contiguous() for name, value in found.items()}, "posteriors/logits.safetensors")


def _make_trainer() -> None:
    """A checkpoint, and what all nine steps end with."""
    whole = trainer(TRAINER_FOLDER)
    whole.train()
    save_file(trained(whole), TRAINER_FOLDER / "end.safetensors")
    for later in ("checkpoint-8", "checkpoint-9"):
        shutil.rmtree(TRAINER_FOLDER / later, ignore_errors=True)


def _drop_what_need_not_be_kept() -> None:
    """What every command writes anew, and of the grown study all but what it predicted.

    The checkpoints of its point estimate are for other methods than these.
    """
    logits = stored_logits(Path("grown"))
    shutil.rmtree("grown")
    save_file(logits, "grown.safetensors")
    shutil.rmtree("study/trained/map/seed-0/checkpoints")
    for path in Path("study").iterdir():
        if path.is_file() and path.name not in ("study.json", "sessions.json"):
            path.unlink()


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without its owner."""
    return member.replace(uid=0, gid=0, uname="", gname="", deep=False)


if __name__ == "__main__":
    main()
