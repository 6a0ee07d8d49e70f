"""The words that options are given as, where several rooms and the command line know them; nothing slow is imported."""

from typing import Literal, get_args

Draws = Literal["tetrahedral", "antithetic", "independent"]
"""How the draws of a prediction belong together: by four, in pairs that mirror each other, or not at all."""

GAUSSIAN_DESIGNS: tuple[Draws, ...] = get_args(Draws)
"""Under which each draw of a posterior whose noise is Gaussian has its distribution, the best first."""

Phase = Literal["joint", "posterior"]
"""What one training learns: the network and its posterior, or the posterior around the network as it is."""

Precision = Literal["float32", "bfloat16"]
"""Of a network's passes."""

ScaleScheduleKind = Literal["constant", "linear", "cosine", "entropy", "loss"]
"""How the scale of the noise moves in training."""

SameAnswers = Literal["words", "meaning"]
"""When two answers say the same: they differ at most in case, blanks and punctuation about them, or their sentence
embeddings are close."""

AnswerForm = Literal["text", "line", "word", "number"]
"""What of a text is its answer: all of it, its first line that is not blank, its first word, its last number."""

Seeding = Literal["separate", "shared"]
"""Whether the parts of a fit have a stream each, or all start from the seed itself, as they did up to version 0.1."""

Splits = Literal["per_seed", "shared"]
"""Whether the rows of a study to train on and to choose by differ by seed."""

EvalSplit = Literal["validation", "held_out"]
"""The rows that the tables of a study are about."""

TokenMeasure = Literal["entropy", "mutual-information", "probability"]
"""What colours the tokens of a text."""

WeightDecayOf = Literal["all", "b_and_head", "adapters"]
"""What the weight decay acts on: all that the network trains, or all but LoRA-A."""
