"""`bayes-lora digits`: images and a base model for them, made without a network."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bayes_lora.experiments.command_line.options import JsonFlag, SeedOption


def digits_command(
    out: Annotated[Path, typer.Option(help="Folder of the images and the network; a new one.")] = Path("digits"),
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
) -> None:
    """Write handwritten digits as images, and a small ViT that has learned 0 to 4, for a study of the other five.

    It takes seconds and no network. `bayes-lora sweep digits-vit` is such a study.
    """
    from rich.console import Console

    from bayes_lora.experiments.command_line.console import say
    from bayes_lora.experiments.demo.digits import EVAL, NETWORK, OTHERS, TRAIN, make_digits

    accuracy = make_digits(out, seed=seed, console=Console(stderr=True))
    if as_json:
        print(json.dumps({"folder": str(out), "accuracy": accuracy}))
        return
    say(f"In {out}: {TRAIN}, {EVAL} and {OTHERS} with images, and {NETWORK}, which tells {accuracy:.1%} of the")
    say("digits from 0 to 4 right that it has not seen.")
