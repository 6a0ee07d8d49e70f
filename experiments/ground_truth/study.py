"""The ground-truth study: what is to be computed, in jobs that are each done once."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from joblib import delayed
from rich.console import Console
from safetensors.torch import load, save

from bayes_lora.checks import require_choice, require_count, require_seed
from bayes_lora.errors import BayesLoRAError, ConfigurationError, DataError
from bayes_lora.experiments.ground_truth.calibration import (
    PosteriorSampler,
    monteclora_sampler,
    rank_truth,
    sample_exact,
    sample_nuts,
    sample_too_narrow,
)
from bayes_lora.experiments.ground_truth.lemmas import output_shift, smoothed_curvature
from bayes_lora.experiments.ground_truth.measures import compare
from bayes_lora.experiments.ground_truth.methods import Contestant, Effort, all_contestants
from bayes_lora.experiments.ground_truth.nuts import sample_posterior
from bayes_lora.experiments.ground_truth.problems import (
    Problem,
    classification_problem,
    exact_posterior,
    regression_problem,
)
from bayes_lora.experiments.runs.parallel import in_parallel
from bayes_lora.experiments.runs.sessions import Session
from bayes_lora.experiments.runs.study_folder import only_one, open_study
from bayes_lora.files import read_json, write_file, write_json
from bayes_lora.inference.training.progress import progress_bar
from bayes_lora.randomness import stream

PROBLEMS: Mapping[str, Callable[[int], Problem]] = {
    "regression": regression_problem,
    "classification": classification_problem,
}
SHIFT_SCALES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SMOOTHING_SCALES = (0.03, 0.1, 0.3, 1.0)
_JOBS, _TRUTH = "jobs", "truth"
_CHUNK = 10  # replications of one job of calibration
_TRUTH_STREAM, _METHOD_STREAM = 2**31, 2**31 + 1  # beside the seeds of problems, which are used as they are


@dataclass(frozen=True)
class Study:
    """What is asked for.

    Attributes:
        seeds: one problem of each kind for each.
        effort: spent on each method and problem.
        problems: some of `PROBLEMS`.
        methods: names of `methods.all_contestants`; those that cannot do a kind of problem are left out there.
        replications: of simulation-based calibration; ten times as many where draws come from a closed form.
        lemma_draws: of noise, for each eps.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    effort: Effort = field(default_factory=Effort)
    problems: tuple[str, ...] = tuple(PROBLEMS)
    methods: tuple[str, ...] = tuple(method.name for method in all_contestants())
    replications: int = 100
    lemma_draws: int = 1000

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigurationError(f"seeds={self.seeds} must be one or more different whole numbers, such as 0,1,2.")
        for seed in self.seeds:
            require_seed("seeds", seed)
        for problem in self.problems:
            require_choice("problems", problem, tuple(PROBLEMS))
        for method in self.methods:
            require_choice("methods", method, tuple(method.name for method in all_contestants()))
        require_count("replications", self.replications)
        require_count("lemma_draws", self.lemma_draws)


def quick_study() -> Study:
    """A look at every part, in minutes: one problem of each kind, and few replications, which say little."""
    return Study((0,), Effort(num_steps=300, num_draws=1000, num_mcmc=500), replications=10, lemma_draws=300)


@dataclass(frozen=True)
class Job:
    """One result, stored as JSON under its name when it is there.

    Attributes:
        name: folder and file, without the suffix.
        run: computes what is stored.
    """

    name: str
    run: Callable[[], dict[str, Any]]

    def path(self, folder: Path) -> Path:
        return folder / _JOBS / f"{self.name}.json"


def jobs(study: Study, folder: Path) -> list[Job]:
    """Every job of a study, those that others need first."""
    return [job for stage in _stages(study, folder) for job in stage]


def run_study(study: Study, folder: Path, *, workers: int = 1, console: Console) -> dict[str, str]:
    """Do what is not done yet, and return what went wrong, by job.

    Args:
        study: what is asked for.
        folder: a new one, or one with the same study in it, which is then gone on with.
        workers: processes that share the jobs, each on one core; their number changes no result.
        console: where the progress bar goes.

    Raises:
        ConfigurationError: workers below 1.
        RunExistsError: the folder holds something else.
    """
    require_count("workers", workers)
    open_study(folder, asdict(study), growing=("seeds", "problems", "methods"))
    left = [[job for job in stage if not job.path(folder).is_file()] for stage in _stages(study, folder)]
    session, failed = Session.start(folder), dict[str, str]()
    with only_one(folder), progress_bar(console) as progress:
        task = progress.add_task("ground truth", total=sum(map(len, left)), terms="")
        for stage in left:
            for job, result, error in in_parallel(map(delayed(_attempt), stage), workers):
                if result is None:
                    failed[job.name] = error
                else:
                    write_json(job.path(folder), result)
                    session.done(name=job.name)
                progress.update(task, advance=1, terms=job.name)
    return failed


def read_job(folder: Path, name: str) -> dict[str, Any] | None:
    """A job's result; None where it is not done.

    Raises:
        DataError: the file is damaged.
    """
    path = Job(name, dict).path(folder)
    if not path.is_file():
        return None
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}). Delete it: the same command makes it again.") from error


def contestants_of(study: Study, kind: str) -> list[Contestant]:
    """The study's methods that can do this kind of problem."""
    able = (method for method in all_contestants() if kind == "classification" or method.regression)
    return [method for method in able if method.name in study.methods]


def calibration_samplers(study: Study) -> dict[tuple[str, str], tuple[PosteriorSampler, int]]:
    """By kind of problem and name, the posteriors on trial and how often each is."""
    closed, many = 10 * study.replications, study.replications
    monteclora = monteclora_sampler(study.effort.num_steps)
    found: dict[tuple[str, str], tuple[PosteriorSampler, int]] = {
        ("regression", "exact"): (sample_exact, closed),
        ("regression", "variance_quartered"): (sample_too_narrow, closed),
        ("regression", "nuts"): (sample_nuts, many),
        ("classification", "nuts"): (sample_nuts, many),
        ("regression", "elbo_dense_N4"): (monteclora, many),
        ("classification", "elbo_dense_N4"): (monteclora, many),
    }
    return {(kind, name): value for (kind, name), value in found.items() if kind in study.problems}


def calibration_jobs(kind: str, name: str, replications: int) -> dict[str, range]:
    """The jobs of one posterior on trial, by name, and the replications of each."""
    starts = range(0, replications, _CHUNK)
    return {f"calibration/{kind}-{name}-{s:05d}": range(s, min(s + _CHUNK, replications)) for s in starts}


def _attempt(job: Job) -> tuple[Job, dict[str, Any] | None, str]:
    """The job, with its result or with what went wrong: other jobs have nothing to do with that."""
    try:
        return job, job.run(), ""
    except BayesLoRAError as error:
        return job, None, f"{type(error).__name__}: {error}"


def _stages(study: Study, folder: Path) -> tuple[list[Job], list[Job]]:
    """The truth, and what is judged by it."""
    return list(_truths(study, folder)), [*_comparisons(study, folder), *_calibrations(study), *_lemmas(study)]


def _truths(study: Study, folder: Path) -> Iterator[Job]:
    for seed in study.seeds:
        for kind in study.problems:
            yield Job(f"{_TRUTH}/{kind}-{seed}", partial(_sample_truth, study, folder, kind, seed))


def _comparisons(study: Study, folder: Path) -> Iterator[Job]:
    for seed in study.seeds:
        for kind in study.problems:
            for method in contestants_of(study, kind):
                run = partial(_judge, study, folder, kind, method, seed)
                yield Job(f"methods/{kind}-{method.name}-{seed}", run)


def _calibrations(study: Study) -> Iterator[Job]:
    for (kind, name), (sampler, replications) in calibration_samplers(study).items():
        for job, part in calibration_jobs(kind, name, replications).items():
            yield Job(job, partial(_calibrate, kind, sampler, part))


def _lemmas(study: Study) -> Iterator[Job]:
    for seed in study.seeds:
        for kind in study.problems:
            yield Job(f"lemmas/{kind}-{seed}", partial(_measure_lemmas, study, kind, seed))


def _truth_file(folder: Path, kind: str, seed: int) -> Path:
    return folder / _TRUTH / f"{kind}-{seed}.safetensors"


def _sample_truth(study: Study, folder: Path, kind: str, seed: int) -> dict[str, Any]:
    problem = PROBLEMS[kind](seed)
    chains = sample_posterior(problem, num_samples=study.effort.num_mcmc, seed=stream(seed, _TRUTH_STREAM))
    write_file(_truth_file(folder, kind, seed), save({"draws": chains.pooled.contiguous()}))
    found: dict[str, Any] = {"largest_rhat": float(chains.rhat.max()), "fewest_effective": float(chains.ess.min())}
    if problem.is_regression:
        error = chains.pooled.std(0) / chains.ess.sqrt()
        distance = (chains.pooled.mean(0) - exact_posterior(problem).mean) / error
        found["mean_off_by_standard_errors"] = float(distance.abs().max())
    return found


def _judge(study: Study, folder: Path, kind: str, method: Contestant, seed: int) -> dict[str, Any]:
    path = _truth_file(folder, kind, seed)
    if not path.is_file():
        raise DataError(f"{path} is missing, since the posterior was not sampled. See what is said of that job.")
    problem = PROBLEMS[kind](seed)
    draws = method.draw(problem, study.effort, stream(seed, _METHOD_STREAM))
    return asdict(compare(problem, draws, load(path.read_bytes())["draws"]))


def _calibrate(kind: str, sampler: PosteriorSampler, replications: range) -> dict[str, Any]:
    return {"ranks": rank_truth(PROBLEMS[kind], sampler, replications).values.tolist()}


def _measure_lemmas(study: Study, kind: str, seed: int) -> dict[str, Any]:
    problem = PROBLEMS[kind](seed)
    shift = output_shift(problem, SHIFT_SCALES, study.lemma_draws, seed)
    curvatures = [smoothed_curvature(problem, scale, study.lemma_draws, seed) for scale in SMOOTHING_SCALES]
    return {"output_shift": asdict(shift), "curvature": [asdict(found) for found in curvatures]}
