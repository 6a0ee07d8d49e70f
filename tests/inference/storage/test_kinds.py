"""Every kind of guide, also one added since: it trains, resumes, and comes back from its files bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

import bayes_lora as bl
from bayes_lora.errors import ConfigurationError, PosteriorFileError
from bayes_lora.inference import FitOptions, LoRAGuide, MonteCLoRAGuide, SVITrainer, fit, load_posterior, save_posterior
from bayes_lora.inference.guides.lora_guide import guide_kinds
from bayes_lora.inference.storage.posterior_files import SavedKind, write_description
from bayes_lora.models import BayesianLoRA
from bayes_lora.sealed_files import write_sealed
from tests.networks import Batch, build_network, learnable_rows
from tests.posteriors import FILES, build_base, content, same, sample

# The settings under which each kind is tried; one that is not named here has none.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "autoguide": [
        *({"autoguide": name} for name in ("AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal", "AutoDelta")),
        {"autoguide": "AutoLowRankMultivariateNormal", "rank": 3},
    ]
}
CASES = [(kind, settings) for kind in guide_kinds() for settings in SETTINGS.get(kind, [{}])]
IDS = ["-".join((kind, *map(str, settings.values()))) for kind, settings in CASES]
each_kind = pytest.mark.parametrize(("kind", "settings"), CASES, ids=IDS)
Pair = tuple[BayesianLoRA, LoRAGuide]


def build(kind: str, settings: dict[str, Any]) -> Pair:
    """On two ranks; a little away from where it starts."""
    network = build_network(rank_pattern={"query": 2})
    config = bl.MonteCLoRAConfig(objective="elbo", num_train_examples=16, kl_temperature=1e-3, sample_scale=0.1)
    model = BayesianLoRA(network, config)
    guide = guide_kinds()[kind].from_settings(model, settings)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model, guide


@pytest.fixture
def saved(tmp_path: Path, kind: str, settings: dict[str, Any]) -> tuple[Path, Pair]:
    pair = build(kind, settings)
    return save_posterior(*pair, tmp_path / "run"), pair


def described(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "bayes_lora.json").read_text(encoding="utf-8"))
    return found


def seal_again(folder: Path, guide: SavedKind | None = None) -> None:
    """Make the checksums fit what the files now are, as whoever edits them on purpose would."""
    known = described(folder)
    of = SavedKind(**known["guide"]) if guide is None else guide
    write_description(folder, known["config"], known["adapters"], known["base_fingerprint"], of)


def test_the_kinds_are_those_of_the_modules() -> None:
    assert {"autoguide", "mean_field", "monteclora"} <= guide_kinds().keys()
    assert all(kind == of.kind for kind, of in guide_kinds().items())


@each_kind
def test_round_trip(saved: tuple[Path, Pair], kind: str, settings: dict[str, Any], batch: Batch) -> None:
    folder, (model, guide) = saved
    assert {path.name for path in folder.iterdir()} == FILES
    assert described(folder)["guide"] == {"kind": kind, "settings": settings}
    loaded = load_posterior(build_base(), folder)
    assert type(loaded[1]) is guide_kinds()[kind]
    assert loaded[1].settings() == settings
    assert torch.equal(sample(*loaded, batch), sample(model, guide, batch))
    assert same(content(*loaded), content(model, guide))


@each_kind
def test_the_shapes_are_known_beforehand(kind: str, settings: dict[str, Any]) -> None:
    model, guide = build(kind, settings)
    found = {name: tuple(value.shape) for name, value in guide.state_dict().items()}
    assert found == guide.expected_shapes(model, guide.settings())


@each_kind
def test_damage_is_refused(saved: tuple[Path, Pair]) -> None:
    folder, _ = saved
    path = folder / "posterior.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(PosteriorFileError, match=r"posterior\.safetensors .* damaged or edited"):
            load_posterior(build_base(), folder)
    path.write_bytes(whole)
    tensors = load_file(path)
    longest = max(tensors, key=lambda name: tensors[name].numel())
    save_file(tensors | {longest: torch.zeros(7)}, path)
    seal_again(folder)
    with pytest.raises(PosteriorFileError, match=r"does not fit the adapters: it holds .*\(7,\).* they need"):
        load_posterior(build_base(), folder)


@each_kind
def test_files_of_one_kind_are_no_files_of_another(saved: tuple[Path, Pair], kind: str) -> None:
    other = "mean_field" if kind == "monteclora" else "monteclora"
    seal_again(saved[0], SavedKind(other))
    with pytest.raises(PosteriorFileError, match="does not fit the adapters: it holds"):
        load_posterior(build_base(), saved[0])


@each_kind
def test_the_card_is_of_the_kind(saved: tuple[Path, Pair], kind: str, settings: dict[str, Any]) -> None:
    card = ModelCard.load(saved[0] / "README.md")
    guide = guide_kinds()[kind]
    assert card.data.tags == ["bayes-lora", "lora", kind]
    assert f"({guide.family})" in card.text
    assert f"| guide | {guide.__name__} |" in card.text
    for name, value in settings.items():
        assert f"| `{name}` of the guide | {value} |" in card.text
    assert ("`num_components`" in card.text) == ("num_components" not in guide.unused_options)
    assert ("MonteCLoRA" in card.text) == (kind == "monteclora")
    assert f"The {guide.point} alone needs PEFT only" in card.text


@each_kind
def test_fit_trains_what_is_saved(tmp_path: Path, kind: str, settings: dict[str, Any], batch: Batch) -> None:
    model, guide = build(kind, settings)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    result = fit(model, guide, learnable_rows(16), FitOptions(epochs=1, batch_size=8, learning_rate=1e-2))
    assert result.history[-1]["loss"] < float("inf")
    assert all(not torch.equal(value, before[name]) for name, value in guide.state_dict().items())
    loaded = load_posterior(build_base(), save_posterior(model, guide, tmp_path / "run"))
    assert torch.equal(sample(*loaded, batch), sample(model, guide, batch))


@each_kind
def test_the_trainer_resumes_and_saves_it(tmp_path: Path, kind: str, settings: dict[str, Any], batch: Batch) -> None:
    def train(resume: str | None = None) -> tuple[SVITrainer, Pair]:
        arguments = TrainingArguments(
            str(tmp_path / "out"), max_steps=4, save_steps=2, use_cpu=True, report_to="none", disable_tqdm=True
        )
        pair = build(kind, settings)
        trainer = SVITrainer(*pair, arguments, train_dataset=learnable_rows(16))
        trainer.train(resume_from_checkpoint=resume)
        return trainer, pair

    _, whole = train()
    trainer, resumed = train(str(tmp_path / "out" / "checkpoint-2"))
    assert same(content(*resumed), content(*whole))
    trainer.save_model()
    loaded = load_posterior(build_base(), tmp_path / "out")
    assert torch.equal(sample(*loaded, batch), sample(*whole, batch))


AUTO = {"autoguide": "AutoLowRankMultivariateNormal", "rank": 3}
WRONG: dict[str, tuple[SavedKind, str]] = {
    "unknown kind": (SavedKind("flow"), r"its guide is of kind 'flow', and the kinds known here are .*Import the mod"),
    "no kind": (SavedKind(None), r"does not say what guide it is of: .*None.*Save the posterior again"),  # type: ignore[arg-type]
    "unknown setting": (SavedKind("mean_field", {"spin": 1}), r"its MeanFieldGuide cannot be made again: .*spin"),
    "no autoguide": (SavedKind("autoguide"), r"its AutoAdapterGuide cannot be made again: autoguide=None is none of"),
    "another autoguide": (SavedKind("autoguide", {"autoguide": "AutoIAFNormal"}), r"'AutoIAFNormal' is none of"),
    "no rank": (SavedKind("autoguide", {**AUTO, "rank": "3"}), r"rank='3' must be an integer >= 1"),
    "a rank too much": (SavedKind("autoguide", {"autoguide": "AutoNormal", "rank": 3}), r"has the settings \[\], not"),
    "memory without bound": (SavedKind("autoguide", {**AUTO, "rank": 10**12}), r"does not fit .*need .*1000000000000"),
}


@pytest.mark.parametrize(("guide", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(("kind", "settings"), [("mean_field", {})])
def test_what_cannot_be_made_again_is_named(saved: tuple[Path, Pair], guide: SavedKind, message: str) -> None:
    seal_again(saved[0], guide)
    with pytest.raises(PosteriorFileError, match=message) as caught:
        load_posterior(build_base(), saved[0])
    assert str(saved[0]) in str(caught.value)


@pytest.mark.parametrize(("kind", "settings"), [("mean_field", {})])
def test_a_guide_needs_the_objective_it_is_for(saved: tuple[Path, Pair]) -> None:
    known, config = described(saved[0]), bl.MonteCLoRAConfig()
    guide = SavedKind(**known["guide"])
    write_description(saved[0], vars(config), known["adapters"], known["base_fingerprint"], guide)
    with pytest.raises(PosteriorFileError, match=r"its MeanFieldGuide cannot be made again: .*objective='elbo'"):
        load_posterior(build_base(), saved[0])


@pytest.mark.parametrize(("kind", "settings"), [("monteclora", {})])
def test_files_without_a_kind_are_monteclora(saved: tuple[Path, Pair], batch: Batch) -> None:
    """As the first version wrote them."""
    folder, pair = saved
    first = {name: value for name, value in described(folder).items() if name not in ("guide", "sha256")}
    first["schema_version"] = 1
    first["config"]["temperature"] = first["config"].pop("kl_temperature")
    first["config"]["kl_weight"] = None
    write_sealed(folder / "bayes_lora.json", first)
    assert torch.equal(sample(*load_posterior(build_base(), folder), batch), sample(*pair, batch))


@each_kind
def test_only_what_the_first_version_reads_says_that_it_does(saved: tuple[Path, Pair]) -> None:
    """It would take the files of another kind for a MonteCLoRAGuide of two runs, mixed, and knows no kl_temperature."""
    assert described(saved[0])["schema_version"] == 2
    paper = BayesianLoRA(build_network(), bl.MonteCLoRAConfig())
    of_paper = described(save_posterior(paper, MonteCLoRAGuide(paper), saved[0].parent / "paper"))
    assert of_paper["schema_version"] == 1
    assert None not in of_paper["config"].values()


def test_a_kind_is_taken_once() -> None:
    with pytest.raises(ConfigurationError, match=r"Twin has kind='mean_field', which .*MeanFieldGuide has already"):

        class Twin(LoRAGuide):
            kind = "mean_field"
