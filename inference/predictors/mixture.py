"""A mixture of predictives: several posteriors side by side, their draws taken together."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bayes_lora.checks import require_count, require_seed
from bayes_lora.errors import ConfigurationError, LikelihoodError
from bayes_lora.inference.predictors.predictor import Predictor
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.models import Classification, Likelihood
from bayes_lora.randomness import stream


@dataclass(frozen=True, eq=False)
class Mixture:
    """``p(y | x) = 1/S sum_m sum_{s <= S_m} p_m(y | x, theta_ms)``: S draws, shared among M predictors.

    With posteriors fitted from several seeds it is a deep ensemble of them: each covers the surroundings of one mode.
    The shares S_m are S / M, or where that is no whole number they differ by one, and with it the weights S_m / S;
    where there are fewer draws than members, the last members have none. Samples stand member by member. The draws of
    member m depend on (seed, m) and on S_m, not on the batches.

    Cost: S forward passes. Members that have networks of their own are all in memory.

    Args:
        members: predictors of one likelihood, such as ``partial(predict, model, guide)``.
        likelihood: of the labels; None is one class for each row.

    Raises:
        ConfigurationError: no members; when called: num_samples below 1, or a seed out of range.
        LikelihoodError: a likelihood whose predictions keep no draws apart, such as a language model's.

    Source: Lakshminarayanan et al. 2017, section 2.4, of posteriors in place of points; Wilson and Izmailov 2020,
    Bayesian Deep Learning and a Probabilistic Perspective of Generalization (arXiv 2002.08791), for SWAG.

    Example:
        >>> members = [partial(predict, *load_posterior(base(), folder)) for folder in folders]  # doctest: +SKIP
        >>> Mixture(members)(loader, num_samples=12).mean_probs  # doctest: +SKIP
    """

    members: Sequence[Predictor]
    likelihood: Likelihood | None = None

    def __post_init__(self) -> None:
        if not self.members:
            raise ConfigurationError("a mixture needs at least one member, and has none. Pass members=[...].")
        if self.likelihood is not None and self.likelihood.reduces:
            raise LikelihoodError(
                f"predictions of a {type(self.likelihood).__name__} have the entropies of their own draws only, and "
                "those of a mixture cannot be made of them. Predict with one member."
            )

    def shares(self, num_samples: int) -> list[int]:
        """S_m of each member."""
        count = len(self.members)
        return [num_samples // count + (member < num_samples % count) for member in range(count)]

    def __call__(
        self,
        loader: Iterable[Mapping[str, Any]],
        *,
        num_samples: int = 32,
        seed: int = 0,
        on_batch: Callable[[], None] | None = None,
    ) -> Any:
        require_count("num_samples", num_samples)
        require_seed("seed", seed)
        batches, found = list(loader), []  # in one order, whatever the loader does when it is asked again
        for member, share in enumerate(self.shares(num_samples)):
            if share:
                own = stream(seed, member) >> 32
                last = on_batch if member == 0 else None
                found.append(self.members[member](batches, num_samples=share, seed=own, on_batch=last))
        likelihood = self.likelihood or Classification()
        packed = torch.cat([likelihood.pack(prediction) for prediction in found])
        labels = found[0].labels
        if not isinstance(found[0], Prediction):
            return likelihood.unpack(packed, labels)
        # Where not all members have whole blocks of one size every draw counts for itself, which makes errors of the
        # mean look larger than they are.
        sizes = {prediction.block_size for prediction in found}
        whole = len(sizes) == 1 and all(len(each.logits) % each.block_size == 0 for each in found)
        block_size = found[0].block_size if whole else 1
        return Prediction(packed, labels, joint=all(each.joint for each in found), block_size=block_size)
