"""`bayes-lora ask`: how well each score tells what fitted language models do not know."""

import json
from pathlib import Path
from typing import Annotated

import typer

from bayes_lora.choices import AnswerForm, SameAnswers
from bayes_lora.experiments.command_line.options import DeviceOption, JsonFlag, SeedOption, named_folder


def ask_command(
    runs: Annotated[
        list[str],
        typer.Argument(help="Folders that fit wrote, of a language_model, or NAME=FOLDER; several are as many seeds."),
    ],
    input_file: Annotated[
        Path,
        typer.Option("--input", help="Questions: .jsonl or .csv with prompt, messages or instruction, and answer."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the study; where it holds this study, it is gone on with.")],
    plain: Annotated[
        list[str] | None,
        typer.Option(help="A run of plain LoRA to compare with, once for each run; by default the run's own mean."),
    ] = None,
    parse: Annotated[
        AnswerForm | None, typer.Option(help="What of a text is its answer; by default the whole text.")
    ] = None,
    answer_pattern: Annotated[
        str | None, typer.Option(help="The same as a regular expression: its first group is the answer.")
    ] = None,
    answers: Annotated[int, typer.Option(help="Independent answers to each question besides; 0 for none.")] = 10,
    same: Annotated[
        SameAnswers, typer.Option(help="Which of those count as the same: of the same words, or meaning.")
    ] = "words",
    num_samples: Annotated[int, typer.Option(help="Posterior draws that write a text together.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Of a text at most.")] = 32,
    limit: Annotated[int | None, typer.Option(help="The first so many questions; by default all.")] = None,
    seed: SeedOption = 0,
    batch_size: Annotated[int, typer.Option(help="Questions that are answered together.")] = 8,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Ask fitted language models questions, and measure how well each score tells wrong answers from right ones.

    And questions that have no answer from those that have one; the posterior's scores beside the plain adapter's.
    It can be stopped at any time: the same command goes on with it.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from bayes_lora.checks import require_count
    from bayes_lora.experiments.asking.questions import read_questions
    from bayes_lora.experiments.asking.report import (
        PICTURE_FILE,
        RESULTS_FILE,
        TABLE_FILE,
        sentences,
        table_rows,
        write_report,
    )
    from bayes_lora.experiments.asking.study import AskingStudy, run_asking_study
    from bayes_lora.experiments.asking.telling import TARGETS
    from bayes_lora.experiments.command_line.answer_parsers import answer_parser
    from bayes_lora.experiments.command_line.console import say
    from bayes_lora.experiments.rows.rows import read_rows
    from bayes_lora.experiments.runs.device import resolve_device
    from bayes_lora.experiments.runs.writing import Writing

    parser = answer_parser(parse, answer_pattern)
    if limit is not None:
        require_count("limit", limit)
    study = AskingStudy(
        runs=dict(map(named_folder, runs)),
        plain=dict(map(named_folder, plain or [])) or None,
        questions=read_questions(read_rows(input_file), input_file)[:limit],
        writing=Writing(num_samples, max_new_tokens, None, answers, seed, batch_size=batch_size),
        same=same,
        parse=parser,
    )
    found = run_asking_study(study, out, console=Console(stderr=True), device=resolve_device(device))
    told = write_report(found, out)
    tables = {target: table_rows(told, target) for target in dict.fromkeys(one.target for one in told)}
    if as_json:
        print(json.dumps({"study": str(out), "right": sentences(found), "tables": tables}))
        return
    console = Console()
    for target, (head, *rows) in tables.items():
        table = Table(title=f"telling {TARGETS[target]}", title_justify="left")
        for column in head:
            table.add_column(Text(column))
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
    for line in sentences(found):
        say(line)
    say(f"In {out}: {RESULTS_FILE}, {TABLE_FILE}{f', {PICTURE_FILE}' if told else ''}.")
