"""Small sweeps."""

from pathlib import Path

from bayes_lora.experiments.sweep.recipe import read_recipe
from bayes_lora.experiments.sweep.results import Row
from bayes_lora.experiments.sweep.running import Options, Sweep

COSTS = {"train_seconds", "predict_seconds", "peak_memory_mib"}  # which no two runs share


def write_recipe(folder: Path, base: str, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"name: small\nbase_model: {base}\n{text}", encoding="utf-8")
    return path


def make_sweep(recipe: Path, data_dir: Path, folder: Path, **options: object) -> Sweep:
    return Sweep.of(read_recipe(str(recipe), None, data_dir), folder, Options(**options), data_dir)  # type: ignore[arg-type]


def without_costs(rows: list[Row]) -> list[object]:
    """What two runs of one sweep must agree on."""
    return [
        (row.task, row.method, row.place, {name: value for name, value in row.metrics.items() if name not in COSTS})
        for row in rows
    ]
