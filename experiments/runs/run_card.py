"""What the model card of a run's posterior says, beyond what the posterior's own files do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayes_lora.experiments.networks.named_models import named_models
from bayes_lora.experiments.runs.outputs import POSTERIOR_FOLDER
from bayes_lora.experiments.runs.run_config import RunConfig
from bayes_lora.inference import CardFacts
from bayes_lora.inference.storage.model_card import write_card


def write_run_card(run: Path, config: RunConfig, metrics: Mapping[str, Any]) -> None:
    """Write the card of a run's posterior: its task, its data and its metrics."""
    write_card(run / POSTERIOR_FOLDER, card_facts(config, metrics))


def card_facts(config: RunConfig, metrics: Mapping[str, Any]) -> CardFacts:
    """The facts for the card of a run with these metrics, as `fit` or `demo` wrote them."""
    task, named = config.task, named_models().get(config.base_model)
    return CardFacts(
        task=task.name,
        label_names=task.label_names,
        texts=task.family.inputs.called or task.templates or task.text_columns,
        max_length=config.max_length or task.max_length,
        base_model=None if named is None else named.on_the_hub,
        dataset=task.hub,
        num_train=metrics.get("num_train"),
        num_validation=metrics.get("num_validation"),
        point_metrics=metrics.get("point") or metrics.get("posterior mean") or {},
        predictive_metrics=metrics.get("posterior_predictive") or metrics.get("posterior predictive") or {},
        num_samples=config.num_samples,
    )
