"""One pass of a causal language model over questions, each with its own options to continue it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from bayes_lora.errors import LikelihoodError
from bayes_lora.labels import UNLABELLED
from bayes_lora.models.likelihoods.network_arguments import arguments_of, base_of, text_config
from bayes_lora.precision import posterior_dtype

OPTIONS = "option_ids"
"""Key of a batch: the tokens of each row's options, (row, option, token), -100 behind an option's last token and for
options that a row does not have."""

# Kinds of networks whose options stand side by side behind the question, by what their attention is told: one mask, or
# one for each type of layer. Of others nothing is known, and each option has the question in front of it once more.
_ONE_MASK = frozenset({"gemma", "gpt2", "llama", "mistral", "olmo2", "phi3"})
_MASK_BY_LAYER = frozenset({"gemma2", "gemma3_text", "qwen2", "qwen3", "smollm3"})
SHARING = _ONE_MASK | _MASK_BY_LAYER
"""What `model_type` such networks have in their configuration."""


def shares_questions(network: Any) -> bool:
    """Whether a question is run once for all of its options: with more than one token, that takes a mask of our own."""
    config = base_of(network).config
    # The other kernels take no mask that says which token sees which.
    return config.model_type in SHARING and config._attn_implementation in ("eager", "sdpa")


def option_inputs(network: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What the network is run with, for logits that `option_log_probs` takes.

    Where `shares_questions`, options are siblings behind the question, in its row:

        question | option 1 | option 2 | ...        an option's tokens see the question and those before them in it,

    and their positions go on from the question's. Of one token each (letters), options are not read at all. Elsewhere
    each option is a row of its own, behind a copy of the question.

    Args:
        network: a causal language model.
        batch: `input_ids` and perhaps `attention_mask`, (row, token), padded on either side, of the questions; and
            `option_ids`. All else is passed on.

    Raises:
        LikelihoodError: there are no options, or they are not of these rows; a question without a token; a token that
            the network does not know.
    """
    found = dict(batch)
    options = _checked_options(network, found.pop(OPTIONS, None), found)
    # What follows then comes at once, and the last logits are of the same places in all rows.
    question, there = to_the_right(found["input_ids"], found.get("attention_mask"))
    read = options[..., :-1]  # nothing is asked behind an option's last token
    copies, _ = option_copies(network, batch)
    if copies > 1:
        question, there = (of.repeat_interleave(copies, dim=0) for of in (question, there))
        read = read.flatten(0, 1).unsqueeze(1)
    exists = torch.cat([there, (read != UNLABELLED).flatten(1)], dim=1)
    num_options, length = read.shape[1:]
    behind = torch.arange(length, device=read.device).repeat(num_options)
    positions = torch.cat([there.cumsum(-1) - 1, there.sum(-1, keepdim=True) + behind], dim=1)
    positions = positions.where(exists, 0)  # of padding, which may lie further than the network reads
    found["input_ids"] = torch.cat([question, read.clamp_min(0).flatten(1)], dim=1)
    alone = num_options == 1 or not length
    found["attention_mask"] = exists.long() if alone else _siblings(network, there.shape[1], length, exists, positions)
    known = arguments_of(network)
    told = {"position_ids": positions, "use_cache": False, "logits_to_keep": 1 + num_options * length}
    return {**found, **{name: value for name, value in told.items() if name in known}}


def option_copies(network: Any, batch: Mapping[str, Any]) -> tuple[int, int]:
    """How many rows `option_inputs` makes of each row of a batch, and how many tokens at their ends differ in these."""
    num_options, length = batch[OPTIONS].shape[1:]
    return (1, 0) if length == 1 or shares_questions(network) else (num_options, length - 1)


def behind_questions(values: Tensor, options: Tensor) -> Tensor:
    """What there is of each row where its question ends, (row, feature): what its options' first tokens come from.

    Args:
        values: (row, token, feature), or (row x option, token, feature), of the last tokens or of all, from a network
            run with `option_inputs`.
        options: (row, option, token).
    """
    num_rows, num_options, length = options.shape
    copies = len(values) // num_rows
    return values[::copies, -1 - num_options // copies * (length - 1)]


def to_the_right(question: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Tokens (row, token) with all padding in front of them, and which are none.

    Raises:
        LikelihoodError: a row without a token.
    """
    there = torch.ones_like(question).bool() if mask is None else mask.bool()
    order = there.long().argsort(dim=-1, stable=True)
    question, there = question.gather(1, order), there.gather(1, order)
    if there.device.type == "cpu" and not there.any(-1).all():
        raise LikelihoodError("a row has no question: all of its tokens are padding. Leave the row out.")
    return question, there


def option_log_probs(logits: Tensor, options: Tensor, *, per_token: bool = False) -> Tensor:
    """ln p(option | question) of each option, or by the number of its tokens, nats; -inf where there is none.

    Args:
        logits: (row, token, vocabulary), or (row x option, token, vocabulary), of the last tokens or of all, from a
            network run with `option_inputs`.
        options: (row, option, token).
        per_token: divide by the number of tokens.

    Returns:
        (row, option), in float32 or better.
    """
    num_rows, num_options, length = options.shape
    if len(logits) == num_rows:
        last = logits[:, -1 - num_options * (length - 1) :]
        first = last[:, :1].unsqueeze(1)
        found = _log_probs(first.expand(-1, num_options, -1, -1), options[..., :1])
        if length > 1:
            behind = last[:, 1:].unflatten(1, (num_options, length - 1))
            found = torch.cat([found, _log_probs(behind, options[..., 1:])], dim=-1)
    else:
        found = _log_probs(logits[:, -length:].unflatten(0, (num_rows, num_options)), options)
    exists = options != UNLABELLED
    total = found.where(exists, 0.0).sum(-1)
    if per_token:
        total = total / exists.sum(-1).clamp_min(1)
    return total.masked_fill(~exists[..., 0], -torch.inf)


def _log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of tokens (row, option, token) under logits (row, option, token, vocabulary)."""
    logits = logits.to(posterior_dtype(logits.dtype))
    picked: Tensor = logits.gather(-1, tokens.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return picked - logits.logsumexp(-1)


def _siblings(network: Any, width: int, length: int, exists: Tensor, positions: Tensor) -> Any:
    """The mask, or those of each type of layer, under which options of `length` tokens see the question and themselves.

    Args:
        network: what it is for.
        width: tokens of the question, padding included.
        length: tokens of an option.
        exists: (row, token), which tokens are no padding.
        positions: (row, token).
    """
    config, place = text_config(network), torch.arange(exists.shape[1], device=exists.device)
    owner = pad((place - width).div(length, rounding_mode="floor")[width:], (width, 0), value=-1)  # -1: the question
    own = (owner == -1) | (owner == owner[:, None])
    sees = (own & (place <= place[:, None])) & exists[:, None, :]
    itself = torch.eye(len(place), dtype=torch.bool, device=exists.device)  # of padding, which else would see nothing
    window = getattr(config, "sliding_window", None)
    near = sees if window is None else sees & (positions[:, :, None] - positions[:, None, :] < window)
    full, sliding = (_as_attention_takes_it(network, (of | itself).unsqueeze(1)) for of in (sees, near))
    if config.model_type in _MASK_BY_LAYER:
        return {"full_attention": full, "sliding_attention": sliding}
    return sliding


def _as_attention_takes_it(network: Any, sees: Tensor) -> Tensor:
    """Truth values as they are, or for attention that adds its mask, 0 and the least number."""
    if text_config(network)._attn_implementation != "eager":
        return sees
    dtype = base_of(network).dtype
    return torch.zeros_like(sees, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)


def _checked_options(network: Any, options: Any, batch: Mapping[str, Any]) -> Tensor:
    question = batch.get("input_ids")
    if not isinstance(options, Tensor) or not isinstance(question, Tensor):
        raise LikelihoodError(
            f"the batch has {', '.join(batch) or 'nothing'}; multiple choice has input_ids, the questions, and "
            f"{OPTIONS}, the tokens of their options. Make its batches with both."
        )
    if options.dim() != 3 or len(options) != len(question) or options.shape[1] < 2 or options.is_floating_point():
        raise LikelihoodError(
            f"{OPTIONS} has shape {tuple(options.shape)}, {options.dtype}, for {len(question)} rows; it has (row, "
            f"option, token), integers, two options or more, and {UNLABELLED} where a row or an option has no more."
        )
    if options.device.type == "cpu":  # elsewhere the look would stall every step
        exists = options != UNLABELLED
        if (exists[..., 0].sum(-1) < 2).any() or (exists[..., 1:] & ~exists[..., :-1]).any():
            raise LikelihoodError(
                f"{OPTIONS}: every row has two options or more, and nothing but {UNLABELLED} behind an option's last "
                "token. Pad options behind their ends."
            )
        vocabulary = getattr(text_config(network), "vocab_size", None)
        most = max(int(options.max()), int(question.max()))
        if vocabulary is not None and most >= vocabulary:
            raise LikelihoodError(
                f"there is a token {most}, and the network knows {vocabulary}. The tokenizer is another network's: "
                "take the one that the network was saved with, or resize_token_embeddings."
            )
    return options
