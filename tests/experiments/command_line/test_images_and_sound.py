"""Folders of images and recordings, from the command line to the card: fitted, killed, resumed, predicted, compared."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from transformers import Trainer

from bayes_lora.errors import BaseModelError, BayesLoRAError, ConfigurationError, DataError, TaskError
from bayes_lora.experiments.rows.rows import read_rows
from bayes_lora.experiments.runs.runs import load_run
from tests.experiments.commands import run
from tests.experiments.folders import CLASSES, KINDS, image_base, write_images, write_recordings

QUICK = ["--epochs", "2", "--batch-size", "8", "--num-samples", "3", "--lr", "1e-2", "--rank", "2"]


class Killed(BayesLoRAError):
    """As a process is that is killed."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_goes_all_the_way(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, build = KINDS[kind]
    train, evaluated = write(tmp_path / "train"), write(tmp_path / "eval", each=3, seed=1)
    whole, out = tmp_path / "whole", tmp_path / "run"
    options = ["fit", "--task-type", kind, "--train-dir", train, "--eval-dir", evaluated]
    options += ["--base-model", build(tmp_path / "base"), "--save-every", "2", *QUICK]
    run(*options, "--out", whole)

    step, taken = Trainer.training_step, []

    def killed(*args: Any, **kwargs: Any) -> Any:
        taken.append(1)
        if len(taken) == 4:
            raise Killed
        return step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", killed)
        with pytest.raises(Killed):
            run(*options, "--out", out)
    run("fit", "--resume", out)
    for name in ("adapter_model.safetensors", "posterior.safetensors"):
        first, second = (load_file(folder / "posterior" / name) for folder in (whole, out))
        assert first.keys() == second.keys()
        assert all(first[key].equal(value) for key, value in second.items()), name

    before = read_rows(out / "predictions.jsonl")
    assert {row["label_name"] for row in before} == set(CLASSES)
    again = tmp_path / "again.jsonl"
    run("predict", out, "--output", again)
    assert [row["probs"] for row in read_rows(again)] == [row["probs"] for row in before]
    # A row for each file, with and without a class; the same as before, one by one, but for the padding of sound.
    shutil.copy(Path(before[0]["file"]), tmp_path / "eval")
    labelled = run("predict", out, "--input", evaluated / CLASSES[0], "--json")
    assert "metrics" not in json.loads(labelled.stdout)
    found = json.loads(run("predict", out, "--input", evaluated, "--json").stdout)["predictions"]
    assert len(found) == len(before) + 1
    if kind == "image":
        by_file = {row["file"]: row["probs"] for row in found}
        for row in before:
            assert by_file[row["file"]] == pytest.approx(row["probs"], rel=1e-4)

    run("diagnose", out, "--num-samples", "8")
    assert "What was learned" in (out / "diagnosis" / "report.html").read_text(encoding="utf-8")
    run("draws", out, "--out", tmp_path / "draws", "--numbers", "2,4", "--truth", "16", "--compared", "8")


def code_of(card: str) -> list[str]:
    return [part.split("```")[0] for part in card.split("```python\n")[1:]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_shows_code_that_predicts(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, build = KINDS[kind]
    train = write(tmp_path / "files")
    base = build(tmp_path / "base")
    run("fit", "--task-type", kind, "--train-dir", train, "--base-model", base, "--out", tmp_path / "run", *QUICK)
    card = (tmp_path / "run" / "posterior" / "README.md").read_text(encoding="utf-8")
    assert f"pipeline_tag: {kind}-classification" in card
    what = {"image": "an image", "audio": "a recording"}[kind]
    assert f"The task is files: a class for {what}." in card
    monkeypatch.chdir(tmp_path)
    shutil.copytree("base", "path/to/the/base/model")
    shutil.copytree("run/posterior", "path/to/this/folder")
    name, place = {"image": ("image.png", "0.png"), "audio": ("recording.wav", "0.wav")}[kind]
    shutil.copy(train / CLASSES[0] / place, name)
    names: dict[str, Any] = {}
    for code in code_of(card):
        exec(code, names)
    said = json.loads(run("predict", "run", "--input", name, "--num-samples", "32", "--json").stdout)
    mean = dict(zip(CLASSES, names["prediction"].mean_probs[0].tolist(), strict=True))
    assert said["predictions"][0]["probs"] == pytest.approx(mean, rel=1e-4)


def test_images_are_learned(tmp_path: Path) -> None:
    """The rows of a class differ from those of another by what is seen, not by the noise around it."""
    train, evaluated = write_images(tmp_path / "train", each=24), write_images(tmp_path / "eval", each=8, seed=1)
    base = image_base(tmp_path / "base")
    arguments = ["fit", "--task-type", "image", "--train-dir", train, "--eval-dir", evaluated, "--base-model", base]
    arguments += ["--epochs", "30", "--batch-size", "8", "--lr", "2e-2", "--targets", "all-linear"]
    metrics = json.loads(run(*arguments, "--out", tmp_path / "run", "--json").stdout)
    # By chance, 16 or more of 24 right have a probability of 0.0004.
    assert metrics["posterior_predictive"]["accuracy"] >= 16 / 24


def test_greyscale_among_colours_and_convolutions(tmp_path: Path) -> None:
    train = write_images(tmp_path / "train")
    Image.fromarray(np.full((20, 13), 90, np.uint8)).save(train / "ash" / "grey.jpg")
    base = image_base(tmp_path / "base")
    options = ["--task-type", "image", "--train-dir", train, "--base-model", base, "--targets", "projection"]
    run("fit", *options, "--out", tmp_path / "run", *QUICK)
    assert "projection" in load_run(tmp_path / "run").model.sites.names[0]


def test_recordings_of_another_rate(tmp_path: Path) -> None:
    import soundfile

    train = write_recordings(tmp_path / "train")
    samples = 0.3 * np.sin(np.arange(22_050) / 20)
    soundfile.write(train / "elm" / "other.flac", np.stack([samples, samples], axis=1), 44_100)
    base = KINDS["audio"][1](tmp_path / "base")
    options = ["--task-type", "audio", "--train-dir", train, "--base-model", base, "--max-length", "1"]
    run("fit", *options, "--out", tmp_path / "run", *QUICK)
    assert load_run(tmp_path / "run").config.max_length == 1


FILES = ["--task-type", "image", "--train-dir", "TRAIN"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--train-dir", "TRAIN"], TaskError,
         r"--train-dir is a folder of files, which --task-type classification does not read\. Say --task-type a"),
        (["--task-type", "image", "--train-file", "ROWS"], TaskError, "image reads files in folders. Give --train-dir"),
        ([*FILES, "--train-file", "ROWS"], TaskError, "or --train-dir for images and recordings: one of them"),
        ([*FILES, "--eval-file", "ROWS"], TaskError, "--eval-file does not go with --train-dir, whose folders are"),
        ([*FILES, "--label-column", "y"], TaskError, "--label-column does not go with --train-dir"),
        ([*FILES, "--data-dir", "D"], TaskError, "--data-dir does not go with --train-dir"),
        (["--task", "mrpc", "--eval-dir", "TRAIN"], TaskError, "--eval-dir belongs to --train-dir. Drop one"),
        (["--task", "mrpc", "--task-type", "image"], TaskError, "--task-type belongs to --train-file; --task mrpc"),
        ([*FILES, "--base-model", "minilm"], BaseModelError,
         "'minilm' is of type 'bert', and transformers has none of that type that is an image classifier. Give an"),
        ([*FILES, "--base-model", "SOUND"], BaseModelError, "is of type 'wav2vec2', .* that is an image classifier"),
        ([*FILES, "--base-model", "BARE"], BaseModelError,
         r"could not be loaded as an image classifier \(OSError: Can't load image processor"),
        (["--task-type", "audio", "--train-dir", "TRAIN"], DataError, r"0\.png is none of \.wav, \.flac"),
        ([*FILES, "--max-length", "8"], ConfigurationError, "an image is as large as the base model's"),
        ([*FILES, "--targets", "convolution"], ConfigurationError, "no linear layer called .*; its convolutions proj"),
    ],
)  # fmt: skip
def test_bad_arguments_leave_nothing_behind(
    arguments: list[str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    places: Mapping[str, Any] = {
        "TRAIN": lambda: write_images(tmp_path / "train"),
        "ROWS": lambda: tmp_path / "rows.csv",
        "SOUND": lambda: KINDS["audio"][1](tmp_path / "sound"),
        "BARE": lambda: image_base(tmp_path / "bare"),
    }
    filled = [places[argument]() if argument in places else argument for argument in arguments]
    if "BARE" in arguments:
        (tmp_path / "bare" / "preprocessor_config.json").unlink()
    if "--base-model" not in filled:
        filled += ["--base-model", image_base(tmp_path / "base")]
    with pytest.raises(error, match=message):
        run("fit", "--out", tmp_path / "out", *QUICK, *filled)
    assert not (tmp_path / "out").exists()


def test_images_for_a_run_of_texts(fitted: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train is no kind of file that is read here\. Give a \.jsonl"):
        run("predict", fitted[0], "--input", write_images(tmp_path / "train"))


def compare(tmp_path: Path, *arguments: object) -> Any:
    folder = tmp_path / "train"
    if not folder.exists():
        write_images(folder)
        image_base(tmp_path / "base")
    options = ["compare", "--task-type", "image", "--train-dir", folder, "--eval-dir", folder, *QUICK]
    return run(*options, "--base-model", tmp_path / "base", "--held-out", "0.3", *arguments)


def test_methods_are_compared_on_images(tmp_path: Path) -> None:
    methods = ["--methods", "base_rate,map,temperature,deep_ensemble[members=2],blob,monteclora", "--seeds", "0"]
    found = json.loads(compare(tmp_path, *methods, "--out", tmp_path / "study", "--json").stdout)
    assert found["failed"] == found["missing"] == []
    assert len(found["methods"]) == 6
    assert all(np.isfinite(scores["0"]["nll"]) for scores in found["methods"].values())
    # The same study, wherever its files are: nothing is done anew, and another seed is added.
    moved = shutil.move(tmp_path / "train", tmp_path / "moved")
    again = ["--seeds", "0,1", "--out", tmp_path / "study", "--json", "--train-dir", moved, "--eval-dir", moved]
    more = json.loads(compare(tmp_path, "--methods", "map", *again).stdout)
    assert more["methods"]["map"]["0"] == found["methods"]["map"]["0"]
    assert more["methods"]["map"].keys() == {"0", "1"}


def test_what_a_comparison_of_images_cannot_have(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--outside rte is a task of texts, not of files as these"):
        compare(tmp_path, "--outside", "rte", "--out", tmp_path / "study")
    with pytest.raises(ConfigurationError, match="--group-by-length knows the length of texts only"):
        compare(tmp_path, "--group-by-length", "--out", tmp_path / "study")
    assert not (tmp_path / "study").exists()
