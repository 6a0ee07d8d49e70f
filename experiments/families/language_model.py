"""Language modelling: the completion of a prompt, token by token."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_lora.errors import DataError
from bayes_lora.experiments.families.decoder import DecoderFamily
from bayes_lora.experiments.inputs.completions import Completions
from bayes_lora.experiments.rows.completion_rows import COMPLETION, PROMPT, with_completions
from bayes_lora.experiments.rows.rows import Row

if TYPE_CHECKING:
    from torch import nn

    from bayes_lora.models import Likelihood


class LanguageModel(DecoderFamily):
    """A text is a prompt, or the messages before an answer; its label is the completion, which alone is learned.

    Predictions score the completion that a row has.
    """

    name = "language_model"
    output_columns = (
        "log_prob",
        "num_tokens",
        "token_log_probs",
        "total_entropy",
        "aleatoric_entropy",
        "mutual_information",
        "point_log_prob",
    )
    table_note = "; log-probabilities and mutual information (MI) in nats, of whole completions"
    inputs = Completions()
    columns = ((PROMPT,), COMPLETION)
    takes_temperature = False
    reads_labels = True
    counts_rows = False

    def likelihood(self, network: "nn.Module", label_names: Sequence[str]) -> "Likelihood":
        """A categorical over the vocabulary for each token of the completion."""
        from bayes_lora.models import CausalLanguageModel

        return CausalLanguageModel()

    def from_file(self, rows: Sequence[Row], path: Path | str) -> list[Row]:
        """Rows of any form that `with_completions` knows."""
        return with_completions(rows, path)

    def describe(self, prediction: Any, index: int, label_names: Sequence[str]) -> Row:
        """Log-probability of the completion, of each of its tokens, and the entropies that these were predicted with.

        The former averages draws over the whole completion, the latter at each token.
        """
        places = prediction.positions(index)
        return {
            "log_prob": prediction.log_density[index].item(),
            "num_tokens": len(places),
            "token_log_probs": prediction.token_log_probs[index, places].tolist(),
            "total_entropy": prediction.total_entropy[index, places].tolist(),
            "aleatoric_entropy": prediction.aleatoric_entropy[index, places].tolist(),
            "mutual_information": prediction.mutual_information[index, places].tolist(),
        }

    def describe_point(self, point: Any, index: int, label_names: Sequence[str]) -> Row:
        """The same log-probability."""
        return {"point_log_prob": point.log_density[index].item()}

    def cells(self, described: Row) -> dict[str, str]:
        """The log-probability, whole and for each token, and the mutual information."""
        return {
            "log-prob.": f"{described['log_prob']:.2f}",
            "per token": f"{described['log_prob'] / described['num_tokens']:.3f}",
            "MI": f"{sum(described['mutual_information']):.4f}",
        }

    def label_fault(self, label: Any, label_names: Sequence[str]) -> str | None:
        """Text."""
        return None if isinstance(label, str) and label else "a completion must be text, and not empty"

    def read_label(self, written: Any, label_names: Sequence[str]) -> str:
        """The text itself."""
        fault = self.label_fault(written, label_names)
        if fault is not None:
            raise DataError(f"{fault}. Write one, or leave the row out.")
        return str(written)

    def labels_of(self, rows: Sequence[Row], column: str, label_names: Sequence[str], *, by_name: bool) -> None:
        """None: labels are tokens, which come with the encoded rows."""
