"""A finished run on the Hugging Face hub."""

from pathlib import Path
from typing import Any

from bayes_lora.errors import DataError
from bayes_lora.experiments.runs.outputs import METRICS_FILE, POSTERIOR_FOLDER
from bayes_lora.experiments.runs.run_card import write_run_card
from bayes_lora.experiments.runs.run_config import read_config
from bayes_lora.files import read_json
from bayes_lora.inference import push_to_hub
from bayes_lora.inference.storage.posterior_files import read_whole


def push_run(run: Path, repo_id: str, *, private: bool = False, message: str | None = None) -> str:
    """Write the model card of a finished run's posterior, push both, and return the address on the hub.

    Raises:
        DataError: no run there, or an unfinished one.
        PosteriorFileError: its posterior is missing or damaged.
        HubError: see `push_to_hub`.
    """
    config, metrics = read_config(run), _metrics(run)
    folder = run / POSTERIOR_FOLDER
    read_whole(folder)
    write_run_card(run, config, metrics)
    commit_message = message or f"Upload a posterior for {config.task.name} with bayes_lora"
    return push_to_hub(folder, repo_id, private=private, commit_message=commit_message)


def _metrics(run: Path) -> dict[str, Any]:
    path = run / METRICS_FILE
    try:
        found = read_json(path)
        if not isinstance(found, dict):
            raise ValueError("it holds no metrics")
    except FileNotFoundError as error:
        raise DataError(
            f"{run} is unfinished: it has no {path.name}. 'bayes-lora fit --resume {run}' goes on with it."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): it was damaged. Fit the run again.") from error
    return found
