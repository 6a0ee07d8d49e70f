"""What was damaged, edited, mixed or made for something else is refused by name, or loads as what it was."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainingArguments

from bayes_lora.errors import BayesLoRAError, CheckpointFileError, PosteriorFileError
from bayes_lora.files import JSON_LIMIT
from bayes_lora.inference import SVITrainer, load_posterior
from bayes_lora.inference.storage.checkpoints import SEAL_FILE, newest_whole, require_whole
from bayes_lora.inference.storage.posterior_files import SavedGuide, write_description
from tests.networks import build_bert, build_network, build_pair, make_batch
from tests.posteriors import FILES, build_base, build_saved, content, same

TRUNCATIONS, FLIPS = 20, 40
CHECKPOINT_FILES = [
    *("complete.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"),
    "training_args.bin",
]
Saved = tuple[Path, dict[str, Tensor]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A posterior's folder, which tests leave as it is, and its content."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    return folder, content(*build_saved(folder, sample_scale=0.2, init_concentration=0.7))


@pytest.fixture
def folder(saved: Saved, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(saved[0], tmp_path / "run"))


def damages(whole: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    """The content cut short at sampled lengths, and with another byte at sampled positions."""
    rng = random.Random(seed)
    for length in rng.sample(range(len(whole)), TRUNCATIONS):
        yield f"cut to {length} bytes", whole[:length]
    for position in rng.sample(range(len(whole)), FLIPS):
        damaged = bytearray(whole)
        damaged[position] ^= rng.randint(1, 255)
        yield f"byte {position} is {damaged[position]}", bytes(damaged)


def outcome(folder: Path) -> dict[str, Tensor] | str:
    """What a folder loads as, or the error by which it is refused."""
    try:
        return content(*load_posterior(build_base(), folder))
    except BayesLoRAError as error:
        return str(error)


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_damage_loads_as_another_model(saved: Saved, folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    num_refused = 0
    for what, damaged in damages(whole, seed=sorted(FILES).index(name)):
        (folder / name).write_bytes(damaged)
        found = outcome(folder)
        assert str(folder / name) in found if isinstance(found, str) else same(found, saved[1]), what
        num_refused += isinstance(found, str)
    # The card is for people, and nothing is read from it. In a JSON file, a space may become a line break.
    assert num_refused == 0 if name == "README.md" else num_refused >= TRUNCATIONS + FLIPS - 2


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "posterior.safetensors"])
def test_without_checksums_damage_would_load_as_another_model(saved: Saved, folder: Path, name: str) -> None:
    """The sweep above can fail: with checksums made to fit, it meets wrong models."""
    whole, wrong = (folder / name).read_bytes(), 0
    for _, damaged in damages(whole, seed=5):
        (folder / name).write_bytes(damaged)
        seal_again(folder)
        try:
            wrong += not same(content(*load_posterior(build_base(), folder)), saved[1])
        except Exception:  # whatever PEFT and safetensors make of it
            continue
    assert wrong > 0


def test_without_its_checksum_an_edited_adapter_config_would_load_as_another_model(saved: Saved, folder: Path) -> None:
    path = folder / "adapter_config.json"
    edited = path.read_text(encoding="utf-8").replace('"lora_alpha": 8', '"lora_alpha": 9')
    path.write_text(edited, encoding="utf-8")
    with pytest.raises(
        PosteriorFileError, match=r"adapter_config\.json does not have the checksum in bayes_lora\.json"
    ):
        load_posterior(build_base(), folder)
    seal_again(folder)
    assert not same(content(*load_posterior(build_base(), folder)), saved[1])


def described(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "bayes_lora.json").read_text(encoding="utf-8"))
    return found


def seal_again(folder: Path, **changes: Any) -> None:
    """Make the checksums fit what the files now are, as whoever edits them on purpose would."""
    description = described(folder) | changes
    config, adapters, base = (description[name] for name in ("config", "adapters", "base_fingerprint"))
    write_description(folder, config, adapters, base, SavedGuide(**description["guide"]))


def edit(**changes: Any) -> Callable[[Path], object]:
    """Change entries of bayes_lora.json and nothing else; None takes one out."""

    def apply(folder: Path) -> None:
        description = {name: value for name, value in (described(folder) | changes).items() if value is not None}
        (folder / "bayes_lora.json").write_text(json.dumps(description), encoding="utf-8")

    return apply


def configure(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: seal_again(folder, config=described(folder)["config"] | changes)


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def grow(name: str, size: int) -> Callable[[Path], object]:
    """Make a file so large, at no cost on the disk, that reading it would be felt."""

    def apply(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.truncate(size)

    return apply


def tensors(name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], object]:
    """Change the tensors of a file, with all checksums in order."""

    def apply(folder: Path) -> None:
        save_file(change(load_file(folder / name)), folder / name, metadata={"format": "pt"})
        seal_again(folder)

    return apply


def of_another_rank(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"scale_r2_unconstrained": torch.zeros(2, 3, dtype=torch.double)}


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("layer.0", "layers.0"): value for name, value in state.items()}


ADAPTER, POSTERIOR, DESCRIPTION = "adapter_model.safetensors", "posterior.safetensors", "bayes_lora.json"
CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no description": (remove(DESCRIPTION), r"bayes_lora\.json is missing: .* is not a folder that save_posterior"),
    "no posterior": (remove(POSTERIOR), r"posterior\.safetensors is missing: .* is not whole\. Save the posterior"),
    "no adapter config": (remove("adapter_config.json"), r"adapter_config\.json is missing: .* is not whole"),
    "no adapter": (remove(ADAPTER), r"adapter_model\.safetensors is missing: .* is not whole"),
    "description is text": (write(DESCRIPTION, "{'a'}"), r"bayes_lora\.json cannot be read as JSON .*was damaged"),
    "description is a list": (write(DESCRIPTION, "[1]"), r"bayes_lora\.json lacks some of \['adapters', 'base_f.*"),
    "description nests": (write(DESCRIPTION, "[" * 100_000), r"as JSON \(it is nested too deeply\): it was damaged"),
    "description is huge": (grow(DESCRIPTION, 2**40), r"as JSON \(it has more than 16,777,216 bytes\)"),
    "posterior is huge": (grow(POSTERIOR, 2**40), r"posterior\.safetensors has 1,099,511,627,776 bytes where bayes_l"),
    "adapter is huge": (grow(ADAPTER, 2**40), r"adapter_model\.safetensors has 1,099,511,627,776 bytes where bayes_"),
    "edited adapter config": (write("adapter_config.json", "{}"), r"adapter_config\.json has 2 bytes where bayes_lora"),
    "description lacks a key": (edit(adapters=None), r"bayes_lora\.json lacks some of .*: it was damaged or edited"),
    "edited description": (edit(adapters=["a"]), r"bayes_lora\.json does not have the checksum it was written with"),
    "edited config": (edit(config={"num_components": 4}), r"bayes_lora\.json does not have the checksum it was writ"),
    "future schema": (
        edit(schema_version=3),
        r"schema version 3, this library reads 1 to 2\. Install the newest bay",
    ),
    "impossible config": (configure(num_components=0), r"its config cannot be used: num_components=0 must be an"),
    "unknown option": (configure(spin=1), r"its config cannot be used: .*spin"),
    "description is a folder": (
        lambda folder: ((folder / DESCRIPTION).unlink(), (folder / DESCRIPTION).mkdir()),  # type: ignore[func-returns-value]
        r"bayes_lora\.json cannot be read: .*directory.* Check its permissions",
    ),
    "memory without bound": (configure(num_components=10**12), r"does not fit the adapters: .*need .*1000000000000"),
    "other adapters": (
        lambda folder: seal_again(folder, adapters=["a"]),
        r"its posterior is of adapters \['a'\], but the network has .*two runs",
    ),
    "another rank": (tensors(POSTERIOR, of_another_rank), r"does not fit the adapters: it holds .*\(2, 3\).* need"),
    "negative scale": (
        tensors(POSTERIOR, lambda state: state | {"sample_scale": -state["sample_scale"]}),
        r"(?s)posterior\.safetensors does not fit the adapters: sample_scale=.* finite number of at least 0",
    ),
    "renamed adapter": (tensors(ADAPTER, renamed), r"adapter_model\.safetensors lacks \['base_model\.model\.bert\."),
    "adapter is text": (
        lambda folder: (write(ADAPTER, "no tensors")(folder), seal_again(folder)),  # type: ignore[func-returns-value]
        r"adapter_model\.safetensors is no safetensors file: ",
    ),
}


@pytest.mark.parametrize(("damage", "message"), CASES.values(), ids=CASES)
def test_each_is_named(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(PosteriorFileError, match=message) as caught:
        load_posterior(build_base(), folder)
    assert str(folder) in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_file_of_the_largest_size_is_read(folder: Path) -> None:
    path = folder / DESCRIPTION
    text = path.read_text(encoding="utf-8")
    path.write_text(text + " " * (JSON_LIMIT - len(text)), encoding="utf-8")
    load_posterior(build_base(), folder)


def test_another_base(saved: Saved) -> None:
    with pytest.raises(PosteriorFileError, match=r"saved for another base model than this BertForSequenceClassific"):
        load_posterior(build_base(seed=1), saved[0])
    with pytest.raises(PosteriorFileError, match=r"saved for another base model than this Sequential.* Load the base"):
        load_posterior(torch.nn.Sequential(torch.nn.Linear(2, 2)), saved[0])


def test_a_refused_base_is_left_as_it_was(saved: Saved) -> None:
    base = build_base(seed=1)
    before = list(base.state_dict())
    with pytest.raises(PosteriorFileError, match="another base model"):
        load_posterior(base, saved[0])
    assert list(base.state_dict()) == before


def test_one_weight_makes_another_base(saved: Saved) -> None:
    base = build_base()
    with torch.no_grad():
        base.bert.encoder.layer[1].output.dense.weight[9, 13] *= 1.01
    with pytest.raises(PosteriorFileError, match="another base model"):
        load_posterior(base, saved[0])


def test_a_head_of_another_number_of_classes(saved: Saved) -> None:
    torch.manual_seed(0)
    base = build_bert(num_labels=2).double()
    with pytest.raises(PosteriorFileError, match=r"(?s)adapter does not fit this BertForSeq.*size mismatch.*Load the"):
        load_posterior(base, saved[0])


def test_a_folder_that_is_not_there(saved: Saved, tmp_path: Path) -> None:
    for missing in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "a/b/c", saved[0] / "README.md"):
        with pytest.raises(PosteriorFileError, match=r"bayes_lora\.json is missing"):
            load_posterior(build_base(), missing)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the Trainer after one step, which tests leave as it is."""
    out = tmp_path_factory.mktemp("training")
    batch = make_batch()
    rows = [{name: value[index] for name, value in batch.items()} for index in range(5)]
    arguments = TrainingArguments(
        str(out), max_steps=1, save_steps=1, per_device_train_batch_size=5, report_to="none", disable_tqdm=True,
        use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    SVITrainer(*build_pair(build_network()), arguments, train_dataset=rows).train()
    return out / "checkpoint-1"


def test_the_checkpoint_holds_what_is_damaged_below(checkpoint: Path) -> None:
    assert sorted(path.name for path in checkpoint.iterdir()) == CHECKPOINT_FILES
    require_whole(checkpoint)


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_no_damaged_checkpoint_is_whole(checkpoint: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / checkpoint.name))
    whole = (copy / name).read_bytes()
    for what, damaged in damages(whole, seed=CHECKPOINT_FILES.index(name)):
        (copy / name).write_bytes(damaged)
        if name == SEAL_FILE and is_same_json(damaged, whole):
            require_whole(copy)
            continue
        with pytest.raises(CheckpointFileError, match=r"Resume from an earlier"):
            require_whole(copy)
        assert newest_whole(tmp_path) is None, what


def is_same_json(one: bytes, other: bytes) -> bool:
    """Whether a changed byte is one between the values, such as a space that became a line break."""
    try:
        return bool(json.loads(one.decode("utf-8")) == json.loads(other))
    except ValueError:
        return False


@pytest.mark.parametrize("seal", ["[]", "{}", "3", "[" * 100_000])
def test_a_seal_that_seals_nothing(checkpoint: Path, tmp_path: Path, seal: str) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / checkpoint.name))
    (copy / SEAL_FILE).write_text(seal, encoding="utf-8")
    with pytest.raises(CheckpointFileError, match=r"complete\.json is missing or damaged"):
        require_whole(copy)


def test_a_seal_without_bound(checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / checkpoint.name))
    grow(SEAL_FILE, 2**40)(copy)
    with pytest.raises(CheckpointFileError, match=r"damaged \(it has more than 16,777,216 bytes\)"):
        require_whole(copy)
