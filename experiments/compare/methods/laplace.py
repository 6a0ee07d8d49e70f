"""`laplace` and `laplace_last_layer`: a Gaussian around the point estimate, with the curvature of its loss."""

from functools import partial

from bayes_lora.checks import require_choice
from bayes_lora.experiments.compare.cost import Cost, Measured
from bayes_lora.experiments.compare.fitting import Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec, Option, default_of
from bayes_lora.inference import (
    LaplaceOptions,
    LaplacePredictor,
    fit_laplace,
    load_laplace,
    save_laplace,
    tune_prior_precision,
)
from bayes_lora.inference.predictors.laplace import tune_prior_precision_held_out
from bayes_lora.inference.predictors.laplace.predictive import LINKS

_NOT_A_MODE = "a language model's last layer is the base model's, over the vocabulary, and was never trained"


def _chooses(method: Method) -> bool:
    return bool(method.value("tuning") == "held_out")


def _options(parameters: str, fitting: Fitting, method: Method) -> LaplaceOptions:
    return LaplaceOptions(parameters, **method.values_of(LaplaceOptions))


def _build(parameters: str, fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.point(seed)
    folder, link = fitting.place(method.training.folder, seed), method.value("link")
    path = folder / "laplace.safetensors"
    if path.is_file():
        posterior, own = load_laplace(point.network, path), Cost.read(folder)
    else:
        with Measured() as fitted:
            posterior = fit_laplace(point.network, fitting.fit.loader(), _options(parameters, fitting, method))
        own = fitted.cost
        folder.mkdir(parents=True, exist_ok=True)
        own.write(folder)
        save_laplace(posterior, path)
    with Measured() as tuned:
        if method.value("tuning") == "evidence":
            posterior = tune_prior_precision(posterior)
        else:
            study, rows = fitting.study, fitting.held_out.loader()
            posterior = tune_prior_precision_held_out(
                point.network, posterior, rows, link=link, num_samples=study.num_samples, draws=study.draws, seed=seed
            )
    chosen = {"prior_precision": posterior.prior_precision}
    predictor = LaplacePredictor(point.network, posterior, link, fitting.study.draws)
    return Fitted(predictor, cost + own + tuned.cost, chosen)


def _spec(name: str, parameters: str, summary: str, python: str) -> MethodSpec:
    one_of_links = partial(require_choice, allowed=LINKS)
    one_of_tunings = partial(require_choice, allowed=("evidence", "held_out"))
    return MethodSpec(
        name=name,
        summary=summary,
        python=python,
        passes="1, and C backward",
        source="Yang et al. 2024, Bayesian Low-rank Adaptation for Large Language Models (arXiv 2308.13111)",
        build=partial(_build, parameters),
        needs="point",
        options=(
            Option("structure", default_of(LaplaceOptions, "structure")),
            Option("link", default_of(LaplacePredictor, "link"), one_of_links, of="prediction"),
            Option("tuning", "evidence", one_of_tunings, of="prediction"),
        ),
        chooses=_chooses,
        classes_only=True,
        not_of_options="" if parameters == "all" else _NOT_A_MODE,
        check=partial(_options, parameters),
    )


SPECS = (
    _spec(
        "laplace",
        "all",
        "nothing more; one pass over the training rows with C backward passes",
        "LaplacePredictor(network, fit_laplace(network, loader))",
    ),
    _spec(
        "laplace_last_layer",
        "last_layer",
        "as laplace, over the task head's last layer alone",
        'LaplacePredictor(network, fit_laplace(network, loader, LaplaceOptions("last_layer")))',
    ),
)
