"""`bayes-lora plan`: what an adaptation will need, before anything is rented."""

import json
from typing import Annotated, Literal

import typer

from bayes_lora.experiments.command_line.options import JsonFlag, LoRAAlphaOption, RankOption, TargetsOption


def plan_command(
    model_config: Annotated[str, typer.Option(help="A model's config.json, a base model, or one of {shapes}.")],
    rank: RankOption = 8,
    lora_alpha: LoRAAlphaOption = 16,
    targets: TargetsOption = "attention",
    num_components: Annotated[int, typer.Option(help="N, draws in the mixture.")] = 4,
    num_outer_samples: Annotated[int, typer.Option(help="M, independent draws of the mixture.")] = 1,
    sampler: Annotated[
        Literal["collapsed", "explicit"], typer.Option(help="explicit draws every component, as the paper has it.")
    ] = "collapsed",
    batch: Annotated[int, typer.Option(help="Rows in one pass, on each device.")] = 1,
    length: Annotated[int, typer.Option(help="Tokens of a row.")] = 256,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Activations are computed anew in the backward pass.")
    ] = False,
    dtype: Annotated[Literal["bf16", "fp16", "fp32"], typer.Option(help="Of the base model.")] = "bf16",
    devices: Annotated[int, typer.Option(help="Devices that share the work.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Say what adapting a causal language model needs: parameters, noise, and memory of each device.

    The model is built without its weights, so that seventy billion parameters take seconds.
    """
    from rich.console import Console
    from rich.table import Table

    from bayes_lora.config import MonteCLoRAConfig
    from bayes_lora.experiments.command_line.console import say
    from bayes_lora.experiments.plan.planning import Batch, plan, read_shape
    from bayes_lora.inference.finetuning.lora import LoRAOptions

    posterior = MonteCLoRAConfig(num_components=num_components, num_outer_samples=num_outer_samples, sampler=sampler)
    lora = LoRAOptions(rank, lora_alpha, targets=targets)
    work = Batch(batch, length, checkpointing)
    found = plan(read_shape(model_config), lora, posterior, work, dtype=dtype, devices=devices)
    if as_json:
        print(json.dumps(found.to_json()))
        return
    say(f"{found.parameters:,} parameters, {found.adapters} adapters with {found.trainable:,}; the posterior adds")
    say(f"{found.posterior:,}, and a draw is {found.noise:,} numbers.")
    table = Table(title=f"GiB on each of {devices} device{'s' if devices > 1 else ''}", title_justify="left")
    for column in ("", *found.memories):
        table.add_column(column.upper(), justify="right" if column else "left")
    numbers = found.to_json()
    for part in numbers["ddp"]:
        table.add_row(part, *(f"{numbers[name][part] / 2**30:.2f}" for name in found.memories))
    Console().print(table)
    say(f"Attention that is not fused keeps {found.attention / 2**30:.2f} GiB more. Activations are an estimate.")
