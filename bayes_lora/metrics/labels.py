"""Labels that metrics cannot do without."""

from torch import Tensor

from bayes_lora.errors import DataError


def known_labels(labels: Tensor | None) -> Tensor:
    """The labels of a prediction.

    Raises:
        DataError: the rows have none.
    """
    if labels is None:
        raise DataError(
            "the predicted rows have no labels, so no metric can be had. Predict from a loader whose batches have "
            "'labels'."
        )
    return labels
