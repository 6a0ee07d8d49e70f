"""Likelihoods: what the network's logits say about the labels."""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from bayes_lora.checks import require_class_ids
from bayes_lora.effect_handlers import SiteHandler, densities_only
from bayes_lora.errors import LikelihoodError
from bayes_lora.precision import posterior_dtype


class Classification:
    """y_i ~ Categorical(softmax(logits_i)) in the plate `data`, scaled by 1 / batch size.

    The negative log-likelihood is the mean over the examples of the batch, as in transformers.
    """

    def __init__(self, network: nn.Module) -> None:
        """Check that `network` is a classifier.

        Raises:
            LikelihoodError: one label (a regression head) or a problem type other than single-label classification.
        """
        config = getattr(network, "config", None)
        if getattr(config, "num_labels", None) == 1:
            raise LikelihoodError(
                "the network has num_labels=1, a regression head; the categorical likelihood needs two classes or "
                "more. Load it with num_labels=2 (or the number of classes of your task)."
            )
        problem = getattr(config, "problem_type", None)
        if problem not in (None, "single_label_classification"):
            raise LikelihoodError(
                f"the network has problem_type={problem!r}; only 'single_label_classification' is supported. "
                "Set network.config.problem_type accordingly."
            )

    def __call__(self, logits: Tensor, labels: Tensor | None) -> None:
        """Open `logits` (deterministic) and `y` (observed if there are labels).

        Args:
            logits: (example, class).
            labels: (example,) classes, or None to sample them.

        Raises:
            LikelihoodError: logits that are not (example, class), or labels outside the classes.
        """
        if logits.dim() != 2:
            raise LikelihoodError(
                f"the network returned logits of shape {tuple(logits.shape)}; classification has (example, class). "
                "Load it with AutoModelForSequenceClassification or another classification head."
            )
        num_examples, num_classes = logits.shape
        if labels is not None:
            labels = labels.reshape(-1)
            if labels.is_floating_point():
                raise LikelihoodError(
                    f"labels are {labels.dtype}; classes are integers. Convert them: labels.long(), if they are whole "
                    "numbers from 0 up."
                )
            # On an accelerator this look would stall every step; there the data sets are checked when they are read.
            if labels.device.type == "cpu":
                remedy = "Load the network with num_labels={needed}, or correct the labels."
                require_class_ids(labels, num_classes, LikelihoodError, remedy)
        logits = logits.to(posterior_dtype(logits.dtype))
        recorded = not densities_only()
        with SiteHandler({"data": num_examples}, 1 / num_examples):
            # `pyro.deterministic`, less its look for NaN: on an accelerator that would stall every step.
            if recorded:
                known = dist.Delta(logits, event_dim=1, validate_args=False).mask(False)
                pyro.sample("logits", known, obs=logits, infer={"_deterministic": True})
            pyro.sample("y", dist.Categorical(logits=logits, validate_args=False), obs=labels)
