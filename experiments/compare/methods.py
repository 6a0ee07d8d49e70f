"""Methods by name: what `--methods` may say, and what each word of it means."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bayes_lora.errors import ConfigurationError

_POSTERIOR = (
    *("objective", "temperature", "sample_scale", "prior_scale", "kl_weight", "cooperative_weight"),
    *("num_components", "num_outer_samples", "degrees_of_freedom", "prior_concentration", "normal_kl", "sampler"),
)
_POINT = ("epochs", "learning_rate", "weight_decay")
# Of these, a method's take the place of the study's in its `FitOptions`.
FIT_OPTIONS = (*_POINT, "posterior_learning_rate")
_TRAINED = (*_POSTERIOR, *FIT_OPTIONS)

# Every method, and the options that it takes, in the order in which its label has them. These start from the point
# estimate that a study trains once for each seed,
_OF_POINT: Mapping[str, tuple[str, ...]] = {
    "map": (),
    "temperature": (),
    "early_stopping": (),
    "mc_dropout": ("probability",),
    "checkpoint_ensemble": ("members",),
    "deep_ensemble": ("members",),
    "laplace": ("structure", "link", "tuning"),
    "laplace_last_layer": ("structure", "link", "tuning"),
    "swag": ("epochs", "learning_rate", "scale"),
    "monteclora_posthoc": (*_POSTERIOR, "epochs", "posterior_learning_rate"),
    "monteclora_calibrated": _POSTERIOR,
}
# and these train a network of their own, or none.
_OF_THEIR_OWN: Mapping[str, tuple[str, ...]] = {
    "base_rate": (),
    "monteclora": _TRAINED,
    "monteclora_sparse": _TRAINED,
    "blob": ("temperature", "prior_scale", "init_scale", *FIT_OPTIONS),
    "lora": _POINT,
    "full": _POINT,
    "adalora": _POINT,
    "dora": _POINT,
    "adapter": _POINT,
}
METHODS: Mapping[str, tuple[str, ...]] = {**_OF_POINT, **_OF_THEIR_OWN}
# Options that say how to predict with what was trained, and not what to train.
_OF_PREDICTION = ("probability", "members", "link", "tuning", "scale")
# Two names of one thing each, where no options are given.
_SAME = {"lora": ("map", False), "temperature": ("map", True)}
_CALIBRATED, _MEAN, _TEMPERATURE = _SUFFIXES = ("calibrated", "mean", "temperature")
_POSTERIORS = ("monteclora", "monteclora_sparse", "monteclora_posthoc", "blob")  # that training has made
_THESE = "+calibrated, +mean and +temperature"
_WRITTEN = re.compile(r"(?P<name>\w+)(\[(?P<options>[^\[\]]*)\])?(?P<suffixes>(\+\w+)*)")


@dataclass(frozen=True)
class Method:
    """A method with its options.

    Attributes:
        name: one of `METHODS`, but for "temperature", which is "map" with `tempered`, and "lora", which is "map" too
            where it has no options.
        options: in the order of `METHODS`, however they were written.
        calibrated: the scale of the noise is chosen on held-out rows after training (`calibrate_scale`); so it is in
            "monteclora_calibrated", which trains nothing else.
        at_mean: predictions are made once at the posterior's mean, without draws.
        tempered: a temperature chosen on held-out rows is applied to the mean probabilities.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()
    calibrated: bool = False
    at_mean: bool = False
    tempered: bool = False

    @property
    def label(self) -> str:
        """As it is written, and as tables have it."""
        if self == Method("map", tempered=True):
            return "temperature"
        options = ",".join(f"{name}={value}" for name, value in self.options)
        return (
            self.name
            + (f"[{options}]" if options else "")
            + ("+calibrated" if self.calibrated else "")
            + ("+mean" if self.at_mean else "")
            + ("+temperature" if self.tempered else "")
        )

    @property
    def folder(self) -> str:
        """A folder name for it, different for different methods."""
        return re.sub(r"[\[\],]", "_", self.label).replace("_+", "+").rstrip("_")

    @property
    def untempered(self) -> "Method":
        """The method without its temperature."""
        return replace(self, tempered=False)

    @property
    def training(self) -> "Method":
        """What it trains or fits, shared by methods that differ only in how they predict with it."""
        return Method(self.name, tuple(option for option in self.options if option[0] not in _OF_PREDICTION))

    @property
    def starts_from_point(self) -> bool:
        """Whether it needs the point estimate of its seed, or is it."""
        return self.name in _OF_POINT

    def given(self, *names: str) -> dict[str, Any]:
        """Its options among these."""
        return {name: value for name, value in self.options if name in names}


def parse_methods(text: str) -> list[Method]:
    """Methods: ``name`` or ``name[option=value,...]``, with ``+calibrated``, ``+mean`` or ``+temperature`` after it.

    Separated by commas outside of brackets; one that is there twice counts once, in whatever order its options are.

    Raises:
        ConfigurationError: an unknown name, option or suffix, or one that does not belong to the method.

    Example:
        >>> [method.label for method in parse_methods("map, monteclora[sample_scale=0.05]+temperature")]
        ['map', 'monteclora[sample_scale=0.05]+temperature']
    """
    written = [part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip()]
    if not written:
        raise ConfigurationError(f"--methods names none. Give some of {', '.join(METHODS)}, separated by commas.")
    return list(dict.fromkeys(_parse(part) for part in written))


def _parse(written: str) -> Method:
    match = _WRITTEN.fullmatch(written)
    if match is None:
        raise ConfigurationError(
            f"--methods: {written!r} is not understood. Write name, or name[option=value,...], and {_THESE} after it."
        )
    name, suffixes = match["name"], [suffix for suffix in match["suffixes"].split("+") if suffix]
    if name not in METHODS:
        raise ConfigurationError(f"--methods: there is no method {name!r}. The methods are {', '.join(METHODS)}.")
    odd = [suffix for suffix in suffixes if suffix not in _SUFFIXES]
    if odd:
        raise ConfigurationError(f"--methods: {written!r} has +{odd[0]}; there are {_THESE}.")
    options = _options(written, name, match["options"] or "")
    calibrated, at_mean = _CALIBRATED in suffixes, _MEAN in suffixes
    if (calibrated or at_mean) and name not in _POSTERIORS:
        what = "chooses the scale of" if calibrated else "leaves out"
        raise ConfigurationError(
            f"--methods: {written!r}: +{_CALIBRATED if calibrated else _MEAN} {what} a trained posterior's noise, and "
            f"{name} has none. Drop it; +temperature goes with every method."
        )
    if calibrated and at_mean:
        raise ConfigurationError(
            f"--methods: {written!r}: the mean has no noise, whose scale +calibrated could choose. Write one of them."
        )
    name, tempered = _SAME[name] if name in _SAME and not options else (name, False)
    return Method(name, options, calibrated, at_mean, tempered or _TEMPERATURE in suffixes)


def _options(written: str, name: str, text: str) -> tuple[tuple[str, Any], ...]:
    found: dict[str, Any] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        option, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not value or option not in METHODS[name]:
            takes = ", ".join(METHODS[name]) or "none"
            raise ConfigurationError(
                f"--methods: {written!r}: {pair!r} is no option of {name}. Its options are: {takes}; write name=value."
            )
        found[option] = _value(value)
    return tuple((option, found[option]) for option in METHODS[name] if option in found)


def _value(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text
    # 1 and 1.0 are one value, which is trained once; 1e30 is no count.
    return int(number) if number.is_integer() and abs(number) < 1e15 else number


def with_bases(methods: Sequence[Method]) -> list[Method]:
    """The methods whose predictions must be made: a temperature is applied to stored ones."""
    return list(dict.fromkeys(method.untempered for method in methods))
