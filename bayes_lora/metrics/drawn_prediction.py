"""What predictions of every kind say about their draws."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DrawnPrediction:
    """How the samples of a prediction belong together; `Prediction`, of classes, says the same.

    Attributes:
        kl_temperature: see `Prediction`.
        joint: see `Prediction`.
        block_size: see `Prediction`.
    """

    kl_temperature: float | None = None
    joint: bool = True
    block_size: int = 1
