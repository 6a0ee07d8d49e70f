"""Model cards: the README.md of a saved posterior, as the Hugging Face hub reads it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors.torch import load_file
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)

from bayes_lora.errors import ConfigurationError
from bayes_lora.files import read_json, write_whole
from bayes_lora.inference.guides.draw_design import draws_text
from bayes_lora.inference.guides.lora_guide import LoRAGuide
from bayes_lora.inference.storage.card_usage import HERE, usage
from bayes_lora.inference.storage.posterior_files import (
    ADAPTER_CONFIG_FILE,
    CARD_FILE,
    DESCRIPTION_FILE,
    POSTERIOR_FILE,
    SAMPLE_SCALE,
    saved_adapters,
    saved_guide,
    saved_likelihood,
)
from bayes_lora.metrics.titles import title_of
from bayes_lora.models.likelihoods.words import Words

_PIPELINES = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "CAUSAL_LM": "text-generation",
}


@dataclass(frozen=True)
class CardFacts:
    """What a model card says that the saved files do not.

    Attributes:
        task: its name, such as "mrpc".
        label_names: (class,) what the class ids mean.
        texts: the one or two texts of a row: the names of columns, or templates over them; or what else a row is, such
            as "an image".
        max_length: tokens after which a row was cut.
        base_model: name of the base model on the hub, where it was loaded from elsewhere.
        dataset: name of the training data on the hub, and of their configuration or None.
        num_train: training rows.
        num_validation: held-out rows, which the metrics are of.
        point_metrics: metrics of the mean adapter, by name.
        predictive_metrics: metrics of the posterior predictive, by name.
        num_samples: draws of that posterior predictive, or "auto".
        language: as the hub writes it, such as "en".
        license: as the hub writes it, such as "apache-2.0".

    Raises:
        ConfigurationError: `predictive_metrics` without `num_samples`, or more than two texts.
    """

    task: str | None = None
    label_names: tuple[str, ...] = ()
    texts: tuple[str, ...] = ("text",)
    max_length: int | None = None
    base_model: str | None = None
    dataset: tuple[str, str | None] | None = None
    num_train: int | None = None
    num_validation: int | None = None
    point_metrics: Mapping[str, float] = field(default_factory=dict)
    predictive_metrics: Mapping[str, float] = field(default_factory=dict)
    num_samples: int | Literal["auto"] | None = None
    language: str | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        if self.predictive_metrics and self.num_samples is None:
            raise ConfigurationError("predictive_metrics depend on the number of draws. Give num_samples as well.")
        if len(self.texts) not in (1, 2):
            raise ConfigurationError(f"texts={self.texts!r}: give the one or two texts that make a row.")


def label_names_of(network: nn.Module) -> tuple[str, ...]:
    """What the network's configuration says its classes mean; () where it does not."""
    names = getattr(getattr(network, "config", None), "id2label", None) or {}
    return tuple(str(names[index]) for index in sorted(names))


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write the card of a saved posterior, in place of the one that is there."""
    write_whole(folder / CARD_FILE, _card(folder, facts).encode())


def located_card(text: str, repo_id: str) -> str:
    """A card that loads the posterior from its repository on the hub."""
    return text.replace(HERE, repo_id)


def _card(folder: Path, facts: CardFacts) -> str:
    adapter = read_json(folder / ADAPTER_CONFIG_FILE)
    base = facts.base_model or _hub_name(adapter.get("base_model_name_or_path"))
    pipeline = _pipeline(adapter)
    description = read_json(folder / DESCRIPTION_FILE)
    guide, _ = saved_guide(folder / DESCRIPTION_FILE, description)
    likelihood, of_likelihood = saved_likelihood(folder / DESCRIPTION_FILE, description)
    words = likelihood.words(of_likelihood)
    sections = [
        _title(base, facts, guide),
        _task_section(facts, words),
        _results_section(facts, guide),
        _posterior_section(folder, adapter, description),
        usage(
            pipeline,
            base,
            words,
            str(guide.point),
            num_texts=len(facts.texts),
            max_length=facts.max_length,
            num_labels=len(facts.label_names),
            adapters=saved_adapters(description),
        ),
        _FILES,
    ]
    metadata = _metadata(base, pipeline, facts, ["bayes-lora", "lora", str(guide.kind)])
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"))


def _hub_name(source: str | None) -> str | None:
    """The base's name on the hub; None for a folder, which is of no use to others."""
    known = source is not None and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not Path(source).exists()
    return source if known else None


def _pipeline(adapter: Mapping[str, Any]) -> str | None:
    network = (adapter.get("auto_mapping") or {}).get("base_model_class")
    for pipeline, known in (
        ("image-classification", MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
        ("audio-classification", MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES),
    ):
        if network in {name for names in known.values() for name in ([names] if isinstance(names, str) else names)}:
            return pipeline
    return _PIPELINES.get(adapter.get("task_type") or "")


def _metadata(base: str | None, pipeline: str | None, facts: CardFacts, tags: list[str]) -> ModelCardData:
    results = []
    if facts.dataset is not None:
        for metrics, of in (
            (facts.predictive_metrics, f"posterior predictive, {draws_text(facts.num_samples)}"),
            (facts.point_metrics, "point estimate"),
        ):
            for name, value in metrics.items():
                results.append(
                    EvalResult(
                        task_type=pipeline or "other",
                        dataset_type=facts.dataset[0],
                        dataset_name=facts.task or facts.dataset[0],
                        dataset_config=facts.dataset[1],
                        dataset_split="validation",
                        metric_type=name,
                        metric_name=f"{title_of(name).text}, {of}",
                        metric_value=value,
                    )
                )
    return ModelCardData(
        base_model=base,
        library_name="peft",
        pipeline_tag=pipeline,
        tags=tags,
        language=facts.language,
        license=facts.license,
        datasets=None if facts.dataset is None else [facts.dataset[0]],
        metrics=list({**facts.predictive_metrics, **facts.point_metrics}) or None,
        model_name=_name(base, facts) if results else None,
        eval_results=results or None,
    )


def _name(base: str | None, facts: CardFacts) -> str:
    parts = [base.rpartition("/")[2] if base else "LoRA", facts.task, "posterior"]
    return "-".join(part for part in parts if part)


def _title(base: str | None, facts: CardFacts, guide: type[LoRAGuide]) -> str:
    of = f"[{_text(base)}](https://huggingface.co/{base})" if base else "its base model"
    return (
        f"# {_text(_name(base, facts))}\n\n"
        f"A posterior over the LoRA-A matrices of {of} ({guide.family}), learned by stochastic variational inference "
        f"with `bayes_lora`. {guide.about_point}; under draws from the posterior, predictions come with how far the "
        "draws disagree."
    )


def _task_section(facts: CardFacts, words: Words) -> str:
    lines = []
    if facts.task:
        lines.append(f"The task is {_text(facts.task)}: {words.answer} for {' and '.join(map(_text, facts.texts))}.")
    if facts.label_names != _unnamed(len(facts.label_names)):
        rows = [[str(index), _text(name)] for index, name in enumerate(facts.label_names)]
        lines.append(_table([words.label, "meaning"], rows))
    if facts.num_train is not None:
        where = ""
        if facts.dataset is not None:
            name, configuration = facts.dataset
            where = f" of [{_text(name)}](https://huggingface.co/datasets/{name})"
            where += f", configuration {_text(configuration)}" if configuration else ""
        lines.append(f"Trained on {facts.num_train:,} rows{where}.")
    return "\n\n".join(["## Task", *lines]) if lines else ""


def _unnamed(num_labels: int) -> tuple[str, ...]:
    """What transformers calls classes that nobody named."""
    return tuple(f"LABEL_{index}" for index in range(num_labels))


def _results_section(facts: CardFacts, guide: type[LoRAGuide]) -> str:
    names = list({**facts.point_metrics, **facts.predictive_metrics})
    if not names:
        return ""
    rows = [
        [of, *(f"{metrics[name]:.4f}" if name in metrics else "" for name in names)]
        for of, metrics in (
            (f"point estimate, the {guide.point}", facts.point_metrics),
            (f"posterior predictive, {draws_text(facts.num_samples)}", facts.predictive_metrics),
        )
        if metrics
    ]
    of_rows = "held-out rows" if facts.num_validation is None else f"{facts.num_validation:,} held-out rows"
    return f"## Results\n\nOn {of_rows}:\n\n" + _table(["", *(title_of(name).text for name in names)], rows)


def _posterior_section(folder: Path, adapter: Mapping[str, Any], description: Mapping[str, Any]) -> str:
    guide, settings = saved_guide(folder / DESCRIPTION_FILE, description)
    scale = load_file(folder / POSTERIOR_FILE)[SAMPLE_SCALE]
    low, high = float(scale.min()), float(scale.max())
    targets = adapter.get("target_modules") or ()
    config = description["config"].items()
    used = {name: value for name, value in config if value is not None and name not in guide.unused_options}
    if "sample_scale" in used:
        used["sample_scale"] = f"{low:g}" if low == high else f"{low:g} to {high:g}, by adapter"
    options = {
        "guide": guide.__name__,
        **{f"`{name}` of the guide": value for name, value in settings.items()},
        "adapters": len(description["adapters"]),
        "target modules": targets if isinstance(targets, str) else ", ".join(sorted(targets)),
        "LoRA rank": adapter["r"],
        "LoRA alpha": adapter["lora_alpha"],
        **{f"`{name}`": value for name, value in used.items()},
    }
    return "## Posterior\n\n" + _table(["option", "value"], [[name, _text(value)] for name, value in options.items()])


_FILES = f"""## Files

`adapter_model.safetensors` and `{ADAPTER_CONFIG_FILE}` are PEFT's. `{POSTERIOR_FILE}` holds what else was
learned, and `{DESCRIPTION_FILE}` the options, the fingerprint of the base model and the checksums by which a damaged
file or another base model is refused."""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: object) -> str:
    """As Markdown shows it unchanged: a class may be called anything."""
    return re.sub(r"([\\`*\[\]<>#|~$&]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", " ".join(str(value).split()))
