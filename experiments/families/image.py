"""Classification of images."""

from typing import Any

from bayes_lora.experiments.families.classification import Classification
from bayes_lora.experiments.inputs.images import Images


class ImageClassification(Classification):
    """As `Classification`; a row is an image, and its class the folder that it is in."""

    name = "image"
    inputs = Images()

    def auto_class(self) -> Any:
        """Of networks that read pixels."""
        from transformers import AutoModelForImageClassification

        return AutoModelForImageClassification
