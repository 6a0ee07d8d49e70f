"""Recordings of every make become the samples that they hold, or an error says what is wrong with the file."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.experiments.inputs.audio import Audio, resampled
from bayes_lora.experiments.tasks.encoding import encode
from bayes_lora.experiments.tasks.folders import folder_task
from tests.experiments.folders import RATE, audio_base, write_recordings
from tests.test_extras import run_without

INPUTS = Audio()
Samples = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return INPUTS.load_processor(audio_base(tmp_path_factory.mktemp("base")))


def tone(hertz: float, rate: int, seconds: float = 0.5) -> Samples:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def saved(samples: Samples, rate: int = RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def heard(data: bytes, processor: Any, seconds: int = 30) -> torch.Tensor:
    found: torch.Tensor = INPUTS.features(data, processor, seconds)["input_values"]
    return found


def standardized(samples: Samples) -> torch.Tensor:
    """As wav2vec2's feature extractor gives it."""
    return torch.tensor((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7), dtype=torch.float32)


@pytest.mark.parametrize(
    ("kind", "subtype", "step"),
    [("WAV", "PCM_16", 2**-15), ("WAV", "PCM_24", 2**-23), ("WAV", "FLOAT", 2**-24), ("FLAC", "PCM_16", 2**-15)],
)
def test_samples_of_every_format(kind: str, subtype: str, step: float, processor: Any) -> None:
    samples = tone(440, RATE)
    found = heard(saved(samples, kind=kind, subtype=subtype), processor)
    # A sample is off by a step of the format at most; standardizing divides by the tone's 0.35.
    torch.testing.assert_close(found, standardized(samples), rtol=1e-5, atol=max(4 * step, 1e-6))


def test_compressed_formats_sound_alike(processor: Any) -> None:
    samples = tone(440, RATE)
    found = heard(saved(samples, kind="OGG"), processor)
    assert np.corrcoef(found.numpy(), samples)[0, 1] > 0.99


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_another_rate_is_the_same_sound(rate: int, processor: Any) -> None:
    found = heard(saved(tone(440, rate), rate, subtype="FLOAT"), processor)
    assert found.shape == (RATE // 2,)
    # Inside: at its ends a filter sees silence. Its ripple is below a hundredth there.
    inside = slice(400, -400)
    torch.testing.assert_close(found[inside], standardized(tone(440, RATE))[inside], rtol=0, atol=0.02)


def test_what_the_new_rate_cannot_hold_is_gone() -> None:
    high = tone(15_000, 44_100).astype(np.float32)  # above half of 16 kHz: taken every so often, it would be 1 kHz
    assert np.abs(resampled(high, 44_100, RATE)[400:-400]).max() < 0.005
    assert np.abs(np.interp(np.arange(0, len(high), 44_100 / RATE), np.arange(len(high)), high)).max() > 0.3


def test_channels_are_averaged(processor: Any) -> None:
    left, right = tone(440, RATE), tone(880, RATE)
    both = heard(saved(np.stack([left, right], axis=1), subtype="FLOAT"), processor)
    torch.testing.assert_close(both, standardized((left + right) / 2), rtol=1e-4, atol=1e-5)


def test_long_ones_are_cut_and_short_ones_followed_by_silence(processor: Any) -> None:
    long = tone(440, RATE, seconds=2.5)
    torch.testing.assert_close(
        heard(saved(long, subtype="FLOAT"), processor, 2), standardized(long[: 2 * RATE]), rtol=1e-4, atol=1e-5
    )
    short = tone(440, RATE, seconds=0.1)
    padded = np.concatenate([short, np.zeros(RATE // 4 - len(short))])
    torch.testing.assert_close(
        heard(saved(short, subtype="FLOAT"), processor), standardized(padded), rtol=1e-4, atol=1e-5
    )
    assert INPUTS.limit(None) == 30
    with pytest.raises(ConfigurationError, match="max_length=0 must be at least 1: of a recording it counts seconds"):
        INPUTS.limit(0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is no recording that can be read"),
        (b"RIFF____WAVEfmt ", "it is no recording that can be read"),
        (saved(np.zeros(0)), "it holds no sound. Take it out"),
        (saved(np.array([0.1, np.nan] * 4000), subtype="FLOAT"), "it holds samples that are NaN or infinite"),
    ],
    ids=["empty", "torn", "no samples", "NaN"],
)
def test_what_cannot_be_read_is_named(data: bytes, message: str, processor: Any, tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "rows")
    (folder / "ash" / "broken.wav").write_bytes(data)
    rows = folder_task(folder, None, task_type="audio")
    with pytest.raises(DataError, match=rf"ash/broken\.wav: {message}"):
        encode(rows.task, [*rows.train, *rows.validation], processor)


def test_batches_are_padded_and_know_lengths(processor: Any, tmp_path: Path) -> None:
    rows = folder_task(write_recordings(tmp_path / "rows"), None, task_type="audio")
    data = encode(rows.task, rows.train, processor)
    lengths = [len(data[index]["input_values"]) for index in range(len(data))]
    assert list(INPUTS.lengths(data)) == lengths
    shortest, longest = (choose(range(len(data)), key=lengths.__getitem__) for choose in (min, max))
    batch = INPUTS.collate(processor)([data[shortest], data[longest]])
    assert batch["input_values"].shape == (2, lengths[longest])
    assert torch.equal(batch["input_values"][0, : lengths[shortest]], data[shortest]["input_values"])
    assert not batch["input_values"][0, lengths[shortest] :].any()
    assert batch["labels"].tolist() == [rows.train[shortest]["label"], rows.train[longest]["label"]]


def test_the_extra_is_named_where_its_package_is_missing() -> None:
    code = "from bayes_lora.experiments.inputs.audio import Audio; Audio().load_processor('base')"
    done = run_without({"soundfile"}, code)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "Reading recordings needs soundfile, which is not installed. Run: pip install 'bayes-lora[audio]'"
    )
