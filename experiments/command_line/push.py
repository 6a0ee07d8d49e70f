"""`bayes-lora push`: a run's posterior on the Hugging Face hub."""

import json
from pathlib import Path
from typing import Annotated

import typer


def push_command(
    run: Annotated[Path, typer.Argument(help="A folder that fit wrote.")],
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the hub; made if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str | None, typer.Option(help="What the commit says.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Put a run's posterior and its model card on the Hugging Face hub; log in first with: hf auth login."""
    from bayes_lora.experiments.command_line.console import say
    from bayes_lora.experiments.runs.pushing import push_run

    url = push_run(run, repo_id, private=private, message=message)
    if as_json:
        print(json.dumps({"run": str(run), "url": url}))
    else:
        name = "/".join(url.split("/")[-2:])
        say(f'{url}\nLoad it with: load_posterior(base_network, "{name}")')
