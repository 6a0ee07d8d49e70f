"""`bayes-lora generate`: texts that a fitted language model writes, with how sure it is of them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bayes_lora.choices import AnswerForm, SameAnswers, TokenMeasure
from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.command_line.options import DeviceOption, JsonFlag, typed

ANSWERS_FILE, SETTINGS_FILE, PAGE_FILE = "answers.jsonl", "settings.json", "answers.html"
SCORES_FILE, ANSWER_SCORES_FILE = "scores.csv", "answer_scores.csv"


def generate_command(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A folder that fit wrote, of a language_model.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What to continue; several times for several.")] = None,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", help="Rows to continue instead: .jsonl or .csv with prompt, messages or instruction."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Each --prompt is a message, written by the tokenizer's chat template.")
    ] = False,
    num_samples: Annotated[int, typer.Option(help="Posterior draws that write a text together.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Of a text at most.")] = 64,
    temperature: Annotated[
        float | None, typer.Option(help="Sample tokens at this one; by default the likeliest is taken.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from the so many likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the fewest likeliest tokens of this probability together.")
    ] = None,
    answers: Annotated[
        int, typer.Option(help="Besides, so many independent answers to each prompt, sampled under a draw each.")
    ] = 0,
    same: Annotated[
        SameAnswers, typer.Option(help="Which answers count as the same: those of the same words, or meaning.")
    ] = "words",
    parse: Annotated[
        AnswerForm | None, typer.Option(help="What of a text is its answer; by default texts are compared as they are.")
    ] = None,
    answer_pattern: Annotated[
        str | None, typer.Option(help="The same as a regular expression: its first group is the answer.")
    ] = None,
    at_mean: Annotated[bool, typer.Option("--mean", help="Write at the posterior mean, the plain adapter.")] = False,
    seed: Annotated[int, typer.Option(help="Of the draws, and of sampled tokens.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Prompts that are continued together.")] = 8,
    color_by: Annotated[TokenMeasure, typer.Option(help="What colours the tokens in the terminal.")] = "entropy",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the texts, their scores as tables, and a page to look at.")
    ] = None,
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of earlier texts.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Continue prompts with a fitted language model, and show how sure it is of every token."""
    if bool(prompt) == (input_file is not None):
        raise ConfigurationError("Give --prompt, once or several times, or --input, a file of rows.")
    _require_effect(context, chat=chat, answers=answers, at_mean=at_mean, by_file=input_file is not None)
    from rich.console import Console

    from bayes_lora.experiments.command_line.answer_parsers import answer_parser
    from bayes_lora.experiments.command_line.coloured_texts import print_texts
    from bayes_lora.experiments.command_line.console import say
    from bayes_lora.experiments.reports.texts_page import write_texts_page
    from bayes_lora.experiments.rows.completion_rows import PROMPT, with_prompts
    from bayes_lora.experiments.rows.rows import Row, read_rows, write_jsonl
    from bayes_lora.experiments.runs.device import resolve_device
    from bayes_lora.experiments.runs.outputs import check_files
    from bayes_lora.experiments.runs.run_config import read_config
    from bayes_lora.experiments.runs.runs import load_run
    from bayes_lora.experiments.runs.writing import Writing, require_writer, write_texts
    from bayes_lora.files import write_json
    from bayes_lora.inference import Sampling, write_scores

    parser = answer_parser(parse, answer_pattern)
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    sampling = Sampling(**chosen, seed=seed) if chosen else None
    writing = Writing(num_samples, max_new_tokens, sampling, answers, seed, at_mean, batch_size)
    if out is not None:
        check_files(out, (SETTINGS_FILE, ANSWERS_FILE), overwrite=overwrite)
    task = read_config(run).task
    require_writer(task)
    rows: list[Row] = [{PROMPT: [{"role": "user", "content": text}] if chat else text} for text in prompt or ()]
    if input_file is not None:
        rows = with_prompts(read_rows(input_file), input_file, task.columns[0])
    fitted = load_run(run, resolve_device(device))
    console = Console(stderr=True)
    with console.status(f"writing {len(rows)} texts"):
        written = write_texts(fitted, rows, writing, same, parser)
    if out is not None:
        write_scores(written.scores, out / SCORES_FILE)
        (out / ANSWER_SCORES_FILE).unlink(missing_ok=True)  # of earlier texts
        if written.answer_scores:
            write_scores(written.answer_scores, out / ANSWER_SCORES_FILE)
        write_texts_page(out / PAGE_FILE, f"What {run} wrote", written.rows, writing.described())
        write_jsonl(out / ANSWERS_FILE, written.rows)
        pattern = {} if parser is None else {"answer_pattern": parser.pattern, "unparsed": written.unparsed}
        settings = {"run": str(run), "same": same, **pattern, **writing.to_json()}
        write_json(out / SETTINGS_FILE, settings)  # last: all is there
    if as_json:
        unparsed = {} if parser is None else {"unparsed": written.unparsed}
        print(json.dumps({"run": str(run), **unparsed, "texts": written.rows}))
        return
    print_texts(written.rows, color_by)
    for what, number in written.unparsed.items():
        of = len(written.rows) * (answers if what == "answers" else 1)
        say(f"{number} of {of} {what} say nothing that could be parsed.")
    if out is not None:
        say(f"Page: {out / PAGE_FILE}. Texts: {out / ANSWERS_FILE}. Scores: {out / SCORES_FILE}")


def _require_effect(context: typer.Context, *, chat: bool, answers: int, at_mean: bool, by_file: bool) -> None:
    """No option that would do nothing.

    Raises:
        ConfigurationError: names it.
    """
    given = typed(context)
    if by_file and chat:
        raise ConfigurationError("--chat is about --prompt; rows of --input say themselves what is a chat: 'messages'.")
    if at_mean and "num_samples" in given:
        raise ConfigurationError(
            f"--mean draws nothing, so {given['num_samples']} would do nothing. Drop one of the two."
        )
    if answers == 0 and "same" in given:
        raise ConfigurationError("--same is about independent answers, of which none are asked for. Add --answers 10.")
