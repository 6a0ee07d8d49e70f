"""Classification of recordings."""

from typing import Any

from bayes_lora.experiments.families.classification import Classification
from bayes_lora.experiments.inputs.audio import Audio


class AudioClassification(Classification):
    """As `Classification`; a row is a recording, and its class the folder that it is in."""

    name = "audio"
    inputs = Audio()

    def auto_class(self) -> Any:
        """Of networks that read samples."""
        from transformers import AutoModelForAudioClassification

        return AutoModelForAudioClassification
