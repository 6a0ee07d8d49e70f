"""Images as pixels."""

import io
from collections.abc import Mapping
from typing import Any

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.experiments.inputs.files import Files


class Images(Files):
    """One image for each row, in colours: greyscale has three equal ones, and what is transparent is as it is saved.

    The base model's image processor scales it and takes off the mean.
    """

    network = "an image classifier"
    called = ("an image",)
    suggested = ("google/vit-base-patch16-224-in21k",)
    suffixes = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

    def load_processor(self, source: str) -> Any:
        """The image processor."""
        from transformers import AutoImageProcessor

        return AutoImageProcessor.from_pretrained(source, trust_remote_code=False)

    def limit(self, max_length: int | None) -> int | None:
        """None: an image is never cut.

        Raises:
            ConfigurationError: one is given.
        """
        if max_length is not None:
            raise ConfigurationError(
                f"max_length={max_length} would do nothing: an image is as large as the base model's image processor "
                "makes it. Drop --max-length."
            )
        return None

    def features(self, data: bytes, processor: Any, limit: int | None) -> Mapping[str, Any]:
        """``pixel_values``, (channel, row, column).

        Raises:
            DataError: no image, a broken one, or one whose values have no known range.
        """
        columns = processor(_opened(data), return_tensors="pt")
        return {name: values[0] for name, values in columns.items()}

    def length(self, features: Mapping[str, Any]) -> int:
        """The same for all."""
        return 1

    def collate(self, processor: Any) -> Any:
        """Stacks images, which the image processor has made equally large."""
        return stacked


def stacked(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of images.

    Raises:
        DataError: they differ in size.
    """
    from transformers import default_data_collator

    sizes = sorted({tuple(row["pixel_values"].shape) for row in rows})
    if len(sizes) > 1:
        raise DataError(
            f"the base model's image processor leaves images of different sizes ({', '.join(map(str, sizes))}), which "
            "cannot share a batch. Set do_resize and size in its preprocessor_config.json."
        )
    return dict(default_data_collator(rows))


def _opened(data: bytes) -> Any:
    """A PIL image in RGB."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))  # the way up that a camera says
        if image.mode.startswith("I;16"):
            # PIL would cut off what is above 255, and leave an image that is almost white.
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise DataError(
                f"its values are numbers of 32 bits (mode {image.mode}), of which nobody knows what white is. Save it "
                "with 8 bits for each colour."
            )
        if "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"it is no image that can be read ({error}). Save it anew, or take it out.") from error
