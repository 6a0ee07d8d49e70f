"""`bayes-lora bench`: time and memory against PEFT."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.command_line.options import JsonFlag, typed

RESULTS_FILE, PAGE_FILE, PICTURE_FILE = "bench.json", "bench.md", "bench.png"
ROUNDS, QUICK_ROUNDS = 21, 3
_OF_MEASURING = ("suite", "rounds", "quick", "base_model")


def bench_command(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option(help=f"Folder for {RESULTS_FILE}, {PAGE_FILE} and {PICTURE_FILE}.")
    ] = None,
    suite: Annotated[
        str, typer.Option(help="all, which is all but sweep, or some of {suites}, separated by commas.")
    ] = "all",
    rounds: Annotated[
        int | None, typer.Option(help=f"Turns of each contender; by default {ROUNDS}, quick {QUICK_ROUNDS}.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The smallest case of each suite, a few rounds.")] = False,
    base_model: Annotated[str | None, typer.Option(help="{base_models} Default: minilm.")] = None,
    check: Annotated[
        Path | None,
        typer.Option(help="Earlier results: measure their suites, fail on a ratio over {bench_tolerance} worse."),
    ] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Earlier results to use instead of measuring.")] = None,
    readme: Annotated[Path | None, typer.Option(help="A page whose table, between two markers, is made anew.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files in --out if they exist.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Time training steps, draws and predictions against PEFT, in interleaved rounds, and measure their memory.

    And how much a stochastic gradient varies, by sampler and KL.

    Whole, it takes about an hour on 2 cores; nothing else should run meanwhile.
    """
    if out is None and check is None and source is None:
        raise ConfigurationError("Give --out, the folder for the results; or --check or --from, earlier results.")
    if source is not None:
        idle = [option for name, option in typed(context).items() if name in _OF_MEASURING]
        if idle:
            raise ConfigurationError(f"--from measures nothing, so {', '.join(idle)} would do nothing. Drop one side.")
    from bayes_lora.experiments.bench.check import TOLERANCE, check_against
    from bayes_lora.experiments.bench.report import around_table, update_readme
    from bayes_lora.experiments.bench.results import read_results
    from bayes_lora.experiments.bench.suites import run_bench
    from bayes_lora.experiments.command_line.bench_results import Place, planned, print_results
    from bayes_lora.experiments.command_line.console import say

    if readme is not None:
        around_table(readme)
    earlier = None if check is None else read_results(check)
    place = None if out is None else Place(out)
    if place is not None:
        place.require_free(overwrite=overwrite)
    if source is not None:
        results = read_results(source)
        if place is not None:
            place.write(results)
    else:
        bench, suites = planned(suite, rounds, quick, base_model, earlier)
        results = run_bench(bench, suites, place.write if place is not None else lambda _: None)
    if readme is not None:
        update_readme(readme, results)
    if as_json:
        print(json.dumps(results.to_json()))
    else:
        print_results(results)
    if earlier is not None:
        compared = check_against(results, earlier)
        if not as_json:
            say(f"{compared} ratios compared with {check}: none is more than {TOLERANCE:.0%} worse.")
    if place is not None and not as_json:
        say(f"Written to {place.folder}: {RESULTS_FILE}, {PAGE_FILE}, {PICTURE_FILE}.")
