"""Posterior folders: whole or not at all, opened by PEFT alone, refused when they do not fit."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import bayes_lora as bl
from bayes_lora.errors import ConfigurationError, PosteriorFileError, RunExistsError
from bayes_lora.inference import LoRAGuide, MonteCLoRAGuide, load_posterior, predict, save_posterior
from bayes_lora.inference.storage.fingerprint import base_fingerprint
from bayes_lora.models import BayesianLoRA, GaussianRegression
from bayes_lora.models.own_sites import OwnSites
from tests.networks import Batch, build_bert, build_network, build_pair
from tests.posteriors import FILES, build_base, build_saved, content, same, sample

ROOT = Path(__file__).parents[3]

CONFIGS: list[dict[str, Any]] = [
    {"num_components": 3, "sample_scale": 0.3},
    {"mixture": "sparse", "sampler": "explicit", "num_outer_samples": 2, "degrees_of_freedom": 20.5},
    {"objective": "elbo", "num_train_examples": 20, "kl_temperature": 0.5, "prior_scale": 0.3},
]


@pytest.mark.parametrize("config", CONFIGS, ids=["paper", "sparse, explicit", "elbo"])
def test_round_trip(tmp_path: Path, batch: Batch, config: dict[str, Any]) -> None:
    model, guide = build_saved(tmp_path / "run", **config)
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    loaded = load_posterior(build_base(), tmp_path / "run")
    assert torch.equal(sample(*loaded, batch), sample(model, guide, batch))
    assert loaded[0].config == model.config
    assert not any(module.training for module in loaded[0].modules())


def test_dora_travels_with_its_magnitudes(tmp_path: Path, batch: Batch) -> None:
    network = build_network(use_dora=True, target_modules=["query", "output.dense"], rank_pattern={"query": 2})
    model, guide = build_pair(network, sample_scale=0.3)
    save_posterior(model, guide, tmp_path / "run")
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert sum("lora_magnitude_vector" in name for name in saved) == len(model.sites.adapters) == 6
    loaded = load_posterior(build_base(), tmp_path / "run")
    # The last bit of a matrix product depends on where its factors lie in memory.
    torch.testing.assert_close(sample(*loaded, batch), sample(model, guide, batch), rtol=1e-12, atol=1e-15)
    assert same(content(*loaded), content(model, guide))
    alone = peft.PeftModel.from_pretrained(build_base(), tmp_path / "run").eval()
    assert torch.equal(alone(**batch).logits, predict(model, guide, [batch], at_mean=True).logits[0])


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


def test_a_process_without_this_library_opens_the_mean(tmp_path: Path, batch: Batch) -> None:
    network = build_network(dtype=torch.float32)
    torch.manual_seed(0)
    build_bert().save_pretrained(tmp_path / "base")
    model, guide = build_pair(network)
    save_posterior(model, guide, tmp_path / "run")
    save_file(batch, tmp_path / "batch.safetensors")
    places = [tmp_path / name for name in ("base", "run", "batch.safetensors", "logits.safetensors")]
    command = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "peft_alone.py"), *map(str, places)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, mean = load_file(places[-1]), predict(model, guide, [batch], at_mean=True).logits[0]
    assert torch.equal(found["adapter"], mean)
    # W x + B A x against (W + B A) x: a few roundings of numbers of order 1 in each of two layers.
    torch.testing.assert_close(found["merged"], mean, rtol=0, atol=100 * torch.finfo(torch.float32).eps)


def test_a_save_killed_at_any_moment_leaves_nothing_that_is_read_as_another_posterior(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.saving_run", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    old, new = (content(*load_posterior(build_base(), tmp_path / name)) for name in ("old", "new"))
    outcomes = []
    for place in sorted(tmp_path.glob("kill-*"), key=lambda path: int(path.name.partition("-")[2])):
        found = {folder.name: read(folder, old, new) for folder in place.iterdir()}
        outcomes.append(found.pop("run", "missing"))
        # What was there before is somewhere, under its own name or beside it, until the new one is.
        assert outcomes[-1] in ("old", "new") or {"old", "new"} <= set(found.values()), found
    assert len(outcomes) > 15
    assert outcomes[0] == "old"
    assert outcomes[-1] == "new"
    assert "damaged" not in outcomes


def read(folder: Path, old: Any, new: Any) -> str:
    """Which of the two posteriors a folder loads as; "damaged" where it is refused."""
    try:
        found = content(*load_posterior(build_base(), folder))
    except PosteriorFileError:
        return "damaged"
    return "old" if same(found, old) else "new" if same(found, new) else "another"


@pytest.mark.parametrize("lora", [{}, {"modules_to_save": ["pooler"]}, {"task_type": None}])
def test_the_fingerprint_is_that_of_the_base_also_under_peft(lora: dict[str, Any]) -> None:
    network = build_network(**lora)
    carried = peft.get_peft_model_state_dict(network)
    assert base_fingerprint(network, carried) == base_fingerprint(build_base(), carried)
    assert base_fingerprint(network, carried) == base_fingerprint(network.to(torch.bfloat16), carried)
    assert base_fingerprint(network, carried) != base_fingerprint(build_base(seed=1), carried)


def test_what_is_trained_besides_and_not_saved_is_refused_on_loading(tmp_path: Path) -> None:
    network = build_network()
    torch.nn.init.normal_(network.get_base_model().bert.pooler.dense.bias)
    save_posterior(*build_pair(network), tmp_path / "run")
    with pytest.raises(PosteriorFileError, match=r"another base model .* name them in LoraConfig's modules_to_save"):
        load_posterior(build_base(), tmp_path / "run")


def test_only_a_peft_model_can_be_saved(tmp_path: Path) -> None:
    # As transformers' own add_adapter does, which 5.24 refuses to do with any peft that is published (findings/).
    network = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["query"]), build_bert())
    model = BayesianLoRA(network, bl.MonteCLoRAConfig())
    with pytest.raises(PosteriorFileError, match=r"network is a BertForSequenceClassification, and only a PeftModel"):
        save_posterior(model, MonteCLoRAGuide(model), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_other_adapters_of_the_network_stay_at_home(tmp_path: Path) -> None:
    network = build_network()
    network.add_adapter("other", peft.LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["value"]))
    save_posterior(*build_pair(network), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


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


def test_an_adapter_of_another_name_is_refused_at_once(tmp_path: Path) -> None:
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    model, guide = build_pair(peft.get_peft_model(build_bert(), config, adapter_name="mine"))
    with pytest.raises(PosteriorFileError, match=r"posterior is of adapters \['mine'\].*adapter_name='default'"):
        save_posterior(model, guide, tmp_path / "run")
    assert not list(tmp_path.iterdir())


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


def test_a_guide_that_its_files_could_not_name_is_refused(tmp_path: Path) -> None:
    model, guide = build_pair()
    others: list[Any] = [guide.forward, LoRAGuide(model)]
    for other in others:
        with pytest.raises(ConfigurationError, match=r"this \w+ is of no such kind; those are .*mean_field, mo"):
            save_posterior(model, other, tmp_path / "run")
    with pytest.raises(ConfigurationError, match="the guide belongs to another model"):
        save_posterior(build_pair()[0], guide, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_likelihood_is_saved(tmp_path: Path) -> None:
    """With its settings; one that nothing could make again is refused before anything is written."""
    likelihood = GaussianRegression(0.25)
    model = BayesianLoRA(build_network(), bl.MonteCLoRAConfig(), likelihood)
    save_posterior(model, MonteCLoRAGuide(model), tmp_path / "regression")
    assert load_posterior(build_base(), tmp_path / "regression")[0].likelihood.settings() == likelihood.settings()
    model.likelihood = OwnSites(lambda logits, labels: None)
    with pytest.raises(ConfigurationError, match=r"this OwnSites is none of .*classification, gaussian_regression"):
        save_posterior(model, MonteCLoRAGuide(model), tmp_path / "own")
    assert not (tmp_path / "own").exists()
