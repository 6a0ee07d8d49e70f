"""What guides over LoRA-A alone have in common: the mixture weights and covariances keep their prior."""

from collections.abc import Mapping
from typing import Any

from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger

from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.guides.lora_guide import LoRAGuide
from bayes_lora.models import BayesianLoRA
from bayes_lora.models.latent_sites import Latents


class AdapterGuide(LoRAGuide):
    """q(A) p(pi) p(Sigma): a posterior over LoRA-A, under objective "elbo".

    There the prior of A depends on neither pi nor Sigma, so a guide which does not use them either can leave them at
    their prior: their KL is 0, exactly. They are drawn all the same, from the very distributions of the model, so
    that model and guide have the same sites in the same order, and `fit`, `SVITrainer`, `predict`, `ItemizedELBO`,
    `TraceMeanField_ELBO` and `Trace_ELBO` take the pair as they take a `MonteCLoRAGuide`. Names, plates and the weight
    ``kl_temperature / num_train_examples`` of the KL are the model's: only the distribution of A is replaced.

    Subclasses say in `columns` what q(A) is.

    Args:
        model: the model whose LoRA-A this is the posterior of.

    Raises:
        ConfigurationError: objective "paper", whose sites are noise and not A.
    """

    unused_options = frozenset(
        {
            *("num_components", "num_outer_samples", "prior_concentration", "init_concentration"),
            *("degrees_of_freedom", "mixture", "sampler", "normal_kl"),
        }
    )

    def __init__(self, model: BayesianLoRA) -> None:
        if model.config.objective != "elbo":
            raise ConfigurationError(
                f"{type(self).__name__} is a posterior over A itself, and objective={model.config.objective!r} has "
                "sites for the noise instead. Build the model with MonteCLoRAConfig(objective='elbo', "
                "num_train_examples=len(train_dataset))."
            )
        super().__init__(model)

    def columns(self) -> Mapping[str, TorchDistribution]:
        """The distribution of each site of A: batch shape (adapter, column), event shape (rank,)."""
        raise NotImplementedError

    def sample(self) -> Latents:
        """The model's own sites, those of A with the distributions of `columns`."""
        with _Replaced(self.columns()):
            return self.model.sample_latents()


class _Replaced(Messenger):  # type: ignore[misc]
    """Sample sites inside have the distributions given here, by name, in place of their own."""

    def __init__(self, distributions: Mapping[str, TorchDistribution]) -> None:
        super().__init__()
        self._distributions = distributions

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = self._distributions.get(msg["name"], msg["fn"])
