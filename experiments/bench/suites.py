"""The bench: what a step, a draw, a prediction and their memory cost, against PEFT and as each size grows."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from rich.console import Console

from bayes_lora.checks import require_count, require_seed
from bayes_lora.errors import BaseModelError, ConfigurationError
from bayes_lora.experiments.bench.cases import DECODER, Case, loaded_base
from bayes_lora.experiments.bench.choices import APART, ONE, SHARED, Question
from bayes_lora.experiments.bench.contenders import (
    DORA,
    TRAINING,
    Contender,
    Entrant,
    draws,
    laplace,
    over_components,
    passes,
    prediction,
    sampling_and_kl,
)
from bayes_lora.experiments.bench.gradients import gradient_noise, objectives
from bayes_lora.experiments.bench.language import ALONE, Decode, entrant, rows_entrant, turn
from bayes_lora.experiments.bench.memory import Memory, measure_apart, watched
from bayes_lora.experiments.bench.results import Record, Results
from bayes_lora.experiments.bench.throughput import ALONE as ONE_BY_ONE
from bayes_lora.experiments.bench.throughput import ENTERED, Grid, measured
from bayes_lora.experiments.bench.timing import Key, Turn, least_squares, median_interval, race, ratio_interval
from bayes_lora.experiments.networks.base_models import resolve_base_model
from bayes_lora.experiments.runs.machine import machine
from bayes_lora.inference.training.progress import progress_bar

SAMPLING = "sampling_and_kl"
_IN_MEMORY = ("lora", "peft_monteclora", "paper", "paper_explicit", "elbo", "full")
# Several batches a call, since `predict` tries on the first one whether draws can share a pass.
_BATCHES_PREDICTED = 4
_GRADIENTS_A_ROUND = 3
_MOST_SWEEPS = 3  # rounds


@dataclass(frozen=True)
class Bench:
    """How to measure.

    Attributes:
        base_model: as ``--base-model`` takes it.
        rounds: turns of every contender.
        quick: the smallest case of each suite only: whether the bench runs, not what things cost.
        seed: of the order of turns.
        console: where progress goes; None shows none.

    Raises:
        ConfigurationError: rounds below 1, or a seed out of range.
    """

    base_model: str = "minilm"
    rounds: int = 21
    quick: bool = False
    seed: int = 0
    console: Console | None = None

    def __post_init__(self) -> None:
        require_count("rounds", self.rounds)
        require_seed("seed", self.seed)

    def race(self, title: str, turns: Mapping[Key, Turn]) -> dict[Key, list[float]]:
        """Seconds per step, {contender: (round,)}, under a progress bar."""
        with progress_bar(self.console) as progress:
            task = progress.add_task(title, total=self.rounds * len(turns), terms="")
            return race(
                turns,
                self.rounds,
                seed=self.seed,
                turn_seconds=0.02 if self.quick else 0.2,
                on_turn=lambda: progress.advance(task),
            )

    def case(self, batch: int, tokens: int, **more: Any) -> Case:
        """A case on the base model."""
        return Case(self.base_model, batch, tokens, **more)

    @property
    def middle(self) -> tuple[int, int]:
        """Batch and tokens of suites that vary something else."""
        return (1, 8) if self.quick else (8, 32)


def run_bench(bench: Bench, suites: Sequence[str], on_suite: Callable[[Results], None] = lambda _: None) -> Results:
    """Measure some suites one after the other.

    Args:
        bench: how.
        suites: their names, of `SUITES`.
        on_suite: called with the results so far after each suite.

    Raises:
        ConfigurationError: no suite of that name.
        BaseModelError: the base model cannot be loaded.
    """
    for suite in suites:
        if suite not in SUITES:
            raise ConfigurationError(f"there is no suite {suite!r}. Name some of {', '.join(SUITES)}, or 'all'.")
    settings = {
        "base_model": bench.base_model,
        "quick": bench.quick,
        "rounds": bench.rounds,
        "threads": torch.get_num_threads(),
    }
    results = Results(settings, machine())
    for suite in suites:
        if suite == "gpu" and not torch.cuda.is_available():
            results.not_measured[suite] = "no CUDA device is present, so nothing is claimed about GPUs"
        elif suite in ("language", "choices") and not decoder_is_there():
            results.not_measured[suite] = f"{DECODER} is not installed, see docs/language-models.md"
        elif suite == "sweep" and find_spec("optuna") is None:
            results.not_measured[suite] = "the extra 'sweep' is not installed: pip install 'bayes-lora[sweep]'"
        else:
            results.records += SUITES[suite](bench)
        growth = [r for r in results.of("adapters") if r.contender == SAMPLING]
        if growth:
            counts = [float(record.case["adapters"]) for record in growth]
            results.lines[SAMPLING] = least_squares(counts, [record.value.median for record in growth])
        on_suite(results)
    return results


def decoder_is_there() -> bool:
    """Whether the model of the suites `language` and `choices` can be loaded."""
    try:
        resolve_base_model(DECODER)
    except BaseModelError:
        return False
    return True


def _training(bench: Bench, suite: str, case: Case, contenders: Iterable[Contender]) -> list[Record]:
    """Training steps of several contenders on one case."""
    entered = list(contenders)
    turns = {contender.name: contender.build(case) for contender in entered}
    seconds = bench.race(f"{suite} {case.batch}x{case.tokens}", turns)
    found = []
    for contender in entered:
        components = {} if contender.components is None else {"components": contender.components}
        references = {name: seconds[name] for name in contender.references if name in seconds}
        described = {**case.described(), **components}
        found.append(_record(suite, described, contender, "step", seconds[contender.name], references))
    return found


def _record(
    suite: str,
    case: dict[str, int | str],
    who: Entrant,
    quantity: str,
    values: Sequence[float],
    references: Mapping[str, Sequence[float]],
    unit: str = "s",
) -> Record:
    ratios = {name: ratio_interval(values, others) for name, others in references.items() if name != who.name}
    return Record(suite, case, who.name, who.label, who.ours, quantity, unit, median_interval(values), ratios)


def _steps(bench: Bench) -> list[Record]:
    """A training step, over batch x tokens."""
    sizes = ((1, 8),) if bench.quick else ((1, 8), (8, 32), (16, 64), (32, 64))
    return [record for size in sizes for record in _training(bench, "steps", bench.case(*size), TRAINING.values())]


def _components(bench: Bench) -> list[Record]:
    """A training step, over the number of components."""
    sizes, counts = (((1, 8),), (1, 4)) if bench.quick else (((1, 8), (8, 32)), (1, 4, 16, 64))
    return [
        record
        for size in sizes
        for record in _training(bench, "components", bench.case(*size), over_components(counts))
    ]


def _named(*names: str) -> list[Contender]:
    return [TRAINING[name] for name in names]


def _rank(bench: Bench) -> list[Record]:
    """A training step, over the rank."""
    entered = _named("lora", "peft_monteclora", "paper", "elbo")
    cases = [bench.case(*bench.middle, rank=rank) for rank in (8, 32)]
    return [record for case in cases for record in _training(bench, "rank", case, entered)]


def _adapters(bench: Bench) -> list[Record]:
    """A training step, over the number of adapters; and sampling and KL alone."""
    sites: list[dict[str, Any]] = [{"targets": "attention"}, {"targets": "linear"}]
    if not bench.quick:
        sites.append({"targets": "linear", "shape": "deep"})
    cases = [bench.case(*bench.middle, **site) for site in sites]
    found = [record for case in cases for record in _training(bench, "adapters", case, _named("lora", "paper"))]
    counts = (18, 36, 72) if bench.quick else (18, 36, 72, 108, 144)
    width: int = loaded_base(bench.base_model, "base").config.hidden_size
    turns = {count: sampling_and_kl(count, width, rank=8) for count in counts}
    seconds = bench.race("adapters: sampling and KL", turns)
    alone = Entrant(SAMPLING, "bayes_lora, sampling and KL alone", ours=True)
    cases_alone: list[dict[str, int | str]] = [{"adapters": count, "rank": 8, "width": width} for count in counts]
    found += [
        _record("adapters", case, alone, "step", seconds[count], {})
        for count, case in zip(counts, cases_alone, strict=True)
    ]
    return found


def _dora(bench: Bench) -> list[Record]:
    """A training step of DoRA, with a posterior and without, over batch x tokens."""
    sizes = ((1, 8),) if bench.quick else ((1, 8), (8, 32), (16, 64))
    return [record for size in sizes for record in _training(bench, "dora", bench.case(*size), DORA)]


def _memory_of(bench: Bench, suite: str, case: Case, names: Sequence[str]) -> list[Record]:
    repeats = 1 if bench.quick else 3
    measured: dict[str, list[Memory]] = {name: [] for name in names}
    with progress_bar(bench.console) as progress:
        task = progress.add_task(f"memory {case.batch}x{case.tokens}", total=repeats * len(names), terms="")
        for _ in range(repeats):
            for name in names:
                measured[name].append(measure_apart(name, case))
                progress.advance(task)
    found = []
    for quantity in ("process_peak", "tensor_peak", "held"):
        sizes = {name: [float(getattr(memory, quantity)) for memory in measured[name]] for name in names}
        references = {"lora": sizes["lora"]}
        found += [
            _record(suite, case.described(), TRAINING[name], quantity, sizes[name], references, unit="bytes")
            for name in names
        ]
    return found


def _memory(bench: Bench) -> list[Record]:
    """Memory at the worst moment of a training step, and between two."""
    size = (1, 8) if bench.quick else (32, 64)
    return _memory_of(bench, "memory", bench.case(*size), ("lora", "paper") if bench.quick else _IN_MEMORY)


def _draws(bench: Bench) -> list[Record]:
    """A posterior draw."""
    case = bench.case(1, 8)
    ways: dict[str, dict[str, Any]] = {
        "paper": {},
        "paper_explicit": {"sampler": "explicit"},
        "elbo": {"objective": "elbo"},
    }
    seconds = bench.race("draws", {name: draws(case, **config) for name, config in ways.items()})
    described = {name: value for name, value in case.described().items() if name in ("rank", "adapters")}
    references = {"paper": seconds["paper"]}
    return [_record("draws", described, TRAINING[name], "draw", seconds[name], references) for name in ways]


def _predict(bench: Bench) -> list[Record]:
    """A forward pass of prediction under one draw, against one of the plain adapter."""
    sizes, num_samples = (((1, 8),), 2) if bench.quick else (((1, 8), (8, 32), (32, 64)), 16)
    found = []
    for size in sizes:
        case, work = bench.case(*size), (num_samples, _BATCHES_PREDICTED)
        turns = {"lora": passes(case, *work), "paper": prediction(case, *work)}
        raced = bench.race(f"predict {case.batch}x{case.tokens}", turns)
        seconds = {name: [value / (num_samples * _BATCHES_PREDICTED) for value in raced[name]] for name in raced}
        described = {**case.described(), "samples": num_samples}
        references = {"lora": seconds["lora"]}
        found += [
            _record("predict", described, TRAINING[name], "prediction", seconds[name], references) for name in turns
        ]
    return found


def _language(bench: Bench) -> list[Record]:
    """A text written by several draws together, against the plain adapter's own; and the memory that it takes."""
    case, most = (Decode(4, 2), 2) if bench.quick else (Decode(32, 64), 8)
    drawn = (1, most)
    turns = {ALONE.name: turn(case.alone()), rows_entrant(most).name: turn(case.alone(most))}
    turns |= {entrant(count).name: turn(case.together(count)) for count in drawn}
    seconds = bench.race(f"language {case.tokens}+{case.new_tokens}", turns)
    entered = [ALONE, rows_entrant(most), *(entrant(count) for count in drawn)]
    references = {ALONE.name: seconds[ALONE.name]}
    found = [_record("language", case.described(), who, "text", seconds[who.name], references) for who in entered]
    writing = {ALONE: case.alone()} | {entrant(2**power): case.together(2**power) for power in range(most.bit_length())}
    peaks = {who: [float(watched(write)[2])] for who, write in writing.items()}
    references = {ALONE.name: peaks[ALONE]}
    return found + [
        _record("language", case.described(), who, "text_peak", peak, references, unit="bytes")
        for who, peak in peaks.items()
    ]


def _choices(bench: Bench) -> list[Record]:
    """Options that share their question, against one option alone."""
    case = Question(DECODER, 8, 2, 2) if bench.quick else Question(DECODER)
    seconds = bench.race("choices", case.turns())
    references = {ONE.name: seconds[ONE.name]}
    return [
        _record("choices", case.described(), who, "prediction", seconds[who.name], references)
        for who in (ONE, APART, SHARED)
    ]


def _laplace(bench: Bench) -> list[Record]:
    """A batch of a Laplace fit, against a training step of the plain adapter."""
    case = bench.case(*bench.middle)
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "laplace": ("Laplace, K-FAC reduce", {}),
        "laplace_expand": ("Laplace, K-FAC expand", {"structure": "kfac_expand"}),
        "laplace_low_rank": ("Laplace, K-FAC reduce, rank 32", {"max_rank": 32}),
        "laplace_diagonal": ("Laplace, diagonal", {"structure": "diagonal"}),
        "laplace_last_layer": ("Laplace, last layer", {"parameters": "last_layer"}),
    }
    turns = {"lora": TRAINING["lora"].build(case)}
    turns |= {name: laplace(case, **options) for name, (_, options) in ways.items()}
    seconds = bench.race(f"laplace {case.batch}x{case.tokens}", turns)
    references = {"lora": seconds["lora"]}
    found = [_record("laplace", case.described(), TRAINING["lora"], "step", seconds["lora"], {})]
    entered = [Entrant(name, label, ours=True) for name, (label, _) in ways.items()]
    return found + [_record("laplace", case.described(), who, "fit", seconds[who.name], references) for who in entered]


def _gradients(bench: Bench) -> list[Record]:
    """Variance and time of a stochastic gradient, by sampler and KL."""
    case, num_draws = bench.case(*((1, 8) if bench.quick else (4, 16))), _GRADIENTS_A_ROUND * bench.rounds
    found = []
    with progress_bar(bench.console) as progress:
        for asked in objectives(4) if bench.quick else objectives(4, 16):
            task = progress.add_task("gradients", total=(2 * len(asked.samplers) + 4) * num_draws, terms="")
            advance = partial(progress.advance, task)
            found += gradient_noise(case, asked, num_draws, seed=bench.seed, on_draw=advance)
    return found


def _sweep(bench: Bench) -> list[Record]:
    """All cells of a sweep, by its workers, against one after the other by `compare`."""
    grid = Grid(bench.base_model, 24, 1, 1, 1) if bench.quick else Grid(bench.base_model)
    rounds = min(bench.rounds, _MOST_SWEEPS)
    with progress_bar(bench.console) as progress:
        task = progress.add_task("sweep", total=rounds * len(ENTERED), terms="")
        seconds = measured(grid, rounds, seed=bench.seed, on_turn=lambda: progress.advance(task))
    references = {ONE_BY_ONE.name: seconds[ONE_BY_ONE.name]}
    return [_record("sweep", grid.described(), who, "cells", seconds[who.name], references) for who in ENTERED]


def _gpu(bench: Bench) -> list[Record]:
    """The shape of the paper's Table 10: RoBERTa-base's configuration with random weights, on a CUDA device."""
    case = bench.case(*((1, 8) if bench.quick else (32, 128)), shape="roberta", device="cuda")
    found = _training(bench, "gpu", case, TRAINING.values())
    for contender in _named("lora", "peft_monteclora", "paper", "elbo"):
        waits = [float(_synchronizations(contender.build(case)))]
        found.append(_record("gpu", case.described(), contender, "synchronizations", waits, {}, unit="count"))
    return found + _memory_of(bench, "gpu", case, _IN_MEMORY)


def _synchronizations(turn: Turn) -> int:
    """How often a step makes the host wait for the device."""
    turn(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            turn(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught) // 2  # a turn has an untimed step, too


SUITES: dict[str, Callable[[Bench], list[Record]]] = {
    "steps": _steps,
    "components": _components,
    "rank": _rank,
    "adapters": _adapters,
    "dora": _dora,
    "memory": _memory,
    "draws": _draws,
    "predict": _predict,
    "language": _language,
    "choices": _choices,
    "laplace": _laplace,
    "gradients": _gradients,
    "gpu": _gpu,
    "sweep": _sweep,
}
BY_NAME_ONLY = ("sweep",)
"""Those that "all" leaves out: more than half an hour each."""
