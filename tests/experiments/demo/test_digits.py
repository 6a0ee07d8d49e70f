"""Digits as files, and the network that knows half of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from bayes_lora.errors import DataError, RunExistsError
from bayes_lora.experiments.demo.digits import make_digits
from bayes_lora.experiments.networks.base_models import load_base_model
from tests.experiments.commands import run


def test_every_digit_is_in_one_place(digits: Path) -> None:
    source, seen = load_digits(), []
    for part, expected in (("train", "56789"), ("eval", "56789"), ("others", "01234")):
        assert sorted(path.name for path in (digits / part).iterdir()) == list(expected)
        for path in (digits / part).glob("*/*.png"):
            number = int(path.stem)
            assert source.target[number] == int(path.parent.name)
            pixels = np.asarray(Image.open(path))
            assert np.array_equal(np.rint(pixels / 15.9), source.images[number])
            seen.append(number)
    assert sorted(seen) == list(range(1797))
    sizes = [len(list((digits / part).glob("*/*.png"))) for part in ("train", "eval")]
    assert abs(sizes[0] - sizes[1]) < 25


def test_the_network_has_learned_its_digits_and_is_a_base_model(digits: Path, tmp_path: Path) -> None:
    told = json.loads(run("digits", "--out", tmp_path / "digits", "--json").stdout)
    assert told["accuracy"] > 0.9  # by chance .2
    base = load_base_model(str(tmp_path / "digits" / "small-vit"), ("5", "6", "7", "8", "9"), "image")
    assert base.new_modules == ("classifier",)
    assert base.processor.size["height"] == 8


def test_the_same_seed_gives_the_same_network(digits: Path, tmp_path: Path) -> None:
    accuracy = make_digits(tmp_path / "same", epochs=1)
    assert accuracy < 0.9  # of what the other test sees, it has learned less
    one, same = (load_file(folder / "small-vit" / "model.safetensors") for folder in (digits, tmp_path / "same"))
    assert all((one[name] == same[name]).all() for name in one)


def test_nothing_is_replaced_or_left_in_halves(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(RunExistsError, match=r"exists already\. Use the digits in it, or choose another folder"):
        make_digits(digits)
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be written"):
        make_digits(tmp_path / "file" / "digits")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
