"""What a study of images takes, made here: handwritten digits as files, and a small ViT that knows half of them."""

import os
import secrets
import shutil
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from torch.utils.data import DataLoader, Dataset

from bayes_lora.errors import DataError, RunExistsError
from bayes_lora.experiments.inputs.images import Images, stacked
from bayes_lora.experiments.runs.device import CPU
from bayes_lora.files import write_json
from bayes_lora.inference import FitOptions, PointEstimate, fit_network
from bayes_lora.metrics.classification import accuracy
from bayes_lora.randomness import seeded

TRAIN, EVAL, OTHERS, NETWORK = "train", "eval", "others", "small-vit"
"""Folders: images to adapt to and to evaluate on, those that the network has learned, and the network."""

NUM_KNOWN = 5
"""The digits below are learned by the network; those from here on it is to be adapted to."""

_HELD_OUT_EVERY = 5
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 8,
    "patch_size": 2,
}
_PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}


def make_digits(folder: Path, *, seed: int = 0, epochs: int = 8, console: Console | None = None) -> float:
    """Write scikit-learn's 1,797 handwritten digits as images, and a ViT of 140,000 parameters that has learned 0 to 4.

        train/5 ... train/9      every second image of the digits that are new to the network
        eval/5 ... eval/9        the others of them
        others/0 ... others/4    the digits that it knows
        small-vit/               the network without its head, and its image processor

    The folder appears whole or not at all. Images are the same everywhere; the network is the same on one machine.

    Args:
        folder: of all this; a new one.
        seed: of the network and its training.
        epochs: of that training.
        console: where its progress goes; None shows none.

    Returns:
        The share of the digits from 0 to 4 that the network tells right, in the fifth of them that it was not
        trained on.

    Raises:
        RunExistsError: the folder exists.
        DataError: it cannot be written.

    Source: the digits are those of scikit-learn's `load_digits`, 8 x 8 pixels with 17 shades (E. Alpaydin, C. Kaynak,
    Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998).
    """
    if folder.exists():
        raise RunExistsError(f"{folder} exists already. Use the digits in it, or choose another folder with --out.")
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        _write_images(partial)
        share = _write_network(partial, seed, epochs, console)
        os.rename(partial, folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error}. Choose another place, or free this one.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return share


def _write_images(folder: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = OTHERS if digit < NUM_KNOWN else (EVAL, TRAIN)[number % 2]
        path = folder / part / str(digit) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype("uint8")).save(path)


def _write_network(folder: Path, seed: int, epochs: int, console: Console | None) -> float:
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.utils import logging

    write_json(folder / NETWORK / "preprocessor_config.json", _PROCESSOR)
    processor, images = Images().load_processor(str(folder / NETWORK)), Images()
    rows: list[Any] = [
        {**images.features(file.read_bytes(), processor, None), "labels": int(file.parent.name)}
        for file in sorted((folder / OTHERS).glob("*/*.png"))
    ]
    held_out = rows[::_HELD_OUT_EVERY]
    learned = [row for index, row in enumerate(rows) if index % _HELD_OUT_EVERY]
    config: Any = ViTConfig(**{**_SIZES, "num_labels": NUM_KNOWN})
    with seeded(seed, CPU):
        network: Any = ViTForImageClassification(config)
    options = FitOptions(epochs=epochs, batch_size=32, learning_rate=1e-3, seed=seed)
    fit_network(network, learned, options, console=console)
    prediction = PointEstimate(network)(DataLoader(cast("Dataset[Any]", held_out), batch_size=64, collate_fn=stacked))
    assert prediction.labels is not None
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        network.vit.save_pretrained(folder / NETWORK)
    finally:
        if bars:
            logging.enable_progress_bar()
    return accuracy(prediction.mean_probs, prediction.labels)
