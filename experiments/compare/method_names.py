"""Methods as people write them: `name[option=value,...]+suffix`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.compare.method_spec import SUFFIXES, Method, MethodSpec

_THESE = " and ".join(", ".join(f"+{name}" for name in SUFFIXES).rsplit(", ", 1))
_WRITTEN = re.compile(r"(?P<name>\w+)(\[(?P<options>[^\[\]]*)\])?(?P<suffixes>(\+\w+)*)")


def read_methods(text: str, known: Mapping[str, MethodSpec]) -> list[Method]:
    """The methods that a text names, see `parse_methods`, among those that are known."""
    written = [part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip()]
    if not written:
        raise ConfigurationError(f"--methods names none. Give some of {', '.join(known)}, separated by commas.")
    return list(dict.fromkeys(_read(part, known) for part in written))


def _read(written: str, known: Mapping[str, MethodSpec]) -> Method:
    match = _WRITTEN.fullmatch(written)
    if match is None:
        raise ConfigurationError(
            f"--methods: {written!r} is not understood. Write name, or name[option=value,...], and {_THESE} after it."
        )
    name, suffixes = match["name"], [suffix for suffix in match["suffixes"].split("+") if suffix]
    if name not in known:
        raise ConfigurationError(f"--methods: there is no method {name!r}. The methods are {', '.join(known)}.")
    spec = known[name]
    _check_suffixes(written, spec, suffixes)
    options = _options(written, spec, match["options"] or "")
    method = _read(spec.stands_for, known) if spec.stands_for and not options else Method(spec, options)
    return replace(
        method,
        calibrated="calibrated" in suffixes,
        at_mean="mean" in suffixes,
        told_by=next((name for name in suffixes if SUFFIXES[name].of_network), ""),
        tempered=method.tempered or "temperature" in suffixes,
    )


def _check_suffixes(written: str, spec: MethodSpec, suffixes: list[str]) -> None:
    odd = [suffix for suffix in suffixes if suffix not in SUFFIXES]
    if odd:
        raise ConfigurationError(f"--methods: {written!r} has +{odd[0]}; there are {_THESE}.")
    for suffix in (SUFFIXES[name] for name in suffixes):
        if suffix.to_noise and not spec.has_noise:
            raise ConfigurationError(
                f"--methods: {written!r}: +{suffix.name} {suffix.to_noise} a trained posterior's noise, and "
                f"{spec.name} has none. Drop it; +temperature goes with every method."
            )
        if suffix.of_network and (spec.samples != "one" or spec.needs == "nothing"):
            raise ConfigurationError(
                f"--methods: {written!r}: +{suffix.name} asks one network about each row, and {spec.name} is none. "
                f"Write map+{suffix.name}."
            )
    if sum(SUFFIXES[name].of_network for name in set(suffixes)) > 1:
        raise ConfigurationError(
            f"--methods: {written!r}: rows from elsewhere are told by one score. Write a method for each."
        )
    if {"calibrated", "mean"} <= set(suffixes):
        raise ConfigurationError(
            f"--methods: {written!r}: the mean has no noise, whose scale +calibrated could choose. Write one of them."
        )


def _options(written: str, spec: MethodSpec, text: str) -> tuple[tuple[str, Any], ...]:
    found: dict[str, Any] = {}
    for pair, option, value in read_pairs(text):
        known = spec.option_named(option)
        if value is None or known is None:
            takes = ", ".join(spec.option_names) or "none"
            raise ConfigurationError(
                f"--methods: {written!r}: {pair!r} is no option of {spec.name}. Its options are: {takes}; write "
                "name=value."
            )
        found[known.name] = value
    return tuple((option, found[option]) for option in spec.option_names if option in found)


def read_pairs(text: str) -> Iterator[tuple[str, str, Any]]:
    """Each `name=value` between commas: as it is written, its name, and its value, None where it has none."""
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (part.strip() for part in pair.partition("="))
        yield pair, name, _value(value) if value else None


def _value(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text
    # 1 and 1.0 are one value, which is trained once; 1e30 is no count.
    return int(number) if number.is_integer() and abs(number) < 1e15 else number
