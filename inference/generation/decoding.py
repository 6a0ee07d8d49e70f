"""Decoding under draws of the posterior: one call of the network's own `generate` for several texts."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from pyro import poutine
from torch import Tensor, nn
from transformers import LogitsProcessorList

from bayes_lora.checks import require_count
from bayes_lora.errors import AdapterError, DataError
from bayes_lora.inference.generation.averaged_draws import AveragedDraws
from bayes_lora.inference.generation.prompts import left_padded, prompt_rows, require_decoder, require_room
from bayes_lora.inference.generation.sampling import NextToken, Sampling
from bayes_lora.inference.predictors.predictor import evaluation_mode
from bayes_lora.inference.predictors.stacked_draws import keeps_rows_apart
from bayes_lora.metrics.language import LanguagePrediction
from bayes_lora.models import BayesianLoRA
from bayes_lora.models.likelihoods.network_arguments import GREEDY

# Tokens that the trial runs on; more than its rows, so that a network with tokens first is told from one with rows.
_TRIED_TOKENS = 3
# Networks that keep rows apart, each tried once: for short texts the trial would be a good part of the time.
_STACKING: "WeakSet[nn.Module]" = WeakSet()

Noise = Sequence[Tensor]  # of one draw, for each group of adapters


class Decoder:
    """Writes texts behind prompts, under draws of the adapters that stay the same for the whole of a text.

    Args:
        model: whose network is a causal language model.
        inputs, tokenizer: see `prompt_rows`.
        max_new_tokens: of each text at most.
        batch_size: prompts that are decoded together.

    Attributes:
        rows: the tokens of each prompt.
        ends: tokens that end a text: those of the network's `generation_config`, else the tokenizer's.

    Raises:
        ConfigurationError: a number below 1.
        LikelihoodError: the network does not continue a text.
        DataError: prompts that cannot be continued, see `prompt_rows` and `require_room`.
    """

    def __init__(
        self, model: BayesianLoRA, inputs: Any, tokenizer: Any | None, max_new_tokens: int, batch_size: int
    ) -> None:
        require_count("max_new_tokens", max_new_tokens)
        require_count("batch_size", batch_size)
        self._model, self._tokenizer = model, tokenizer
        self._max_new_tokens, self._batch_size = max_new_tokens, batch_size
        self._network = require_decoder(model.network)
        self.rows = prompt_rows(inputs, tokenizer)
        require_room(self.rows, self._network, max_new_tokens)
        self.ends = _ends(self._network, tokenizer)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around all texts: no gradients, evaluation mode, and no effect handler outside sees a site."""
        with torch.no_grad(), evaluation_mode(self._model), poutine.block():
            yield

    def require_stackable(self) -> None:
        """Raise unless rows stand for draws: tried on a few tokens, where it has not been before.

        Raises:
            AdapterError: they do not.
        """
        if self._network in _STACKING:
            return
        device = self._network.device
        if not keeps_rows_apart(self._model, {"input_ids": torch.tensor([self.rows[0][:_TRIED_TOKENS]]).to(device)}):
            raise AdapterError(
                f"{type(self._network).__name__} mixes or reorders the rows of a batch inside, so that several draws "
                "cannot write one text together. Take one draw, num_samples=1, or at_mean=True."
            )
        _STACKING.add(self._network)

    def batches(self) -> Iterator[range]:
        """Numbers of the prompts that are decoded together."""
        for start in range(0, len(self.rows), self._batch_size):
            yield range(start, min(start + self._batch_size, len(self.rows)))

    def write(
        self, prompts: range, noises: Sequence[Noise] | None, sampling: Sampling | None, *, together: bool
    ) -> LanguagePrediction:
        """Texts behind some prompts, as tokens and what each was predicted with.

        Args:
            prompts: their numbers.
            noises: of each draw; None for the network at its mean.
            sampling: of the tokens; None for the likeliest.
            together: whether all draws write one text for each prompt, or each draw its own: then texts are grouped
                by draw.

        Raises:
            DataError: the network's outputs are no numbers.
        """
        num_draws = 1 if noises is None else len(noises)
        averaged, answers = (num_draws, 1) if together else (1, num_draws)
        texts = [(prompt, answer) for answer in range(answers) for prompt in prompts]
        choose = NextToken(sampling, texts, self._max_new_tokens, self._network.device)
        processor = AveragedDraws(averaged, choose, self.ends)
        one = left_padded([self.rows[prompt] for prompt in prompts], self._pad, self._network.device)
        batch = {name: value.repeat(num_draws, 1) for name, value in one.items()}
        with self._noisy(noises, len(batch["input_ids"])), self._watched(processor):
            self._model.network.generate(  # type: ignore[operator]
                **batch,
                max_new_tokens=self._max_new_tokens,
                logits_processor=LogitsProcessorList([processor]),
                pad_token_id=self._pad,
                eos_token_id=list(self.ends) or None,
                use_cache=True,
                **GREEDY,  # of the scores that the processor leaves: the choice is its own
            )
        written = processor.written()
        if not written.total_entropy.isfinite().all():
            raise DataError(
                "the network's outputs are NaN or infinite, so that no token can be chosen. Look at the fit that its "
                "adapters come from, or run it in a type of more precision."
            )
        return written

    @property
    def _pad(self) -> int:
        """What stands in front of shorter prompts and behind texts that ended: the network never looks at it."""
        config = self._network.generation_config
        named = (config.pad_token_id, getattr(self._tokenizer, "pad_token_id", None), *self.ends[:1])
        return next((token for token in named if isinstance(token, int) and token >= 0), 0)

    def _noisy(self, noises: Sequence[Noise] | None, num_rows: int) -> AbstractContextManager[None]:
        if noises is None:
            return nullcontext()
        if len(noises) == 1:
            return self._model.perturbed(noises[0])
        stacked = [torch.stack(groups) for groups in zip(*noises, strict=True)]
        return self._model.perturbed(stacked, num_rows=num_rows, fuse_stacks=True)

    @contextmanager
    def _watched(self, processor: AveragedDraws) -> Iterator[None]:
        if self._network.dtype != torch.double:
            yield
            return
        hook = self._network.register_forward_hook(processor.keep_rounding)
        try:
            yield
        finally:
            hook.remove()


def _ends(network: Any, tokenizer: Any | None) -> tuple[int, ...]:
    named = network.generation_config.eos_token_id
    if named is None:
        named = getattr(tokenizer, "eos_token_id", None)
    return () if named is None else (named,) if isinstance(named, int) else tuple(named)
