"""The network with a posterior over its LoRA-A matrices, as a Pyro model."""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from bayes_lora.adapters import Adapter, AdapterGroup, check_state
from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.distributions.column_normal import IsotropicColumnNormal
from bayes_lora.distributions.wishart import Wishart
from bayes_lora.effect_handlers import ObservedSites, calling_elbo, densities_only, wants_parameters
from bayes_lora.errors import AdapterError, ConfigurationError, LikelihoodError
from bayes_lora.models.latent_sites import KL_TERMS, Latents, LatentSites
from bayes_lora.models.likelihoods.classification import Classification
from bayes_lora.models.likelihoods.likelihood import Likelihood
from bayes_lora.models.own_sites import OwnSites
from bayes_lora.precision import posterior_dtype
from bayes_lora.running_statistics import hold, with_running_statistics

# The term of the loss that a site of the model belongs to, by the first part of the site's name.
LOSS_TERMS = {"y": "nll", **KL_TERMS, "cooperative": "cooperative"}


def term_of(site: str) -> str:
    """The term of the loss that a site belongs to; one that is not of `BayesianLoRA` is a term of its own."""
    return LOSS_TERMS.get(site.split("_")[0], site)


class BayesianLoRA(nn.Module):
    """A Pyro model: prior over LoRA-A, the network between, a likelihood over its labels.

    Called as the network is, ``model(**batch)``, it opens the sites

        pi ~ Dirichlet(a0),  Sigma_r{r} ~ Wishart(nu, c I),  S_r{r}_n{n} ~ N(0, I)   (objective "elbo": A_r{r}_n{n})
        cooperative (factor, objective "paper"),  logits (deterministic),  y (observed where the batch has labels)

    runs the network with ``A = mu + perturbation`` and returns the logits. Outside a guide it samples the prior. In
    the paper's formulation the prior of S does not depend on Sigma: pi and Sigma shape the noise of the guide, and
    the data inform them through that noise alone.

    The network's LoRA-A modules are replaced in place; its parameters and state-dict keys stay what they are, and
    any forward pass not started here, such as ``network(**batch)``, is the plain PEFT model at the mean.
    `bayes_lora.adapters.unwrap` takes the replacement back.

    Args:
        network: a PEFT model with LoRA adapters.
        config: the posterior's options.
        likelihood: what the logits say about the labels; classification where not given.

    Attributes:
        sample_scale: epsilon of each adapter, (adapter,); see `set_sample_scale`.

    Raises:
        AdapterError, UnsupportedAdapterError: see `bayes_lora.adapters.find_adapters`.
        ConfigurationError: degrees of freedom below a rank.
        LikelihoodError: the network is no classifier; when called by an ELBO, nothing is observed.

    Source: arXiv 2411.04358, Algorithm 1; docs/theory.md.

    Example:
        >>> model = BayesianLoRA(peft.get_peft_model(network, lora_config), MonteCLoRAConfig())  # doctest: +SKIP
        >>> logits = model(**batch)  # doctest: +SKIP
    """

    def __init__(
        self,
        network: nn.Module,
        config: MonteCLoRAConfig,
        likelihood: Likelihood | Callable[[Tensor, Tensor | None], None] | None = None,
    ) -> None:
        super().__init__()
        if likelihood is None:
            likelihood = Classification.of_network(network)
        self.network = network
        self.config = config
        self.sites = LatentSites(network, config)
        given = likelihood if isinstance(likelihood, Likelihood) else OwnSites(likelihood)
        self.likelihood: Likelihood = given.to(self.sites.example)
        self.sample_scale: Tensor
        self.register_buffer(
            "sample_scale", self.sites.example.new_full((len(self.sites.adapters),), config.sample_scale)
        )
        self.sites.noise_state.exact = config.sample_scale == 0
        self._priors: dict[Any, tuple[dist.Dirichlet, dict[int, Wishart], dict[str, IsotropicColumnNormal]]] = {}
        self._adapters_known = self._adapter_state()
        self._active = [list(adapter.layer.active_adapters) for adapter in self.sites.adapters]
        # In a tuple, so that the module system does not see them a second time.
        self._linears: tuple[Any, ...] = tuple(adapter.linear for adapter in self.sites.adapters)
        self._checkpointable: list[Any] = [m for m in network.modules() if hasattr(m, "gradient_checkpointing")]
        self._held = with_running_statistics(network)

    def forward(self, **batch: Any) -> Tensor:
        """Logits (example, class) under one draw, as a Pyro model."""
        labels = batch.pop("labels", None)
        if labels is not None and poutine.runtime.am_i_wrapped():
            self.sites.require_weight()
        self._announce_parameters()
        latents = self.sample_latents()
        # A factor outside inference would only make Pyro warn.
        if self.config.objective == "paper" and poutine.runtime.am_i_wrapped():
            term = -(self.config.cooperative_weight or 0.0) * latents.squared_weights.mean()
            # `pyro.factor`, less its look for NaN: on an accelerator that would stall every step.
            factor = dist.Unit(term, validate_args=False)
            pyro.sample("cooperative", factor, obs=term.new_empty(0), infer={"is_auxiliary": True})
        recomputes = self._recomputes()
        if recomputes:
            self.sites.noise_state.require_settled()
        with self.perturbed(self.perturbations(latents)):
            unseen = poutine.runtime.am_i_wrapped() and densities_only()
            logits = self.likelihood.logits(self.network, batch, labels, unseen=unseen)
        if recomputes:
            logits = self.sites.noise_state.watch(logits)
        if labels is None:
            with ObservedSites() as sites:
                self.likelihood(logits, None)
            if not sites.names and calling_elbo() is not None:
                raise LikelihoodError(
                    f"there is nothing to learn from: the batch has {', '.join(batch)} and no 'labels', so that no "
                    "site is observed. Name its labels 'labels'."
                )
        else:
            self.likelihood(logits, labels)
        return logits

    def sample_latents(self) -> Latents:
        """Open the prior's sites; under replay or condition their values are the ones given there."""
        weights, covariances, columns = self._prior()
        return self.sites.sample(weights, covariances, lambda group, *_: columns[group.suffix])

    def _prior(self) -> tuple[dist.Dirichlet, dict[int, Wishart], dict[str, IsotropicColumnNormal]]:
        """The prior of pi, of the covariances by rank and of the columns by group: fixed, so made once."""
        sites, config = self.sites, self.config
        key = sites.placement
        if key not in self._priors:
            like = sites.example
            std = config.prior_scale or 1.0  # of A; the noise S of objective "paper" is standard normal
            # Outside inference mode, whose tensors no later training step could use.
            with torch.inference_mode(False):
                shape = (len(sites.adapters), config.num_components)
                weights = sites.weights(like.new_full(shape, config.prior_concentration))
                covariances = {
                    rank: sites.covariances(rank, sites.prior_wishart(rank).scale_diagonal) for rank in sites.ranks
                }
                columns = {}
                for group in sites.groups:
                    factors = like.new_empty(()).expand(sites.factor_shape(group))
                    columns[group.suffix] = IsotropicColumnNormal(std, factors, group.in_features)
            self._priors[key] = weights, covariances, columns
        return self._priors[key]

    def perturbations(self, latents: Latents) -> list[Tensor]:
        """What a draw adds to mu, for each group: (adapter, rank, in_features).

        explicit  eps sum_k pi_k S_k;  collapsed  eps sqrt(sum_k pi_k^2) S;  sparse  eps S_{argmax pi};
        each averaged over the outer draws, with eps the adapter's `sample_scale`. Objective "elbo": A - mu.
        """
        config = self.config
        found = []
        for group, value in zip(self.sites.groups, latents.columns, strict=True):
            if config.objective == "elbo":
                found.append((value - self.sites.means(group)).mT)
                continue
            eps = self.group_scale(group)
            pi = latents.weights[..., group.start : group.stop, :]
            if config.sampler == "explicit" and config.mixture == "dense":
                noise = torch.einsum("...k,...knr->...nr", eps[:, None] * pi, value)
            elif config.sampler == "explicit":
                largest = pi.argmax(-1)[..., None, None, None].expand(*value.shape[:-3], 1, *value.shape[-2:])
                noise = eps[:, None, None] * value.gather(-3, largest).squeeze(-3)
            elif config.mixture == "dense":
                spread = latents.squared_weights[..., group.start : group.stop].sqrt()
                noise = (eps * spread)[..., None, None] * value
            else:
                noise = eps[:, None, None] * value
            found.append((noise.mean(0) if self.sites.outer_shape else noise).mT)
        return found

    def group_scale(self, group: AdapterGroup) -> Tensor:
        """epsilon of the group's adapters, (adapter,)."""
        return self.sample_scale[group.start : group.stop]

    def set_sample_scale(self, scale: float | Tensor) -> None:
        """Use another epsilon from now on: one number, or one for each adapter, in the order of `sites.names`.

        It is part of the posterior: checkpoints and `save_posterior` keep it; `config.sample_scale` stays what the
        fit was started with.

        Raises:
            ConfigurationError: negative, not finite, of another length, or 0 under objective "elbo".
        """
        values = torch.as_tensor(scale, dtype=torch.float64, device="cpu").detach()
        allowed = values > 0 if self.config.objective == "elbo" else values >= 0
        if values.shape not in ((), self.sample_scale.shape) or not (allowed & values.isfinite()).all():
            least = "above 0" if self.config.objective == "elbo" else "of at least 0"
            raise ConfigurationError(
                f"sample_scale={scale!r} must be one finite number {least}, or {len(self.sample_scale)} of them, one "
                "for each adapter in model.sites.names."
            )
        self.sample_scale.copy_(values)
        self.sites.noise_state.exact = not values.any()

    def set_num_train_examples(self, number: int) -> None:
        """Weigh the KL of objective "elbo" by 1 / number from now on: that of the rows that training goes on with.

        Rows count, each once: not steps, epochs, processes or accumulated batches.

        Raises:
            ConfigurationError: objective "paper", whose KL has no such weight, or a number below 1.
        """
        self.config = replace(self.config, num_train_examples=number)
        self.sites.set_num_train_examples(number)

    def train(self, mode: bool = True) -> Self:
        """As for any module, but that batch normalization keeps the base model's statistics."""
        super().train(mode)
        hold(self._held)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> "BayesianLoRA":
        # Sampling stays in float32 or better where the network is cast to half precision.
        before = self.sample_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if posterior_dtype(self.sample_scale.dtype) != self.sample_scale.dtype:
            self.sample_scale = before.to(self.sample_scale.device)
        return self

    @contextmanager
    def perturbed(
        self, perturbations: Sequence[Tensor], num_rows: int | None = None, *, fuse_stacks: bool = False
    ) -> Iterator[None]:
        """Forward passes of the network inside see mu + perturbation.

        With gradients on, the draw stays in place afterwards, so that gradient checkpointing recomputes with the same
        noise; it is unseen outside a backward pass. With gradients off, the one before comes back.

        Args:
            perturbations: for each group, (adapter, rank, in_features) or (draw, adapter, rank, in_features).
            num_rows: rows of the batch when it holds the examples once per draw.
            fuse_stacks: whether such a batch goes through the fused layer, too: faster, and rounded in another way than
                the predictions that saved runs have to repeat to the bit.
        """
        self._check_adapters()
        before = [linear.draw for linear in self._linears]
        means = [linear.weight.flatten(1) for linear in self._linears]
        # One unbind per group: picking adapters one by one would cost a full-size gradient for each.
        noises = [noise for group in perturbations for noise in group.unbind(-3)]
        # In one call for all adapters, not in each one's forward pass.
        self._set(torch._foreach_add(means, [noise.to(mean) for mean, noise in zip(means, noises, strict=True)]))
        state = self.sites.noise_state
        state.on, state.with_grad = True, torch.is_grad_enabled()
        state.num_rows, state.fuse_stacks = num_rows, fuse_stacks
        try:
            yield
        finally:
            state.on, state.num_rows, state.fuse_stacks = False, None, False
            if not torch.is_grad_enabled():
                self._set(before)

    def clear_perturbation(self) -> None:
        """Forget the noise of the last pass, which else stays with its graph until the next one."""
        self._set([None] * len(self.sites.adapters))

    def _recomputes(self) -> bool:
        """Whether gradient checkpointing would run parts of a forward pass started now again in its backward pass."""
        active = any(module.training and module.gradient_checkpointing for module in self._checkpointable)
        return active and torch.is_grad_enabled()

    def network_logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Run the network and return its logits.

        Raises:
            LikelihoodError: the network's output has none.
        """
        return self.likelihood.logits(self.network, batch)

    def _set(self, draws: Sequence[Any]) -> None:
        for linear, draw in zip(self._linears, draws, strict=True):
            linear.__dict__["draw"] = draw  # a module takes long to set an attribute

    def _announce_parameters(self) -> None:
        """One param message per trainable tensor, so that `SVI.step` optimizes it; no global store is involved.

        Not where no handler wants them: going through a whole transformer takes a tenth of a small step.
        """
        if densities_only() or not wants_parameters():
            return
        parts = {"network": self.network, "likelihood": self.likelihood}
        named = ((f"{part}.{name}", of) for part, module in parts.items() for name, of in module.named_parameters())
        for name, parameter in named:
            if parameter.requires_grad:
                # An alias, so that the user's own tensor carries no attribute (a weak reference cannot be pickled).
                value = parameter.detach()
                value.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
                announce = poutine.runtime.effectful(lambda *_, _value=value, **__: _value, type="param")
                announce(name, name=name)

    def _adapter_state(self) -> set[str]:
        return set(getattr(self.network, "peft_config", {}))

    def _check_adapters(self) -> None:
        added = self._adapter_state() - self._adapters_known
        if added:
            raise AdapterError(
                f"adapters {sorted(added)} were added after BayesianLoRA was built, so they have no posterior. "
                "Call unwrap(net) and build BayesianLoRA again."
            )
        for adapter, linear, active in zip(self.sites.adapters, self._linears, self._active, strict=True):
            layer = adapter.layer
            if layer.merged or layer.disable_adapters or layer.active_adapters != active:
                self._refuse_state(adapter, active)
            if layer._modules["lora_A"]._modules.get(adapter.key) is not linear:
                raise AdapterError(
                    f"{adapter.name}: the network no longer belongs to this BayesianLoRA model: it was unwrapped, or "
                    "wrapped by another one since. Build BayesianLoRA and its guide again."
                )

    def _refuse_state(self, adapter: Adapter, active: list[str]) -> None:
        check_state(adapter.name, adapter.layer)
        raise AdapterError(
            f"{adapter.name}: the active adapters are {adapter.layer.active_adapters}, but the posterior is of "
            f"{active}. Call net.set_adapter({adapter.key!r}) first."
        )
