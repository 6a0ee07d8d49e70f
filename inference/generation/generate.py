"""Texts from the posterior predictive."""

from collections.abc import Callable
from typing import Any

from bayes_lora.checks import require_count, require_seed
from bayes_lora.choices import Draws
from bayes_lora.inference.generation.decoding import Decoder
from bayes_lora.inference.generation.generated import Generation
from bayes_lora.inference.generation.sampling import Sampling
from bayes_lora.inference.guides.draw_design import design_of, designed_noises
from bayes_lora.inference.guides.posterior_draw import require_own_guide
from bayes_lora.metrics.language import LanguagePrediction
from bayes_lora.models import BayesianLoRA


def generate(
    model: BayesianLoRA,
    guide: Callable[..., Any],
    inputs: Any,
    *,
    tokenizer: Any | None = None,
    num_samples: int = 8,
    max_new_tokens: int = 64,
    sampling: Sampling | None = None,
    draws: Draws | None = None,
    seed: int = 0,
    at_mean: bool = False,
    batch_size: int = 8,
) -> Generation:
    """Continue prompts by the posterior predictive: `num_samples` draws of the guide write one text together.

        p(y_t | y_<t) = 1/S sum_s p(y_t | y_<t, A_s)

    Every draw has its own cache of keys and values, all of them run as one batch, and all follow the token that is
    chosen from the average of their probabilities. This is done inside one call of the network's own `generate`: its
    `generation_config` holds, but for how a token is chosen. The draws are those that `predict` has under the same
    seed, the same for every prompt and from the first token to the last.

    What is averaged at each token is not what `predict` averages over a whole text: draws that found a text unlikely
    have as much to say of its end as all others. `Generation` has both probabilities.

    The global generators are left as they were, and so is the training mode. A text depends neither on the prompts
    beside it nor, but for which stream of random numbers its sampled tokens have, on its number.

    Args:
        model: the model; its network is a causal language model.
        guide: its guide, or any Pyro callable that samples the model's latent sites.
        inputs: a prompt or several: texts, chats ({"role": ..., "content": ...}), or tokens; or a batch with
            `input_ids` and `attention_mask`, padded on either side. Lengths may differ.
        tokenizer: of the network, where prompts are texts or texts are to come back.
        num_samples: S, draws from the posterior.
        max_new_tokens: of each text; it ends before with a token that ends a text.
        sampling: how tokens are sampled; None takes the likeliest.
        draws: see `predict`.
        seed: of the draws of the posterior.
        at_mean: the network at ``A = mu``, the plain PEFT model, instead.
        batch_size: prompts that are decoded together, as num_samples x batch_size rows.

    Raises:
        ConfigurationError: an option that it cannot have, or a guide of another model.
        LikelihoodError: the network does not continue a text.
        DataError: no prompt or an empty one, one that is too long for the network or not of its vocabulary, texts
            without a tokenizer; outputs that are no numbers.
        AdapterError: several draws, and a network that mixes the rows of a batch.

    Example:
        >>> sampling = Sampling(temperature=0.7, top_p=0.9)  # doctest: +SKIP
        >>> found = generate(model, guide, ["The sky is"], tokenizer=tokenizer, sampling=sampling)  # doctest: +SKIP
        >>> found.texts, found.mutual_information  # doctest: +SKIP
    """
    require_count("num_samples", num_samples)
    require_seed("seed", seed)
    require_own_guide(model, guide)
    design = design_of(guide, draws, num_samples)
    decoder = Decoder(model, inputs, tokenizer, max_new_tokens, batch_size)
    with decoder.running():
        if not at_mean and num_samples > 1:
            decoder.require_stackable()
        noises = None if at_mean else list(designed_noises(model, guide, design, seed, range(num_samples)))
        parts = [decoder.write(prompts, noises, sampling, together=True) for prompts in decoder.batches()]
    return Generation.of(LanguagePrediction.joined(parts), decoder.ends, tokenizer)
