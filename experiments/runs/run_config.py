"""Everything that a fit depends on besides its rows and its environment, and the file that says it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from bayes_lora.checks import require_choice, require_count
from bayes_lora.choices import Draws
from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.errors import DataError
from bayes_lora.experiments.networks.trained_adapter import TrainedAdapter
from bayes_lora.experiments.runs.outputs import CONFIG_FILE
from bayes_lora.experiments.tasks.sources import RowsSource
from bayes_lora.experiments.tasks.tasks import Task
from bayes_lora.inference import FitOptions, MonteCLoRAGuide
from bayes_lora.inference.finetuning.lora import LoRAOptions
from bayes_lora.inference.storage.posterior_files import SavedKind

FIT_METHODS = ("monteclora", "monteclora_sparse", "monteclora_posthoc")
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RunConfig:
    """Everything that a fit depends on besides its rows and its environment.

    `lora` says how new adapters are made, or which trained one is taken as it is (method monteclora_posthoc); `guide`
    which family the posterior is of, see `LoRAGuide.kind`, and how it starts; `num_samples` and `draws` how it
    predicts, see `predict`.

    Raises:
        ConfigurationError: `num_samples` below 1, or no such `draws`.
    """

    task: Task
    base_model: str
    method: str = "monteclora"
    lora: LoRAOptions | TrainedAdapter = field(default_factory=LoRAOptions)
    posterior: MonteCLoRAConfig = field(default_factory=MonteCLoRAConfig)
    guide: SavedKind = field(default_factory=partial(SavedKind, MonteCLoRAGuide.kind))
    training: FitOptions = field(default_factory=FitOptions)
    num_samples: int | Literal["auto"] = 32
    draws: Draws | None = None
    max_length: int | None = None
    source: RowsSource | None = None
    rows_digest: str | None = None

    def __post_init__(self) -> None:
        if self.num_samples != "auto":
            require_count("num_samples", self.num_samples)
        if self.draws is not None:
            require_choice("draws", self.draws, get_args(Draws))

    @property
    def labels_are_names(self) -> bool:
        """Whether files like those of the run hold the class itself, not its id."""
        return self.source is not None and self.source.task is None

    def to_json(self) -> dict[str, Any]:
        """Plain data, from which `from_json` makes the same configuration."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "task": self.task.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RunConfig":
        """The configuration that `to_json` described."""
        parts = {
            "task": Task.from_json(data["task"]),
            "lora": (TrainedAdapter if "folder" in data["lora"] else LoRAOptions)(**data["lora"]),
            "posterior": MonteCLoRAConfig(**data["posterior"]),
            "guide": SavedKind(**data["guide"]) if "guide" in data else SavedKind(MonteCLoRAGuide.kind),
            "training": FitOptions(**{"seeding": "shared", **data["training"]}),  # what 0.1 did not say
            "source": None if data["source"] is None else _source(data["source"]),
        }
        before = {"draws": "independent"}  # what 0.1 did not say
        given = {**before, **data, **parts}
        return cls(**{name: value for name, value in given.items() if name != "schema_version"})


def read_config(folder: Path) -> RunConfig:
    """The configuration of a run folder.

    Raises:
        DataError: no run there, or one of another version of this library.
    """
    path = folder / CONFIG_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.get("schema_version")
        if version == SCHEMA_VERSION:
            return RunConfig.from_json(data)
    except (OSError, KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{folder} is not a run: {path.name} is missing or damaged ({error}). "
            "Give a folder that 'bayes-lora fit --out' wrote."
        ) from error
    raise DataError(
        f"{path} has schema version {version}, this library reads {SCHEMA_VERSION}. Install the bayes-lora that "
        "environment.json there names, or fit the run again."
    )


def _source(data: Mapping[str, Any]) -> RowsSource:
    return RowsSource(**{**data, "text_columns": tuple(data["text_columns"])})
