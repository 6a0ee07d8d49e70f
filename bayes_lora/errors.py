"""Every error of this library: each names what is wrong, where, and what to type next.

All derive from `BayesLoRAError`, and from the built-in exception that they are, so that both
``except BayesLoRAError`` and ``except ValueError`` do what a reader expects.
"""


class BayesLoRAError(Exception):
    """Base of every error that this library raises on purpose."""


class ConfigurationError(BayesLoRAError, ValueError):
    """An option has a value it cannot have, or belongs to another objective."""


class DistributionError(BayesLoRAError, ValueError):
    """A distribution was given parameters outside its domain (non-positive, NaN, wrong shape)."""


class AdapterError(BayesLoRAError, ValueError):
    """The network has no LoRA-A matrix to be Bayesian about, or its adapters are in the wrong state."""


class UnsupportedAdapterError(AdapterError):
    """An adapter of a kind whose LoRA-A noise would be skipped or would be wrong."""


class LikelihoodError(BayesLoRAError, ValueError):
    """The network's outputs or the labels do not fit the likelihood."""


class MissingExtraError(BayesLoRAError, ImportError):
    """A part of the library needs packages that an extra installs."""


class UnsupportedELBOError(BayesLoRAError, TypeError):
    """A Pyro ELBO or handler under which model and guide would compute something else than the objective."""


class CheckpointingError(BayesLoRAError, RuntimeError):
    """Gradient checkpointing of a kind under which the gradient of the noise would be lost."""


class CheckpointFileError(BayesLoRAError, ValueError):
    """A training checkpoint is incomplete or damaged."""


class NonFiniteLossError(BayesLoRAError, ArithmeticError):
    """A loss term became NaN or infinite during training."""


class DataError(BayesLoRAError, ValueError):
    """A file, row, column or label of a data set is missing or malformed."""


class TaskError(BayesLoRAError, ValueError):
    """An unknown task, or not enough said to define one."""


class BaseModelError(BayesLoRAError, OSError):
    """The base model cannot be found or opened."""


class RecipeError(BayesLoRAError, ValueError):
    """A recipe of a sweep is no YAML, or says something that it cannot say; names file and line."""


class StorageError(BayesLoRAError, OSError):
    """The storage of a sweep cannot be reached, or holds something else."""


class RunExistsError(BayesLoRAError, OSError):
    """A run folder exists already and was not to be overwritten."""


class FolderBusyError(RunExistsError):
    """Another process works in a folder."""


class PosteriorFileError(BayesLoRAError, ValueError):
    """A saved posterior is incomplete, damaged, or belongs to another network."""


class HubError(BayesLoRAError, OSError):
    """The Hugging Face hub cannot be reached, or refused what was asked of it."""


class NotConvergedError(BayesLoRAError, RuntimeError):
    """Markov chains disagree, or have too few effective draws, so that they are no truth to compare with."""


class BenchError(BayesLoRAError, RuntimeError):
    """A measurement failed, or a ratio is worse than in the results it was compared with."""
