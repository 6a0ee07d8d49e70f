"""Multiple choice: one of a row's own options, scored in one of several ways."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bayes_lora.errors import DataError
from bayes_lora.experiments.families.decoder import DecoderFamily
from bayes_lora.experiments.families.family import written
from bayes_lora.experiments.inputs.choices import Choices, WrittenChoices
from bayes_lora.experiments.rows.choice_rows import (
    ANSWER,
    LETTERS,
    OPTIONS,
    QUESTION,
    answer_of,
    options_of,
    with_options,
)
from bayes_lora.experiments.rows.rows import Row

if TYPE_CHECKING:
    from torch import nn

    from bayes_lora.models import Likelihood


class MultipleChoice(DecoderFamily):
    """A label is the number of the right option, by the letters of which options are scored.

    Attributes:
        per_token: whether the log-probability of an option is divided by its number of tokens.
    """

    name = "multiple_choice"
    output_columns = (
        "label_name",
        "prediction",
        "probs",
        "point_probs",
        "total_entropy",
        "aleatoric_entropy",
        "mutual_information",
    )
    table_note = "; entropy and mutual information (MI) in nats"
    inputs = Choices(letters=True)
    columns = ((QUESTION, OPTIONS), ANSWER)
    renames_columns = False
    of_options = True
    per_token: ClassVar[bool] = False

    def likelihood(self, network: "nn.Module", label_names: Sequence[str]) -> "Likelihood":
        """A categorical over a row's options."""
        from bayes_lora.models import MultipleChoice as OfOptions

        return OfOptions(per_token=self.per_token)

    def class_names(self, label_names: Sequence[str], number: int) -> Sequence[str]:
        """Letters."""
        return LETTERS[:number]

    def from_file(self, rows: Sequence[Row], path: Path | str) -> list[Row]:
        """Rows of any form that `with_options` knows."""
        return with_options(rows, path)

    def describe(self, prediction: Any, index: int, label_names: Sequence[str]) -> Row:
        """The letter of the likeliest option, probabilities by letter and entropies in nats; the label's letter where
        known."""
        probs = _by_letter(prediction, index)
        known = {} if prediction.labels is None else {"label_name": LETTERS[int(prediction.labels[index])]}
        return {
            **known,
            "prediction": max(probs, key=lambda letter: probs[letter]),
            "probs": probs,
            "total_entropy": prediction.total_entropy[index].item(),
            "aleatoric_entropy": prediction.aleatoric_entropy[index].item(),
            "mutual_information": prediction.mutual_information[index].item(),
            **({} if prediction.num_draws is None else {"num_draws": int(prediction.num_draws[index])}),
        }

    def describe_point(self, point: Any, index: int, label_names: Sequence[str]) -> Row:
        """Probabilities by letter."""
        return {"point_probs": _by_letter(point, index)}

    def cells(self, described: Row) -> dict[str, str]:
        """The letter, its probability, entropy and mutual information."""
        return {
            "prediction": described["prediction"],
            "prob.": f"{described['probs'][described['prediction']]:.3f}",
            "entropy": f"{described['total_entropy']:.3f}",
            "MI": f"{described['mutual_information']:.4f}",
        }

    def row_fault(self, texts: Sequence[Any], label: Any) -> str | None:
        """Options that are none, or a number that none of them has."""
        try:
            options = options_of(texts[1])
        except DataError as error:
            return str(error)
        if isinstance(label, int) and not isinstance(label, bool) and label not in range(len(options)):
            return f"the answer is number {label}, and options count from 0 to {len(options) - 1}"
        return None

    def label_fault(self, label: Any, label_names: Sequence[str]) -> str | None:
        """The number of an option; that the row has it, `row_fault` looks at."""
        if isinstance(label, int) and not isinstance(label, bool) and label in range(len(LETTERS)):
            return None
        return "it must be the number of an option, from 0 up"

    def read_label(self, written: Any, label_names: Sequence[str]) -> int:
        """Of a letter or a number; what a text stands for, the row's options say."""
        return answer_of(written, LETTERS)

    def with_labels(self, rows: Sequence[Row], column: str, label_names: Sequence[str], path: Path) -> list[Row]:
        """Copies of a file's rows, each with the number of its answer.

        Raises:
            DataError: see `answer_of`; names the row.
        """
        found = []
        for number, row in enumerate(rows, start=1):
            said = written(row, column, number, path)
            try:
                found.append({**row, column: answer_of(said, options_of(row[OPTIONS]))})
            except DataError as error:
                raise DataError(f"{path}, row {number}, column {column!r} holds {said!r}: {error}") from error
        return found

    def labels_of(self, rows: Sequence[Row], column: str, label_names: Sequence[str], *, by_name: bool) -> Any:
        """Numbers of answers, (example,), or None where not every row has one."""
        import torch

        try:
            return torch.tensor([answer_of(row[column], options_of(row[OPTIONS])) for row in rows])
        except (KeyError, DataError):
            return None


class ChoiceByText(MultipleChoice):
    """As `MultipleChoice`, but options are scored by the log-probability of their texts."""

    name = "multiple_choice_likelihood"
    inputs = Choices(letters=False)


class ChoiceByTextPerToken(ChoiceByText):
    """The same by the number of tokens of a text."""

    name = "multiple_choice_likelihood_per_token"
    per_token = True


class ChoiceByWriting(MultipleChoice):
    """As `MultipleChoice`, but the network is trained to write the answer, and what it writes is read."""

    name = "multiple_choice_generated"
    inputs = WrittenChoices()
    of_options = False
    takes_temperature = False

    def likelihood(self, network: "nn.Module", label_names: Sequence[str]) -> "Likelihood":
        """That of texts."""
        from bayes_lora.models import GeneratedChoice

        return GeneratedChoice()


_NAMES = (*LETTERS, "none")  # of options, and of an answer that names none of them

SCORINGS: Mapping[str, str] = {
    "letter": MultipleChoice.name,
    "likelihood": ChoiceByText.name,
    "likelihood_per_token": ChoiceByTextPerToken.name,
    "generated": ChoiceByWriting.name,
}
"""Types of tasks by how options are scored."""


def _by_letter(prediction: Any, index: int) -> dict[str, float]:
    """Mean probabilities of the options that a row has."""
    exists = (~prediction.logits[0, index].isneginf()).nonzero().flatten().tolist()
    probs = prediction.mean_probs[index].tolist()
    return {_NAMES[option]: probs[option] for option in exists}
