"""`vbll`: a variational posterior over the last layer of the point estimate."""

from bayes_lora.experiments.compare.cost import Cost, Measured
from bayes_lora.experiments.compare.fitting import Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec, Option, default_of
from bayes_lora.inference import PointEstimate, VBLLOptions, VBLLPosterior, VBLLPredictor, fit_vbll


def _options(fitting: Fitting, method: Method) -> VBLLOptions:
    return VBLLOptions(**method.values_of(VBLLOptions))


def _build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.point(seed)
    predictor, folder = PointEstimate(point.network), fitting.place(method.training.folder, seed)
    path = folder / "vbll.safetensors"
    if path.is_file():
        posterior, own = VBLLPosterior.load(path), Cost.read(folder)
    else:
        with Measured() as fitted:
            posterior = fit_vbll(predictor, fitting.fit.loader(), _options(fitting, method))
        own = fitted.cost
        folder.mkdir(parents=True, exist_ok=True)
        own.write(folder)
        posterior.save(path)
    return Fitted(VBLLPredictor(predictor, posterior, fitting.study.draws), cost + own)


SPECS = (
    MethodSpec(
        name="vbll",
        summary="a Gaussian over the last layer, by a bound in closed form; the network stays",
        python="VBLLPredictor(predictor, fit_vbll(predictor, loader))",
        passes="1",
        source="Harrison et al. 2024, Variational Bayesian Last Layers (arXiv 2404.11599), after training",
        build=_build,
        needs="point",
        options=tuple(
            Option(name, default_of(VBLLOptions, name))
            for name in ("prior_scale", "wishart_scale", "degrees_of_freedom")
        ),
        classes_only=True,
        not_of_options="a language model's head is the base model's, over the vocabulary, and was never trained",
        check=_options,
    ),
)
