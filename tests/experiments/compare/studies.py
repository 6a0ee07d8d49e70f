"""Small studies."""

from pathlib import Path
from typing import Any

from rich.console import Console

from bayes_lora.experiments.compare.method_spec import Method
from bayes_lora.experiments.compare.methods import parse_methods
from bayes_lora.experiments.compare.study import Study
from bayes_lora.experiments.tasks.sources import RowsSource
from bayes_lora.inference import FitOptions
from bayes_lora.inference.finetuning.lora import LoRAOptions

# Of the comparison that most tests look at, the fixture `done`.
COMPARED = "map,temperature,mc_dropout,monteclora[sample_scale=0.1]+temperature,monteclora_calibrated"
QUIET = Console(quiet=True)


def named(written: str) -> Method:
    """One method, as people write it."""
    (found,) = parse_methods(written)
    return found


def make_study(data_dir: Path, base: str, **changes: Any) -> Study:
    """One seed, two epochs of four steps, three draws."""
    settings: dict[str, Any] = {
        "source": RowsSource(task="mrpc", data_dir=str(data_dir)),
        "outside": "rte",
        "outside_dir": data_dir,
        "base_model": base,
        "lora": LoRAOptions(rank=2, dropout=0.2),
        "training": FitOptions(epochs=2, batch_size=8, learning_rate=2e-2),
        "seeds": (0,),
        "num_samples": 3,
        "held_out": 0.2,
    }
    return Study(**{**settings, **changes})
