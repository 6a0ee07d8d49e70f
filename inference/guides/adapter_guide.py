"""What guides over LoRA-A alone have in common: the mixture weights and covariances keep their prior."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor

from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.guides.monteclora import refuse_unsupported_elbo
from bayes_lora.models import BayesianLoRA
from bayes_lora.models.latent_sites import Latents
from bayes_lora.precision import posterior_dtype


class AdapterGuide(PyroModule):  # type: ignore[misc]
    """q(A) p(pi) p(Sigma): a posterior over LoRA-A, under objective "elbo".

    There the prior of A depends on neither pi nor Sigma, so a guide which does not use them either can leave them at
    their prior: their KL is 0, exactly. They are drawn all the same, from the very distributions of the model, so
    that model and guide have the same sites in the same order, and `fit`, `SVITrainer`, `predict`, `ItemizedELBO`,
    `TraceMeanField_ELBO` and `Trace_ELBO` take the pair as they take a `MonteCLoRAGuide`. Names, plates and the weight
    ``temperature / num_train_examples`` of the KL are the model's: only the distribution of A is replaced.

    Subclasses say in `columns` what q(A) is. They live in modules, never in Pyro's global store, and do not register
    the model as a submodule.

    Args:
        model: the model whose LoRA-A this is the posterior of.

    Raises:
        ConfigurationError: objective "paper", whose sites are noise and not A.
    """

    def __init__(self, model: BayesianLoRA) -> None:
        if model.config.objective != "elbo":
            raise ConfigurationError(
                f"{type(self).__name__} is a posterior over A itself, and objective={model.config.objective!r} has "
                "sites for the noise instead. Build the model with MonteCLoRAConfig(objective='elbo', "
                "num_train_examples=len(train_dataset))."
            )
        with pyro.settings.context(module_local_params=True):
            super().__init__()
        # In a tuple, so that the module system does not see it.
        self._model_reference = (model,)

    @property
    def model(self) -> BayesianLoRA:
        """The model this guide belongs to."""
        return self._model_reference[0]

    def columns(self) -> Mapping[str, TorchDistribution]:
        """The distribution of each site of A: batch shape (adapter, column), event shape (rank,)."""
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Latents:
        with pyro.settings.context(module_local_params=True):
            return super().__call__(*args, **kwargs)  # type: ignore[no-any-return]

    def forward(self, *args: Any, **kwargs: Any) -> Latents:
        """Sample the posterior; the batch is accepted, as Pyro passes it, and not looked at."""
        refuse_unsupported_elbo()
        with _Replaced(self.columns()):
            return self.model.sample_latents()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AdapterGuide":
        # Cast to half precision, the posterior stays in float32 or better; the network may be cast alone.
        def cast(value: Tensor) -> Tensor:
            new = fn(value)
            halved = value.is_floating_point() and posterior_dtype(new.dtype) != new.dtype
            return value.to(new.device) if halved else new

        super()._apply(cast, recurse)
        return self


class _Replaced(Messenger):  # type: ignore[misc]
    """Sample sites inside have the distributions given here, by name, in place of their own."""

    def __init__(self, distributions: Mapping[str, TorchDistribution]) -> None:
        super().__init__()
        self._distributions = distributions

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = self._distributions.get(msg["name"], msg["fn"])
