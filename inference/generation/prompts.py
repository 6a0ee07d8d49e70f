"""Prompts as rows of tokens, checked before a network decodes them, and batches padded on the left."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayes_lora.errors import DataError, LikelihoodError
from bayes_lora.inference.generation.prompt_tokens import Message, prompt_tokens
from bayes_lora.models.likelihoods.network_arguments import base_of

Prompt = str | Sequence[Message] | Sequence[int] | Tensor


def prompt_rows(inputs: Any, tokenizer: Any | None) -> list[list[int]]:
    """The tokens of every prompt.

    Args:
        inputs: a prompt or several: texts, messages ({"role": ..., "content": ...}), or tokens (token,); or a batch as
            the network takes it, with `input_ids` and `attention_mask` (row, token), padded on either side.
        tokenizer: of the network; tokens need none.

    Raises:
        DataError: no prompt, an empty one, or texts and no tokenizer; see also `prompt_tokens`.
    """
    if isinstance(inputs, Mapping):
        tokens = torch.as_tensor(inputs["input_ids"])
        mask = inputs.get("attention_mask")
        there = torch.ones_like(tokens) if mask is None else torch.as_tensor(mask)
        prompts: list[Any] = [row[kept.bool()] for row, kept in zip(tokens, there, strict=True)]
    elif isinstance(inputs, str) or (len(inputs) > 0 and isinstance(inputs[0], Mapping)):
        prompts = [inputs]
    else:
        prompts = list(inputs)
    if not prompts:
        raise DataError("there is nothing to continue: no prompt was given. Pass at least one.")
    return [_tokens_of(index, prompt, tokenizer) for index, prompt in enumerate(prompts)]


def _tokens_of(index: int, prompt: Any, tokenizer: Any | None) -> list[int]:
    found: list[int]
    if isinstance(prompt, Tensor):
        found = prompt.flatten().tolist()
    elif isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], Mapping)):
        if tokenizer is None:
            raise DataError(f"prompt {index} is a text, and nothing says what its tokens are. Pass tokenizer=.")
        try:
            return prompt_tokens(tokenizer, prompt)
        except DataError as error:
            raise DataError(f"prompt {index}: {error}") from error
    else:
        found = list(prompt)
    if not found:
        raise DataError(
            f"prompt {index} has no tokens, so that nothing says what the first one behind it is to be. Give it the "
            "token that begins a text (tokenizer.bos_token_id)."
        )
    return found


def require_decoder(network: nn.Module) -> Any:
    """The model of transformers that decodes.

    Raises:
        LikelihoodError: it is none, or one that does not continue its own input.
    """
    base = base_of(network)
    if not getattr(base, "can_generate", bool)() or getattr(base.config, "is_encoder_decoder", False):
        raise LikelihoodError(
            f"{type(base).__name__} does not continue a text: it has no head for the next token, or an encoder of its "
            "own for the prompt. Load the network with AutoModelForCausalLM."
        )
    return base


def require_room(rows: Sequence[Sequence[int]], decoder: Any, max_new_tokens: int) -> None:
    """Every prompt fits the network, and so does what is to follow.

    Raises:
        DataError: it has tokens outside the vocabulary, or more than the network has positions for.
    """
    config = decoder.config.get_text_config()
    vocabulary: int = decoder.get_input_embeddings().weight.shape[0]
    positions = getattr(config, "max_position_embeddings", None)
    for index, row in enumerate(rows):
        if not 0 <= min(row) <= max(row) < vocabulary:
            raise DataError(
                f"prompt {index} has tokens from {min(row)} to {max(row)}, and the network knows 0 to "
                f"{vocabulary - 1}: the tokenizer is another network's. Take the one that was saved with it."
            )
        if positions is not None and len(row) + max_new_tokens > positions:
            raise DataError(
                f"prompt {index} has {len(row)} tokens, which with max_new_tokens={max_new_tokens} are more than the "
                f"{positions} that the network has positions for. Shorten the prompt, or ask for fewer."
            )


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """A batch (row, token) in which all rows end together."""
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for index, row in enumerate(rows):
        tokens[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return {"input_ids": tokens.to(device), "attention_mask": mask.to(device)}
