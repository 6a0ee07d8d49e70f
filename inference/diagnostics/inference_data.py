"""A fitted posterior as ArviZ sees it: draws, prior, predictions and likelihoods with named dimensions."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr

from bayes_lora.errors import DataError
from bayes_lora.inference.diagnostics.arviz_bridge import InferenceData, from_groups
from bayes_lora.inference.diagnostics.latent_draws import latent_draws
from bayes_lora.inference.diagnostics.predictive_groups import predictive_groups
from bayes_lora.inference.predictors.predictive import predict
from bayes_lora.models import BayesianLoRA
from bayes_lora.randomness import stream

# Streams that no draw of `predict` has: those of the prior's draws and of the sampled labels.
_PRIOR, _LABELS = 2**32 - 1, 2**32 - 2


def to_inference_data(
    model: BayesianLoRA,
    guide: Callable[..., Any],
    loader: Iterable[Mapping[str, Any]],
    *,
    num_samples: int = 100,
    seed: int = 0,
    history: Sequence[Mapping[str, float]] | None = None,
    adapters: Sequence[str] = (),
    example_ids: Sequence[Any] | None = None,
    label_names: Sequence[Any] | None = None,
) -> InferenceData:
    """Draws of the posterior and of the prior, and what the posterior's predict, for ArviZ.

    Groups, with the dimensions that their variables have beside `chain` and `draw`:

        posterior             pi                           (adapter, component)
          and prior           effective_components         (adapter)             1 / sum_k pi_k^2
                              entropy_pi                   (adapter)             nats
                              relative_noise               (adapter)             |A - mu| / |mu|, Frobenius norms
                              noise_std_r{rank}            (adapter_r{rank}, rank_r{rank})
                              Sigma_r{rank}                (adapter_r{rank}, rank_r{rank}, rank_other_r{rank})
                              correlation_r{rank}          the same
                              A_r{rank}_n{in_features}     (adapter_r.._n.., rank_r{rank}, column_n{in_features})
        posterior_predictive  y                            (example, ...)        labels drawn, see below
        log_likelihood        y                            (example)             nats; needs labels
        observed_data         y                            (example, ...), no draws;  needs labels
        sample_stats          loss, nll, kl_normal, ...    (step), no draws;     needs `history`
        constant_data         sample_scale, degrees_of_freedom, rank, in_features     (adapter), no draws

    What labels are is the likelihood's. Behind `example`, and beside y, posterior_predictive has

        classes, grades       y: -         probs (class)
        several labels        y: (label)   probs (label)
        numbers               y: (output)  location (output), noise_scale (output) without example; no dimension
                                           `output` where there is one
        classes of words      y: (token)   probs (token, class); -100 and NaN where a token has no label
        language models       no y         log_probs (token) of the label tokens, nats; total_entropy and
                                           aleatoric_entropy (token) without draws; NaN where a token has no label

    log_likelihood is of a row: of all its labels, outputs or tokens together. Probabilities of the whole vocabulary
    under every draw are too many to be kept, so that a language model has no tokens to draw.

    Suffixes are those of the sites, so that names do not change when a second rank appears. Where there are several
    outer draws, pi, Sigma and what belongs to one of them have a dimension `outer` before the adapter. Coordinates of
    adapters are module names, those of `class`, `label` and `output` the network's label names; tokens count from 0,
    components, ranks and columns from 1.
    The attributes of constant_data are the model's configuration.

    Draws are independent, which leaving rows out, WAIC and whatever ArviZ does with them take for granted. Draw s is
    that of ``predict(model, guide, loader, draws="independent", seed=seed)``: its latents are those under which the
    logits were computed that probs, log_likelihood and y of draw s come from.

        noise_std_j = eps sqrt(sum_k pi_k^2) sqrt(Sigma_jj)      sparse: eps sqrt(Sigma_jj)

    is the standard deviation that row j of A has given pi and Sigma (M outer draws: that of their mean). It follows
    what is drawn from. In the prior of objective "paper" the noise is standard normal whatever Sigma is, so Sigma_jj
    is 1 there; in the prior of "elbo" it is prior_scale. For a `MeanFieldGuide` it is the root of the mean variance of
    the row; for a joint autoguide, which has no such number, it is left out.

    What these data are not:

    - A Markov chain. Draws of a guide are independent: there is one chain, and R-hat and effective sample size find
      nothing wrong with any guide. `arviz_bridge.summary` does not show them.
    - Under objective "paper", the posterior of a parameter Sigma. pi and Sigma are auxiliary variables there: they
      shape the guide's noise, whose prior does not depend on them, and the data inform them through that noise alone.
    - Under a guide over A alone (`MeanFieldGuide`, `autoguide`), anything learned about pi and Sigma, which keep their
      prior. Its posterior is seen in relative_noise, noise_std and A.

    sample_stats has the logged steps of the fit in a dimension of its own. ArviZ looks there only for what samplers
    leave, such as divergences, so that nothing it does with draws takes steps for draws; for a trace of the loss,
    ``arviz.plot_trace(group(data, "sample_stats").rename(step="draw"))``, with `arviz_bridge.group`.

    Args:
        model: the model.
        guide: its guide, or any Pyro callable that samples the model's latent sites.
        loader: batches as the network takes them; with `labels` where they are known.
        num_samples: draws of the posterior, and as many of the prior.
        seed: of the draws, and of the labels drawn from them.
        history: of the fit, as `FitResult.history` is.
        adapters: module names, from `model.sites.names`, of the adapters whose LoRA-A is kept; it is large.
        example_ids: coordinates of `example`, one for each row; else rows are numbered from 0.
        label_names: coordinates of `class`, `label` or `output`, where they are not to be the network's.

    Raises:
        AdapterError: a name that no adapter has.
        ConfigurationError: num_samples below 1, a seed out of range, a guide of another model.
        DataError: an empty loader, labels in some batches only, ids or names that are not as many as what they name, or
            a history without steps.
        LikelihoodError: a callable in place of a likelihood, labels outside the classes, or predictions without a
            density of the labels (`GeneratedChoice`).

    Source: ArviZ's schema of InferenceData; arXiv 2411.04358, Algorithm 1.

    Example:
        >>> data = to_inference_data(model, guide, loader, history=result.history)  # doctest: +SKIP
        >>> arviz.plot_forest(data, var_names=["effective_components"], combined=True)  # doctest: +SKIP
        >>> data.posterior["pi"].sel(adapter="bert.encoder.layer.0.attention.self.query")  # doctest: +SKIP
    """
    model.likelihood.require_density()
    prediction = predict(model, guide, loader, num_samples=num_samples, draws="independent", seed=seed)
    return of_prediction(
        model,
        guide,
        prediction,
        num_samples=num_samples,
        seed=seed,
        history=history,
        adapters=adapters,
        example_ids=example_ids,
        label_names=label_names,
    )


def of_prediction(
    model: BayesianLoRA,
    guide: Callable[..., Any],
    prediction: Any,
    *,
    num_samples: int,
    seed: int,
    history: Sequence[Mapping[str, float]] | None = None,
    adapters: Sequence[str] = (),
    example_ids: Sequence[Any] | None = None,
    label_names: Sequence[Any] | None = None,
) -> InferenceData:
    """`to_inference_data` of what ``predict(..., draws="independent")`` gave with the same number of draws and seed."""
    names = _names(model, prediction) if label_names is None else label_names
    groups = {
        "posterior": latent_draws(model, guide, num_samples, seed, adapters),
        "prior": latent_draws(model, model.sample_latents, num_samples, stream(seed, _PRIOR), adapters),
        **predictive_groups(
            model.likelihood, prediction, seed=stream(seed, _LABELS), label_names=names, example_ids=example_ids
        ),
        "constant_data": _constants(model),
    }
    if history:
        groups["sample_stats"] = _loss_terms(history)
    library = {"inference_library": "bayes_lora", "inference_library_version": version("bayes-lora")}
    return from_groups(groups, {**library, "seed": seed})


def _names(model: BayesianLoRA, prediction: Any) -> Sequence[Any] | None:
    """The network's own names of its classes, labels or outputs where it has one for each."""
    dim = model.likelihood.named_dim
    sizes = [
        of.values.shape[of.dims.index(dim) + of.of_draws]
        for of in model.likelihood.predictive_variables(prediction).values()
        if dim in of.dims
    ]
    own = dict(enumerate(getattr(prediction, "label_names", ())))  # of tokens
    names = own or getattr(getattr(model.network, "config", None), "id2label", None) or {}
    found = [names.get(index) for index in range(max(sizes, default=0))]
    return None if None in found or len(set(found)) < len(found) or len(names) != len(found) else found


def _constants(model: BayesianLoRA) -> xr.Dataset:
    """What the fit does not learn, by adapter, with the configuration as attributes."""
    adapters = model.sites.adapters
    variables: dict[str, Any] = {
        "sample_scale": model.sample_scale.cpu().numpy(),
        "degrees_of_freedom": np.array(model.sites.degrees_of_freedom),
        "rank": np.array([adapter.rank for adapter in adapters]),
        "in_features": np.array([adapter.in_features for adapter in adapters]),
    }
    # netCDF has no None: what belongs to the other objective is left out.
    options = {name: value for name, value in dataclasses.asdict(model.config).items() if value is not None}
    return xr.Dataset(
        {name: ("adapter", values) for name, values in variables.items()},
        {"adapter": np.array(model.sites.names)},
        options,
    )


def _loss_terms(history: Sequence[Mapping[str, float]]) -> xr.Dataset:
    """What the history has of each step, (chain, step); NaN where an entry lacks what others have."""
    if not all("step" in entry for entry in history):
        raise DataError("an entry of the history has no 'step'. Pass FitResult.history as fit() returned it.")
    names = dict.fromkeys(name for entry in history for name in entry if name != "step")
    variables = {
        name: (("chain", "step"), np.array([[entry.get(name, np.nan) for entry in history]], dtype=float))
        for name in names
    }
    return xr.Dataset(variables, {"chain": [0], "step": np.array([int(entry["step"]) for entry in history])})
