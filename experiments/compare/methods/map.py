"""`map` and `temperature`: the point estimate that a study trains in any case, and the same with a temperature."""

from dataclasses import replace

from bayes_lora.experiments.compare.method_spec import SUFFIXES
from bayes_lora.experiments.compare.point_estimate import MAP

_TEMPERATURE = SUFFIXES["temperature"]

SPECS = (
    MAP,
    replace(
        MAP,
        name=MAP.tempered_name,
        stands_for=f"{MAP.name}+{_TEMPERATURE.name}",
        summary=_TEMPERATURE.summary,
        python=_TEMPERATURE.python,
        source=_TEMPERATURE.source,
        tempered_name="",
    ),
)
