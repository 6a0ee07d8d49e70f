"""Recordings as samples, or as what a feature extractor makes of them."""

import io
import math
from collections.abc import Mapping
from typing import Any

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.experiments.inputs.files import Files
from bayes_lora.extras import require_extra

_USUAL_SECONDS = 30
_LEAST_SECONDS = 0.25  # wav2vec2 masks spans of 10 frames of 20 ms in training, and fails on less


class Audio(Files):
    """One recording for each row: its channels are averaged, and it has the base model's sampling rate.

    It is cut after 30 seconds unless `max_length` says otherwise; one of less than a quarter of a second is followed by
    silence.
    """

    network = "an audio classifier"
    called = ("a recording",)
    suggested = ("facebook/wav2vec2-base",)
    suffixes = (".wav", ".flac", ".ogg", ".mp3")

    def load_processor(self, source: str) -> Any:
        """The feature extractor."""
        require_extra("audio", "Reading recordings", "soundfile")
        from transformers import AutoFeatureExtractor

        return AutoFeatureExtractor.from_pretrained(source, trust_remote_code=False)

    def limit(self, max_length: int | None) -> int:
        """Seconds.

        Raises:
            ConfigurationError: below 1.
        """
        if max_length is not None and max_length < 1:
            raise ConfigurationError(f"max_length={max_length} must be at least 1: of a recording it counts seconds.")
        return _USUAL_SECONDS if max_length is None else max_length

    def features(self, data: bytes, processor: Any, limit: int | None) -> Mapping[str, Any]:
        """``input_values``, (sample,), or what else the feature extractor gives.

        Raises:
            DataError: no recording, a broken or an empty one.
        """
        import numpy as np

        rate = processor.sampling_rate
        samples = resampled(*_opened(data, limit), rate)
        missing = math.ceil(_LEAST_SECONDS * rate) - len(samples)
        if missing > 0:
            samples = np.pad(samples, (0, missing))
        columns = processor(samples, sampling_rate=rate, return_tensors="pt")
        return {name: values[0] for name, values in columns.items()}

    def length(self, features: Mapping[str, Any]) -> int:
        """Numbers."""
        return int(max(value.numel() for value in features.values()))

    def collate(self, processor: Any) -> Any:
        """Pads recordings with silence."""
        return _Padding(processor)


class _Padding:
    """A class, since processes side by side are given it."""

    def __init__(self, extractor: Any) -> None:
        self.extractor = extractor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        names = [name for name in rows[0] if name != "labels"]
        columns = [{name: row[name].numpy() for name in names} for row in rows]
        batch = dict(self.extractor.pad(columns, padding=True, return_tensors="pt"))
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch


def resampled(samples: Any, rate: int, wanted: int) -> Any:
    """Samples at another rate, by a polyphase filter that lets nothing through that the new rate cannot hold.

    Args:
        samples: (sample,), float32.
        rate: theirs, in Hz.
        wanted: the new one, in Hz.

    Example:
        >>> resampled(np.zeros(44100, np.float32), 44100, 16000).shape  # doctest: +SKIP
        (16000,)
    """
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    shared = math.gcd(rate, wanted)
    return resample_poly(samples, wanted // shared, rate // shared).astype(samples.dtype)


def _opened(data: bytes, seconds: int | None) -> tuple[Any, int]:
    """The mean of the channels, (sample,), float32, and their rate in Hz."""
    import numpy as np
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = int(file.samplerate)
            frames = -1 if seconds is None else seconds * rate
            samples = file.read(frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        raise DataError(f"it is no recording that can be read ({error}). Save it anew, or take it out.") from error
    if not len(samples):
        raise DataError("it holds no sound. Take it out.")
    if not np.isfinite(samples).all():
        raise DataError("it holds samples that are NaN or infinite. Save it anew, or take it out.")
    return samples.mean(axis=1), rate
