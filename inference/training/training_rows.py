"""How many rows a posterior is of: objective "elbo" weighs its KL by that."""

from typing import Any

from bayes_lora.errors import ConfigurationError
from bayes_lora.models import BayesianLoRA


def count_training_rows(model: BayesianLoRA, dataset: Any) -> None:
    """Set the model's `num_train_examples` to the number of rows, or check that it is that.

    Each row counts once, or each of its labels where `Likelihood.num_observations` says so. It does not matter how
    often it is seen, by how many processes the rows are shared, how many batches are accumulated, or whether training
    is resumed.

    Args:
        model: of objective "elbo"; under "paper" the KL has no such weight, and nothing is done.
        dataset: the training rows, of all processes together.

    Raises:
        ConfigurationError: the number is another one; or it is not given, and the rows cannot be counted, or are not
            what the likelihood counts.
        DataError: whatever the objective, nothing in the rows is observed.
    """
    config = model.config
    model.likelihood.require_observations(dataset)
    if config.objective != "elbo":
        return
    given = config.num_train_examples
    found = model.likelihood.num_observations_in(dataset)
    if found is None:
        if given is None:
            why = "the likelihood cannot count them" if hasattr(dataset, "__len__") else "the dataset has no length"
            raise ConfigurationError(
                f"objective='elbo' needs the number of training rows, and {why}. Give it: "
                "MonteCLoRAConfig(..., num_train_examples=...), or model.set_num_train_examples(...)."
            )
        return
    if given is None:
        model.set_num_train_examples(found)
    elif given != found:
        what = "rows" if model.likelihood.counts_rows else "labelled tokens"
        raise ConfigurationError(
            f"num_train_examples={given} weighs the KL by 1 / {given}, but there are {found} {what} to train on: "
            f"each would count {given / found:.3g} times. Leave it out, and the rows are counted; or call "
            f"model.set_num_train_examples({found}) where training goes on with other rows."
        )
