"""What a method of prediction says of itself, and a method with its options. Each is one file in `methods/`."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, Literal

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.compare.fitting import Fitted, Fitting
from bayes_lora.experiments.compare.telling_outside import told_by
from bayes_lora.experiments.families.family import TaskFamily
from bayes_lora.inference import FitOptions

Needs = Literal["nothing", "point", "own"]
"""What must be trained: nothing, the point estimate that a study trains once for each seed, or a network of its own."""

Samples = Literal["one", "draws", "members"]
"""How many samples a prediction has: one, as many as were asked for, or one for each of its option `members`."""

_WITHOUT_BRACKETS = re.compile(r"[\[\],]")


def as_text(value: Any) -> str:
    """A default as people read it: 1, not 1.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Option:
    """An option of a method, written in brackets after its name.

    Attributes:
        name: as it is written.
        default: its value where nobody gives one; None leaves it to the study, or to what the option configures.
        check: called with a name for messages and the value, and raises ConfigurationError; None where what the option
            configures, `FitOptions` for one, has checks of its own, which the method's `check` calls.
        shown: what people read as its default, where that is no value of its own: "--epochs".
        old_name: what it was called, which is still read, and still names the folders of what was trained with it.
        of: "training" where it changes what is trained or fitted, "prediction" where only how to predict with that:
            methods that differ in nothing else share one training.
    """

    name: str
    default: Any = None
    check: Callable[[str, Any], None] | None = None
    shown: str = ""
    old_name: str = ""
    of: Literal["training", "prediction"] = "training"

    @property
    def default_text(self) -> str:
        """The default as people read it."""
        return self.shown or as_text(self.default)


@dataclass(frozen=True)
class Suffix:
    """A word that goes after a method, and what it does.

    Attributes:
        name: of the suffix, and without the plus.
        summary, python, passes, source: see `MethodSpec`.
        to_noise: what it does to a posterior's noise, which the method must have; empty where it needs none.
        of_network: whether it goes with methods that are one network of classes at one point.
        not_of_options: why it is nothing where the classes are a row's own options; empty where it is something.
    """

    name: str
    summary: str
    python: str
    passes: str
    source: str
    to_noise: str = ""
    of_network: bool = False
    not_of_options: str = ""

    @property
    def after(self) -> str:
        """Whose name it goes after, in words."""
        return "a posterior's" if self.to_noise else "one network's" if self.of_network else "any"


SUFFIXES: Mapping[str, Suffix] = {
    suffix.name: suffix
    for suffix in (
        Suffix(
            "calibrated",
            "one number, the scale of the noise, on held-out rows",
            "calibrate_scale(model, guide, held_out)",
            "S",
            "arXiv 2411.04358; the criterion is that of temperature scaling, Guo et al. 2017, section 4.2",
            to_noise="chooses the scale of",
        ),
        Suffix(
            "mean",
            "nothing more: the network at the posterior's mean, to see what draws add",
            "predict(model, guide, loader, at_mean=True)",
            "1",
            "bayes_lora",
            to_noise="leaves out",
        ),
        Suffix(
            "energy",
            "nothing more; rows from elsewhere are told by the energy of their logits",
            "EnergyScore(predictor)",
            "those of the method",
            "Liu et al. 2020, Energy-based Out-of-distribution Detection (arXiv 2010.03759)",
            of_network=True,
        ),
        Suffix(
            "mahalanobis",
            "nothing more; by their hidden states' distance to the nearest class, one pass over the training rows",
            "MahalanobisDistance.fit(predictor, loader)",
            "those of the method",
            "Lee et al. 2018, A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial "
            "Attacks (arXiv 1807.03888)",
            of_network=True,
            not_of_options="options are a row's own, so that training rows have no classes to be near to",
        ),
        Suffix(
            "neighbours",
            "nothing more; by their hidden states' distance to the k-th nearest training row, one pass over those",
            "NearestNeighbours.fit(predictor, loader)",
            "those of the method",
            "Sun et al. 2022, Out-of-Distribution Detection with Deep Nearest Neighbors (arXiv 2204.06507)",
            of_network=True,
        ),
        Suffix(
            "temperature",
            "one number, on held-out rows",
            "TemperatureScaled(predictor, fit_temperature(held_out))",
            "those of the method",
            "Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2",
        ),
    )
}


def _accept(fitting: Fitting, method: "Method") -> None:
    """The check of a method whose options need no other than their own."""


def _never(method: "Method") -> bool:
    return False


def always(method: "Method") -> bool:
    """`MethodSpec.chooses` of one that does, whatever its options are."""
    return True


@dataclass(frozen=True, eq=False)
class MethodSpec:
    """Everything that the parser, the help, the docs, the schedule and the tests know of a method.

    Two are equal if their names are: a method that comes back from another process is the one that was sent.

    Attributes:
        name: as it is written; letters, digits and underscores.
        summary: one line, what it is or what it trains.
        python: how it is called in Python.
        passes: forward passes a batch; S draws, M members, C classes.
        source: paper, or package.
        build: gives its predictor for a study, its options and a seed, without temperature; what it trains it
            keeps, and finds again.
        needs: what must have been trained for it.
        options: in the order that its label has them in.
        samples: of a prediction.
        any_batches: whether predictions are the same in whatever batches the rows come.
        has_noise: whether it is a trained posterior, with which `+calibrated` and `+mean` go.
        classes_only: whether it takes one class for each row and no other labels; the class may be an option.
        not_of_options: why it is nothing where the classes are a row's own options; empty where it is something.
        chooses: whether a method of this spec chooses something by the held-out rows, beyond `+calibrated`.
        check: raises ConfigurationError where its options cannot have the values they have, before anything is
            trained; what it returns is not used.
        stands_for: where no options are given, it is another name of this.
        tempered_name: a name of its own for the method with `+temperature`, where it has one.
    """

    name: str
    summary: str
    python: str
    passes: str
    source: str
    build: Callable[[Fitting, "Method", int], Fitted]
    needs: Needs = "own"
    options: tuple[Option, ...] = ()
    samples: Samples = "draws"
    any_batches: bool = True
    has_noise: bool = False
    classes_only: bool = False
    not_of_options: str = ""
    chooses: Callable[["Method"], bool] = _never
    check: Callable[[Fitting, "Method"], object] = _accept
    stands_for: str = ""
    tempered_name: str = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MethodSpec) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def option_names(self) -> tuple[str, ...]:
        """In their order."""
        return tuple(option.name for option in self.options)

    def option_named(self, written: str) -> Option | None:
        """The option of this name, or of this old name."""
        return next((option for option in self.options if written in (option.name, option.old_name)), None)

    def to_json(self) -> dict[str, Any]:
        """Plain data; functions are left out."""
        options = [{"name": option.name, "default": option.default_text, "of": option.of} for option in self.options]
        plain = ("name", "summary", "python", "passes", "source", "needs", "samples", "any_batches", "has_noise")
        return {**{name: getattr(self, name) for name in plain}, "stands_for": self.stands_for, "options": options}


@dataclass(frozen=True)
class Method:
    """A method with its options.

    Attributes:
        spec: what it is.
        options: those that were given, in the order of the spec, however they were written.
        calibrated: the scale of the noise is chosen on held-out rows after training (`calibrate_scale`).
        at_mean: predictions are made once at the posterior's mean, without draws.
        told_by: the suffix that says by what rows from elsewhere are told; empty is by its probabilities.
        tempered: a temperature chosen on held-out rows is applied to the mean probabilities.
        halved: what it chooses by held-out rows it chooses by one half of them, so that a temperature can be chosen by
            the other: chosen by rows that were chosen by already, it would be too low.
    """

    spec: MethodSpec
    options: tuple[tuple[str, Any], ...] = ()
    calibrated: bool = False
    at_mean: bool = False
    told_by: str = ""
    tempered: bool = False
    halved: bool = False

    @property
    def name(self) -> str:
        """Of its spec."""
        return self.spec.name

    @property
    def label(self) -> str:
        """As it is written, and as tables have it."""
        if self.spec.tempered_name and self == Method(self.spec, tempered=True):
            return self.spec.tempered_name
        return self._written({})

    def _written(self, renamed: Mapping[str, str]) -> str:
        options = ",".join(f"{renamed.get(name, name)}={value}" for name, value in self.options)
        return (
            self.name
            + (f"[{options}]" if options else "")
            + ("+calibrated" if self.calibrated else "")
            + ("+mean" if self.at_mean else "")
            + (f"+{self.told_by}" if self.told_by else "")
            + ("+temperature" if self.tempered else "")
            + ("+halved" if self.halved else "")
        )

    @property
    def folder(self) -> str:
        """A folder name for it, different for different methods."""
        old = {option.name: option.old_name for option in self.spec.options if option.old_name}
        label = self._written(old) if self.options else self.label
        return _WITHOUT_BRACKETS.sub("_", label).replace("_+", "+").rstrip("_")

    @property
    def untempered(self) -> "Method":
        """The method whose predictions a temperature is applied to; without one, itself."""
        if not self.tempered:
            return self
        return replace(self, tempered=False, halved=self.calibrated or self.spec.chooses(self))

    @property
    def training(self) -> "Method":
        """What it trains or fits, shared by methods that differ only in how they predict with it."""
        trained = {option.name for option in self.spec.options if option.of == "training"}
        return Method(self.spec, tuple(pair for pair in self.options if pair[0] in trained))

    def value(self, name: str) -> Any:
        """Of an option: what was given, or its default."""
        defaults = {option.name: option.default for option in self.spec.options}
        return dict(self.options).get(name, defaults[name])

    def values_of(self, configured: type) -> dict[str, Any]:
        """Its options among the fields of a dataclass: those that were given, or that have a default."""
        names = [name for name in self.spec.option_names if name in configured.__dataclass_fields__]  # type: ignore[attr-defined]
        return {name: self.value(name) for name in names if self.value(name) is not None}

    def refusal(self, family: TaskFamily) -> str | None:
        """Why it is nothing for tasks of a family; None where it is something."""
        if family.of_options:
            suffix = SUFFIXES[self.told_by].not_of_options if self.told_by else ""
            reason = self.spec.not_of_options or suffix
            return f"{self.label} is nothing for a row's own options: {reason}" if reason else None
        classes = self.spec.classes_only or self.told_by
        return f"{self.label} takes one class for each row" if classes and not family.of_classes else None

    def check(self, fitting: Fitting) -> None:
        """Whether its options can have the values they have, asked before anything is trained.

        Raises:
            ConfigurationError: one cannot.
        """
        checks = {option.name: option.check for option in self.spec.options}
        for name, value in self.options:
            check = checks[name]
            if check is not None:
                check(f"{self.label}: {name}", value)
        refusal = self.refusal(fitting.task.family)
        if refusal is not None:
            raise ConfigurationError(f"{refusal}. Leave it out of --methods for {fitting.task.task_type}.")
        if self.tempered and not fitting.task.family.takes_temperature:
            raise ConfigurationError(
                f"{self.label} asks for a temperature, and predictions of task type {fitting.task.task_type} keep too "
                "little for one. Leave it out of --methods."
            )
        fitting.study.options(0, **self.values_of(FitOptions))
        self.spec.check(fitting, self)

    def build(self, fitting: Fitting, seed: int) -> Fitted:
        """Train what has not been trained yet, and give its predictor, without temperature."""
        fitted = self.spec.build(fitting, self, seed)
        return told_by(self.told_by, fitting, fitted) if self.told_by else fitted


def default_of(owner: Callable[..., Any], name: str) -> Any:
    """The default of a dataclass's field or a function's argument: said there, and read here."""
    return signature(owner).parameters[name].default
