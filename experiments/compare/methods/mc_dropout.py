"""`mc_dropout`: the point estimate with its dropout left on."""

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.compare.fitting import Fitted, Fitting
from bayes_lora.experiments.compare.method_spec import Method, MethodSpec, Option
from bayes_lora.inference import MCDropout


def _check(fitting: Fitting, method: Method) -> None:
    given = method.value("probability")
    probability = fitting.study.lora.dropout if given is None else given
    if not (isinstance(probability, int | float) and 0 < probability < 1):
        raise ConfigurationError(
            f"{method.label} needs dropout above 0 and below 1. Train with --lora-dropout 0.1, or write "
            "mc_dropout[probability=0.1]."
        )


def _build(fitting: Fitting, method: Method, seed: int) -> Fitted:
    point, cost = fitting.point(seed)
    return Fitted(MCDropout(point.network, method.value("probability")), cost)


SPECS = (
    MethodSpec(
        name="mc_dropout",
        summary="nothing more; LoRA's dropout stays on",
        python="MCDropout(network)",
        passes="S",
        source="Gal and Ghahramani 2016, Dropout as a Bayesian Approximation, section 4",
        build=_build,
        needs="point",
        # That of training, where none is given.
        options=(Option("probability", shown="--lora-dropout", of="prediction"),),
        any_batches=False,  # the masks of a draw are those of a batch
        check=_check,
    ),
)
