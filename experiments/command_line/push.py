"""`bayes-lora push`: a run's posterior on the Hugging Face hub."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bayes_lora.errors import DataError
from bayes_lora.experiments.command_line.console import say
from bayes_lora.experiments.runs.outputs import METRICS_FILE, POSTERIOR_FOLDER
from bayes_lora.experiments.runs.run_card import write_run_card
from bayes_lora.experiments.runs.run_config import read_config
from bayes_lora.files import read_json
from bayes_lora.inference import push_to_hub
from bayes_lora.inference.storage.posterior_files import read_whole


def push_command(
    run: Annotated[Path, typer.Argument(help="A folder that fit wrote.")],
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the hub; made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str | None, typer.Option(help="What the commit says.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Put a run's posterior and its model card on the Hugging Face hub; log in first with: hf auth login."""
    url = push_run(run, repo_id, private=private, message=message)
    if as_json:
        print(json.dumps({"run": str(run), "url": url}))
    else:
        name = "/".join(url.split("/")[-2:])
        say(f'{url}\nLoad it with: load_posterior(base_network, "{name}")')


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
