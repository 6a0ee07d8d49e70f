"""The posterior predictive: what the network says under draws of LoRA-A."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from bayes_lora.choices import Draws
from bayes_lora.inference.predictors.posterior_passes import PosteriorPasses
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.models import BayesianLoRA


def predict(
    model: BayesianLoRA,
    guide: Callable[..., Any],
    loader: Iterable[Mapping[str, Any]],
    *,
    num_samples: int | Literal["auto"] = 32,
    draws: Draws | None = None,
    tolerance: float = 0.005,
    seed: int = 0,
    at_mean: bool = False,
    draws_per_pass: int | None = None,
    on_batch: Callable[[], None] | None = None,
) -> Prediction:
    """Predict under `num_samples` draws of the guide, the same draws for every batch.

    Draw s of a design depends on (seed, s) only: not on the batches, and 16 draws are the first 16 of 32. The global
    generators are left as they were, and so is the training mode. Where only the upper blocks of a network have
    adapters, those below run once a batch, not once a draw.

    Draws come in blocks, see `draw_design.source`: each alone is a draw of the posterior, but the noise of a block
    sums to 0, so that most of it cancels in the mean. `monte_carlo_error` says how far the mean is off.

    Args:
        model: the model.
        guide: its guide, or any Pyro callable that samples the model's latent sites.
        loader: batches as the network takes them; `labels` are kept where present and not shown to the network.
        num_samples: S, draws from the posterior. "auto": for each batch 2, 4, 8, ... 64, until the standard error of
            every probability in it (of real numbers, of every mean by the predictive's standard deviation; of texts, of
            the probability of every label token) is at most `tolerance`; one more pass, at the mean, tells how good a
            single pair is.
            `Prediction.num_draws` says how many it took.
        draws: "tetrahedral" (by four), "antithetic" (in pairs), or "independent", which is for what takes draws for
            independent ones. None is what needs the fewest: by four where S is a multiple of four, otherwise in
            pairs, as far as the guide's `designs` allow it, which is all of them with guides of this library.
        tolerance: of "auto".
        seed: of the draws.
        at_mean: predict once with ``A = mu``, the plain PEFT model, instead; the sample dimension is then 1.
        draws_per_pass: draws that share one forward pass; by default as many as fit a fixed number of tokens, or 1
            where a trial on the first batch that has room for two shows that the network mixes rows.
        on_batch: called after each batch, for progress bars.

    Raises:
        ConfigurationError: num_samples or draws_per_pass below 1, a seed out of range, a guide of another model;
            draws by a design that the guide does not name.
        AdapterError: draws_per_pass > 1 was asked for, but the network reorders rows.
        DataError: an empty loader, or labels in some batches only.
        LikelihoodError: num_samples="auto" with a likelihood that does not say what draws are averaged for.

    Example:
        >>> prediction = predict(model, guide, loader, num_samples=4, seed=0)  # doctest: +SKIP
        >>> prediction.mean_probs.argmax(-1)  # doctest: +SKIP
    """
    passes = PosteriorPasses(model, guide, num_samples, seed, draws_per_pass, draws=draws, tolerance=tolerance)
    return passes.predict(loader, at_mean=at_mean, on_batch=on_batch)
