"""Posterior folders: whole or not at all, opened by PEFT alone, refused when they do not fit."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bayes_lora.errors import BayesLoRAError, PosteriorFileError, RunExistsError
from bayes_lora.inference import MonteCLoRAGuide, load_posterior, predict, save_posterior
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_bert, build_network, build_pair

FILES = {"adapter_config.json", "adapter_model.safetensors", "bayes_lora.json", "posterior.safetensors"}
CONFIGS: list[dict[str, Any]] = [
    {"num_components": 3, "sample_scale": 0.3},
    {"mixture": "sparse", "sampler": "explicit", "num_outer_samples": 2, "degrees_of_freedom": 20.5},
    {"objective": "elbo", "num_train_examples": 20, "temperature": 0.5, "prior_scale": 0.3},
]


def build_base(seed: int = 0) -> Any:
    """The base network alone, the same at every call with one seed, as a hub download is."""
    torch.manual_seed(seed)
    return build_bert().double()


def build_saved(folder: Path, **config: Any) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
    """A pair on that base, with two ranks, saved into `folder`."""
    network = build_network(target_modules=["query", "output.dense"], rank_pattern={"query": 2})
    model, guide = build_pair(network, **config)
    save_posterior(model, guide, folder)
    return model, guide


def sample(model: BayesianLoRA, guide: MonteCLoRAGuide, batch: Batch) -> Tensor:
    return predict(model, guide, [batch], num_samples=3).logits


@pytest.mark.parametrize("config", CONFIGS, ids=["paper", "sparse, explicit", "elbo"])
def test_round_trip(tmp_path: Path, batch: Batch, config: dict[str, Any]) -> None:
    model, guide = build_saved(tmp_path / "run", **config)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= FILES
    loaded = load_posterior(build_base(), tmp_path / "run")
    assert torch.equal(sample(*loaded, batch), sample(model, guide, batch))
    assert loaded[0].config == model.config
    assert not any(module.training for module in loaded[0].modules())


def test_the_head_travels_with_the_adapter(tmp_path: Path, batch: Batch) -> None:
    model, guide = build_saved(tmp_path / "run")
    base = build_base()
    torch.nn.init.normal_(base.classifier.weight)
    assert torch.equal(sample(*load_posterior(base, tmp_path / "run"), batch), sample(model, guide, batch))


def test_peft_alone_opens_the_mean(tmp_path: Path, batch: Batch) -> None:
    model, guide = build_saved(tmp_path / "run")
    network = peft.PeftModel.from_pretrained(build_base(), tmp_path / "run").eval()
    with torch.no_grad():
        logits = network(**batch).logits
    assert torch.equal(logits, predict(model, guide, [batch], at_mean=True).logits[0])


def test_a_rounded_copy_of_the_base_is_the_same_base(tmp_path: Path) -> None:
    _, guide = build_saved(tmp_path / "run")
    _, loaded = load_posterior(build_base().float(), tmp_path / "run")
    # Its logarithm is stored, here rounded to float32.
    stored = guide.concentration_unconstrained
    assert torch.equal(loaded.concentration_unconstrained, stored.to(loaded.concentration_unconstrained))


def test_loading_does_not_depend_on_the_generator(tmp_path: Path, batch: Batch) -> None:
    model, guide = build_saved(tmp_path / "run", init_concentration="random")
    torch.manual_seed(77)
    assert torch.equal(sample(*load_posterior(build_base(), tmp_path / "run"), batch), sample(model, guide, batch))


def test_an_existing_folder_is_kept_unless_told(tmp_path: Path, batch: Batch) -> None:
    model, guide = build_saved(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with torch.no_grad():
        guide.concentration_unconstrained += 0.5
    with pytest.raises(RunExistsError, match=r"run exists already\. .*overwrite=True"):
        save_posterior(model, guide, tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    (tmp_path / "run" / "left_over.txt").write_text("from the run before")
    assert save_posterior(model, guide, str(tmp_path / "run"), overwrite=True) == tmp_path / "run"
    assert torch.equal(sample(*load_posterior(build_base(), tmp_path / "run"), batch), sample(model, guide, batch))
    assert {path.name for path in (tmp_path / "run").iterdir()} == set(before)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_parents_are_made(tmp_path: Path) -> None:
    model, guide = build_pair()
    assert save_posterior(model, guide, tmp_path / "a" / "b").is_dir()


class Breaks(MonteCLoRAGuide):
    """A guide whose state cannot be written: the failure comes after PEFT's files are there."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt


@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_while_saving_leaves_nothing(tmp_path: Path, existing: bool) -> None:
    model, guide = build_saved(tmp_path / "run") if existing else build_pair()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    guide.__class__ = Breaks
    with pytest.raises(KeyboardInterrupt):
        save_posterior(model, guide, tmp_path / "run", overwrite=existing)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == (["run"] if existing else [])


def edit(**changes: Any) -> Callable[[Path], None]:
    """Change entries of bayes_lora.json; None takes one out."""

    def apply(folder: Path) -> None:
        path = folder / "bayes_lora.json"
        description = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in description.items() if value is not None}))

    return apply


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def flip(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-3] ^= 1
        (folder / name).write_bytes(content)

    return apply


def cut(folder: Path) -> None:
    path = folder / "bayes_lora.json"
    path.write_text(path.read_text()[:50])


def of_another_rank(folder: Path) -> None:
    """A posterior file with a checksum in order, of adapters of rank 3."""
    state = load_file(folder / "posterior.safetensors")
    state["scale_r2_unconstrained"] = torch.zeros(2, 3, dtype=torch.double)
    save_file(state, folder / "posterior.safetensors")
    checksums = json.loads((folder / "bayes_lora.json").read_text())["sha256"]
    checksums["posterior.safetensors"] = sha256((folder / "posterior.safetensors").read_bytes()).hexdigest()
    edit(sha256=checksums)(folder)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no description": (remove("bayes_lora.json"), r"bayes_lora\.json is missing: .* is not a folder that save_post"),
    "no posterior": (remove("posterior.safetensors"), r"posterior\.safetensors is missing: .* not written whole"),
    "no adapter config": (remove("adapter_config.json"), r"adapter_config\.json is missing: .* not written whole"),
    "no adapter": (remove("adapter_model.safetensors"), r"adapter_model\.safetensors is missing: .* not written whole"),
    "byte of the posterior": (flip("posterior.safetensors"), r"/posterior\.s\w+ does not have the checksum"),
    "byte of the adapter": (
        flip("adapter_model.safetensors"),
        r"/adapter_model\.s\w+ does not have the checksum",
    ),
    "cut description": (cut, r"bayes_lora\.json is not JSON: .*damaged; save the run again"),
    "description lacks a key": (edit(adapters=None), r"bayes_lora\.json lacks some of \['adapters', 'base.*damaged"),
    "newer schema": (edit(schema_version=2), r"has schema version 2, this library reads 1\. Install a newer"),
    "bad config": (edit(config={"num_components": 0}), r"its config cannot be used: num_components=0 must be an"),
    "unknown option": (edit(config={"spin": 1}), r"its config cannot be used: .*spin"),
    "other adapters": (edit(adapters=["a"]), r"its posterior is of adapters \['a'\], but the network has .*two runs"),
    "other rank": (of_another_rank, r"(?s)posterior\.safetensors does not fit the adapters: .*size mismatch"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_folders(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    build_saved(tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(PosteriorFileError, match=message) as caught:
        load_posterior(build_base(), tmp_path / "run")
    assert isinstance(caught.value, BayesLoRAError)
    assert isinstance(caught.value, ValueError)


def test_another_base(tmp_path: Path) -> None:
    build_saved(tmp_path / "run")
    with pytest.raises(PosteriorFileError, match=r"saved for another base model than this BertForSequenceClassific"):
        load_posterior(build_base(seed=1), tmp_path / "run")


def test_a_base_of_another_shape(tmp_path: Path) -> None:
    build_saved(tmp_path / "run")
    with pytest.raises(PosteriorFileError, match=r"(?s)adapter does not fit this BertForSeq.*size mismatch.*Load the"):
        load_posterior(build_bert(num_labels=2), tmp_path / "run")
    with pytest.raises(
        PosteriorFileError, match=r"adapter does not fit this Sequential: .*[Tt]arget modules .*Load the"
    ):
        load_posterior(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / "run")


def test_an_adapter_of_another_name_is_refused_at_once(tmp_path: Path) -> None:
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    model, guide = build_pair(peft.get_peft_model(build_bert(), config, adapter_name="mine"))
    with pytest.raises(PosteriorFileError, match=r"posterior is of adapters \['mine'\].*adapter_name='default'"):
        save_posterior(model, guide, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PosteriorFileError, match=r"bayes_lora\.json is missing"):
        load_posterior(build_base(), tmp_path / "nowhere")


def test_a_failed_replacement_leaves_the_old_folder(
    tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, guide = build_saved(tmp_path / "posterior")
    before = {path.name: path.read_bytes() for path in (tmp_path / "posterior").iterdir()}
    replace, calls = Path.replace, []

    def second_fails(self: Path, target: Any) -> Any:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("the disk is full")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", second_fails)
    with pytest.raises(OSError, match="the disk is full"):
        save_posterior(model, guide, tmp_path / "posterior", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "posterior").iterdir()} == before
    assert list(tmp_path.iterdir()) == [tmp_path / "posterior"]
