"""Images of every make become the pixels that they show, or an error says what is wrong with the file."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.experiments.inputs import files
from bayes_lora.experiments.inputs.images import Images
from bayes_lora.experiments.rows.folders import class_rows
from bayes_lora.experiments.tasks.encoding import encode
from bayes_lora.experiments.tasks.folders import folder_task
from tests.experiments.folders import image_base, write_images

INPUTS = Images()


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return INPUTS.load_processor(image_base(tmp_path_factory.mktemp("base")))


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(image: bytes, processor: Any) -> torch.Tensor:
    """The values of a file, from 0 to 255, (channel, row, column)."""
    found: torch.Tensor = INPUTS.features(image, processor, None)["pixel_values"]
    return ((found + 1) * 127.5).round()  # the processor's mean and deviation are a half


GREYS = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def test_what_an_image_shows_is_what_is_read(processor: Any) -> None:
    colours = np.stack([GREYS, GREYS[::-1], GREYS.T], axis=-1)
    for kind, image in {"RGB": Image.fromarray(colours), "RGBA": Image.fromarray(colours).convert("RGBA")}.items():
        assert torch.equal(pixels(saved(image), processor), torch.tensor(colours).permute(2, 0, 1).float()), kind


def test_greyscale_has_three_equal_colours(processor: Any) -> None:
    grey = Image.fromarray(GREYS)
    expected = torch.tensor(GREYS).float().expand(3, 8, 8)
    deep = Image.fromarray(GREYS.astype(np.uint16) * 257)  # 16 bits, of which PIL would cut off the upper half
    assert deep.mode == "I;16"
    palette = grey.convert("P")
    for image in (saved(grey), saved(deep), saved(palette), saved(palette, transparency=b"\xff" * 9)):
        assert torch.equal(pixels(image, processor), expected)


def test_a_camera_says_which_way_is_up(processor: Any) -> None:
    image = Image.fromarray(np.repeat(GREYS[:, :, None], 3, axis=-1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by 90 degrees
    turned = pixels(saved(image, exif=exif), processor)
    assert torch.equal(turned, torch.tensor(np.rot90(GREYS, -1).copy()).float().expand(3, 8, 8))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is no image that can be read"),
        (b"GIF89a and no more", "it is no image that can be read"),
        (saved(Image.new("RGB", (64, 64), "red"))[:90], "it is no image that can be read"),
        (
            saved(Image.new("F", (8, 8)), "TIFF"),
            r"its values are numbers of 32 bits \(mode F\), .* Save it",
        ),
        (saved(Image.new("I", (8, 8)), "TIFF"), r"its values are numbers of 32 bits \(mode I\)"),
    ],
    ids=["empty", "torn", "cut short", "floats", "integers"],
)
def test_what_cannot_be_read_is_named(data: bytes, message: str, processor: Any, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "rows")
    (folder / "ash" / "broken.png").write_bytes(data)
    rows = folder_task(folder, None, task_type="image")
    with pytest.raises(DataError, match=rf"ash/broken\.png: {message}"):
        encode(rows.task, [*rows.train, *rows.validation], processor)


def test_files_that_went_or_changed(processor: Any, tmp_path: Path) -> None:
    rows = folder_task(write_images(tmp_path / "rows"), None, task_type="image")
    Path(rows.train[0]["file"]).write_bytes(Path(rows.train[1]["file"]).read_bytes())
    with pytest.raises(DataError, match=r"is not the file that it was: its checksum is another"):
        encode(rows.task, rows.train, processor)
    Path(rows.train[0]["file"]).unlink()
    with pytest.raises(DataError, match=r"cannot be read: No such file or directory\. Put the file back"):
        encode(rows.task, rows.train, processor)
    with pytest.raises(ConfigurationError, match=r"max_length=8 would do nothing: an image is as large as"):
        encode(rows.task, rows.train[1:], processor, max_length=8)


def test_what_stays_in_memory_is_what_would_be_read(
    processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = folder_task(write_images(tmp_path / "rows"), None, task_type="image")
    kept = encode(rows.task, rows.train, processor)
    monkeypatch.setattr(files, "_MOST_KEPT", 5 * 3 * 8 * 8 * 4)  # of five images
    read = encode(rows.task, rows.train, processor)
    assert (len(kept.kept), len(read.kept)) == (len(rows.train), 5)
    for index in range(len(kept)):
        assert torch.equal(kept[index]["pixel_values"], read[index]["pixel_values"])
        assert kept[index]["labels"] == read[index]["labels"] == rows.train[index]["label"]
    some = read.select([7, 2])
    assert torch.equal(some[0]["pixel_values"], kept[7]["pixel_values"])
    assert [row["labels"] for row in some] == [rows.train[7]["label"], rows.train[2]["label"]]
    assert some["labels"] == [row["labels"] for row in some]
    with pytest.raises(KeyError, match="input_ids"):
        some["input_ids"]
    batch = INPUTS.collate(processor)([some[0], some[1]])
    assert batch["pixel_values"].shape == (2, 3, 8, 8)
    assert "labels" not in encode(rows.task, rows.train, processor, with_labels=False)[0]


def test_images_of_different_sizes(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "rows", each=1)
    Image.new("RGB", (9, 8)).save(folder / "ash" / "wide.png")
    processor = {"image_processor_type": "ViTImageProcessor", "do_resize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    task = folder_task(folder, folder, task_type="image").task
    data = encode(
        task, class_rows(folder, INPUTS.suffixes), AutoImageProcessor.from_pretrained(tmp_path), with_labels=False
    )
    with pytest.raises(
        DataError, match=r"sizes \(\(3, 8, 8\), \(3, 8, 9\)\), which cannot share a batch\. Set do_resize"
    ):
        INPUTS.collate(None)([data[0], data[1]])
