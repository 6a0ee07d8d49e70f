"""How a model card speaks of a likelihood."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """What differs between likelihoods in a card's text.

    Attributes:
        answer: what is predicted for a row, as in "a class for sentence1 and sentence2".
        label: what a label's number names.
        shown: lines of code, each an attribute of `prediction` and a comment, after "print(".
        point: code and comment for what ``network(**batch)`` says at the mean, after "print(".
        num_outputs: of the network's head; None is one for each label's name.
        batch: lines that make `batch`, where it is more than a processor makes of a text; they have torch.
    """

    answer: str = "a class"
    label: str = "class"
    shown: tuple[str, ...] = (
        "prediction.mean_probs)  # (example, class)",
        "prediction.mutual_information)  # (example,), nats: how far the draws disagree",
    )
    point: str = "network(**batch).logits.softmax(-1))"
    num_outputs: int | None = None
    batch: tuple[str, ...] = ()
