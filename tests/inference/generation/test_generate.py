"""Texts from the posterior predictive, against a twin without cache, padding or batch."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_lora.choices import Draws
from bayes_lora.errors import AdapterError, ConfigurationError, DataError, LikelihoodError
from bayes_lora.inference import Sampling, generate, predict
from bayes_lora.inference.guides.draw_design import designed_noises
from bayes_lora.models import BayesianLoRA
from tests.inference.generation.networks import PROMPTS, sharpened
from tests.language import pair_of
from tests.networks import build_pair
from tests.small_tokenizers import byte_pairs

NETWORKS = pytest.mark.parametrize("name", ["llama", "llama, tied", "gpt2", "qwen3", "mistral", "gemma3"])
STEPS = 8


def averaged_steps(
    model: BayesianLoRA,
    guide: Any,
    prompt: list[int],
    steps: int,
    num_samples: int,
    seed: int = 3,
    design: Draws = "tetrahedral",
) -> tuple[list[int], Tensor]:
    """Greedy tokens and (draw, token, vocabulary): every draw over the whole prefix, alone, at each token."""
    noises = list(designed_noises(model, guide, design, seed, range(num_samples)))
    tokens, found = list(prompt), []
    for _ in range(steps):
        each = []
        for noise in noises:
            with torch.no_grad(), model.perturbed(noise):
                each.append(model.network_logits({"input_ids": torch.tensor([tokens])})[0, -1].double().log_softmax(-1))
        found.append(torch.stack(each))
        tokens.append(int(found[-1].exp().mean(0).argmax()))
        if tokens[-1] == 2:
            break
    return tokens[len(prompt) :], torch.stack(found, 1)


@NETWORKS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_it_is_every_draw_over_the_whole_prefix(name: str, dtype: torch.dtype, tolerance: float) -> None:
    model, guide = pair_of(name, dtype)
    found = generate(model, guide, PROMPTS, num_samples=4, max_new_tokens=STEPS, seed=3)
    assert found.log_probs is not None
    for index, prompt in enumerate(PROMPTS):
        tokens, log_probs = averaged_steps(model, guide, prompt, STEPS, 4)
        assert found.tokens[index] == tokens
        there = found.scored[index]
        chosen = log_probs[:, torch.arange(len(tokens)), tokens]
        close: dict[str, Any] = {"rtol": 0, "atol": tolerance}
        torch.testing.assert_close(found.log_probs[:, index, there], chosen, **close)
        torch.testing.assert_close(found.token_log_probs[index, there], chosen.exp().mean(0).log(), **close)
        mean = log_probs.exp().mean(0)
        torch.testing.assert_close(found.total_entropy[index, there], -(mean * mean.log()).sum(-1), **close)
        aleatoric = -(log_probs.exp() * log_probs).sum(-1).mean(0)
        torch.testing.assert_close(found.aleatoric_entropy[index, there], aleatoric, **close)
    assert found.mutual_information.max() > 1e-3


@NETWORKS
def test_without_noise_it_writes_what_transformers_writes(name: str) -> None:
    model, guide = sharpened(name, torch.float32, sample_scale=0.0)
    network: Any = model.network
    written = set()
    for prompt in PROMPTS:
        tokens = torch.tensor([prompt])
        expected = network.generate(input_ids=tokens, max_new_tokens=20, do_sample=False, pad_token_id=0)
        for options in ({"num_samples": 4}, {"num_samples": 1}, {"at_mean": True}):
            found = generate(model, guide, [prompt], max_new_tokens=20, **options)
            assert found.tokens[0] == expected[0, len(prompt) :].tolist()
        written |= set(found.tokens[0])
    assert found.mutual_information.abs().max() < 1e-14
    assert len(written) > 4


def test_sampled_tokens_are_those_of_averaged_probabilities() -> None:
    model, guide = sharpened()
    with torch.no_grad():  # so that it matters what is averaged
        model.network.get_output_embeddings().weight.mul_(8)
    count = 4000
    found = generate(
        model, guide, [PROMPTS[1]] * count, num_samples=4, max_new_tokens=1, sampling=Sampling(), batch_size=count
    )
    _, log_probs = averaged_steps(model, guide, PROMPTS[1], 1, 4, seed=0)
    right, wrong = log_probs[:, 0].exp().mean(0), log_probs[:, 0].mean(0).softmax(-1)
    assert found.labels is not None
    counts = found.labels.flatten().bincount(minlength=50)
    assert chi_square(counts, right) < 4
    assert chi_square(counts, wrong) > 20  # the control: draws averaged before the softmax


def chi_square(counts: Tensor, probs: Tensor) -> float:
    """Pearson's statistic over the tokens that are expected ten times at least, each against all others, as standard
    deviations above its mean under `probs`."""
    expected = probs * counts.sum()
    often = expected >= 10
    freedom = int(often.sum()) - 1
    share = counts[often].sum() / expected[often].sum()  # given how many are of these tokens at all
    statistic = ((counts - share * expected)[often].square() / (share * expected)[often]).sum()
    return (float(statistic) - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("sampling", [None, Sampling(temperature=1.5, seed=5)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_a_text_does_not_depend_on_those_beside_it(name: str, sampling: Sampling | None) -> None:
    model, guide = sharpened(name)
    options: dict[str, Any] = {"num_samples": 2, "max_new_tokens": STEPS, "sampling": sampling}
    prompts = [PROMPTS[0], *PROMPTS]
    together = generate(model, guide, prompts, **options)
    for batch_size in (1, 3):
        apart = generate(model, guide, prompts, **options, batch_size=batch_size)
        assert apart.tokens == together.tokens
        torch.testing.assert_close(apart.log_probs, together.log_probs, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(apart.total_entropy, together.total_entropy, rtol=1e-9, atol=1e-9)
    alone = generate(model, guide, [prompts[0]], **options)
    assert alone.tokens[0] == together.tokens[0]
    # Texts have random numbers of their own.
    assert (together.tokens[0] == together.tokens[1]) == (sampling is None)
    width = max(map(len, prompts))
    for left in (True, False):
        batch = {"input_ids": _padded(prompts, width, left=left)}
        batch["attention_mask"] = _padded([[1] * len(row) for row in prompts], width, left=left)
        assert generate(model, guide, batch, **options).tokens == together.tokens


def _padded(rows: list[list[int]], width: int, *, left: bool) -> Tensor:
    missing = [[0] * (width - len(row)) for row in rows]
    return torch.tensor([zeros + row if left else row + zeros for row, zeros in zip(rows, missing, strict=True)])


def test_a_text_ends_where_its_own_end_is() -> None:
    model, guide = sharpened()
    network: Any = model.network
    network.generation_config.eos_token_id = None
    options: dict[str, Any] = {"num_samples": 2, "max_new_tokens": 12, "sampling": Sampling(temperature=2.0)}
    whole = generate(model, guide, PROMPTS, **options)
    assert whole.num_tokens.tolist() == [12, 12, 12]
    assert not whole.finished.any()
    ends = [whole.tokens[0][4], whole.tokens[2][1]]
    network.generation_config.eos_token_id = ends
    found = generate(model, guide, PROMPTS, **options)
    for index, tokens in enumerate(whole.tokens):
        stop = next((step + 1 for step, token in enumerate(tokens) if token in ends), 12)
        assert found.tokens[index] == tokens[:stop]
        assert found.finished[index] == (tokens[stop - 1] in ends)
        torch.testing.assert_close(found.token_log_probs[index, :stop], whole.token_log_probs[index, :stop])
        for name in ("log_probs", "total_entropy", "aleatoric_entropy"):
            assert not getattr(found, name)[..., index, stop:].any()
    assert found.finished[[0, 2]].all()
    assert len(set(found.num_tokens.tolist())) > 1


def test_predict_scores_a_text_as_it_was_written() -> None:
    model, guide = sharpened()
    found = generate(model, guide, PROMPTS, num_samples=4, max_new_tokens=STEPS, sampling=Sampling())
    for index, (prompt, tokens) in enumerate(zip(PROMPTS, found.tokens, strict=True)):
        row = {"input_ids": [[*prompt, *tokens]], "labels": [[-100] * len(prompt) + tokens]}
        scored: Any = predict(model, guide, [{k: torch.tensor(v) for k, v in row.items()}], num_samples=4)
        torch.testing.assert_close(scored.log_density[0], found.log_density[index], rtol=1e-9, atol=0)
        entropy = scored.total_entropy[0, len(prompt) :]
        torch.testing.assert_close(entropy, found.total_entropy[index], rtol=1e-9, atol=0)


def test_the_generators_the_mode_and_the_network_stay_as_they_were() -> None:
    model, guide = sharpened(dtype=torch.double)
    model.train()
    tokens = {"input_ids": torch.tensor([PROMPTS[0]])}
    before, state = model.network_logits(tokens), torch.get_rng_state()
    one = generate(model, guide, PROMPTS, num_samples=2, max_new_tokens=2, sampling=Sampling())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert torch.equal(model.network_logits(tokens), before)
    assert not any(module._forward_hooks for module in model.network.modules())
    assert generate(model, guide, PROMPTS, num_samples=2, max_new_tokens=2, sampling=Sampling()).tokens == one.tokens
    other = generate(model, guide, PROMPTS, num_samples=2, max_new_tokens=2, seed=1)
    assert other.log_probs is not None
    assert one.log_probs is not None
    assert not torch.equal(other.log_probs[..., 0], one.log_probs[..., 0])


def test_texts_chats_and_what_comes_back() -> None:
    tokenizer = byte_pairs()
    model, guide = pair_of("llama")
    network: Any = model.network
    network.resize_token_embeddings(len(tokenizer))
    network.generation_config.eos_token_id = network.generation_config.pad_token_id = None
    options: dict[str, Any] = {"tokenizer": tokenizer, "num_samples": 2, "max_new_tokens": 3}
    chat = [{"role": "user", "content": "What is it?"}]
    found = generate(model, guide, ["the old house", chat], **options)
    ids = [tokenizer("the old house")["input_ids"], tokenizer("<user>What is it?<end>\n<assistant>")["input_ids"]]
    assert generate(model, guide, ids, **options).tokens == found.tokens
    assert found.texts == tuple(tokenizer.decode(tokens) for tokens in found.tokens)
    assert generate(model, guide, "the old house", **options).tokens == found.tokens[:1]
    assert generate(model, guide, chat, **options).tokens == found.tokens[1:]
    assert generate(model, guide, ids, num_samples=2, max_new_tokens=3).texts is None
    row = found.table()[1]
    assert row["prompt"] == 1
    assert row["text"] == found.texts[1]
    assert row["nll"] == pytest.approx(-float(found.token_log_probs[1].sum()))
    assert row["nll_per_token"] == pytest.approx(row["nll"] / row["num_tokens"])
    assert row["joint_nll"] == pytest.approx(-float(found.log_density[1]))
    assert row["total_entropy_max"] == float(found.total_entropy[1].max())


def test_an_empty_prompt_is_the_token_that_begins_a_text() -> None:
    tokenizer = byte_pairs(begins="<s>", chat=None)
    model, guide = pair_of("llama")
    model.network.resize_token_embeddings(len(tokenizer))  # type: ignore[operator]
    options: dict[str, Any] = {"tokenizer": tokenizer, "num_samples": 2, "max_new_tokens": 3}
    begins = generate(model, guide, [[tokenizer.bos_token_id]], **options)
    assert generate(model, guide, [""], **options).tokens == begins.tokens
    with pytest.raises(DataError, match=r"prompt 0: the row has messages, and this tokenizer has no chat template"):
        generate(model, guide, [{"role": "user", "content": "?"}], **options)


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "none": ([], {}, DataError, "no prompt was given"),
    "empty": ([[1], []], {}, DataError, "prompt 1 has no tokens"),
    "empty text": (["a", ""], {"tokenizer": byte_pairs()}, DataError, "prompt 1: the prompt is empty"),
    "text": (["a"], {}, DataError, r"prompt 0 is a text.*Pass tokenizer="),
    "long": ([[1] * 30], {}, DataError, "prompt 0 has 30 tokens, which with max_new_tokens=3 are more than the 32"),
    "vocabulary": ([[1, 50]], {}, DataError, "prompt 0 has tokens from 1 to 50, and the network knows 0 to 49"),
    "samples": ([[1]], {"num_samples": 0}, ConfigurationError, "num_samples=0"),
    "tokens": ([[1]], {"max_new_tokens": 0}, ConfigurationError, "max_new_tokens=0"),
    "batch": ([[1]], {"batch_size": 0}, ConfigurationError, "batch_size=0"),
    "seed": ([[1]], {"seed": -1}, ConfigurationError, "seed=-1"),
}


@pytest.mark.parametrize(("inputs", "options", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(inputs: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        generate(*pair_of("llama"), inputs, **{"max_new_tokens": 3, **options})


def test_a_guide_of_another_model_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="the guide belongs to another model"):
        generate(pair_of("llama")[0], pair_of("llama")[1], PROMPTS)


def test_networks_that_do_not_continue_a_text_are_refused() -> None:
    with pytest.raises(LikelihoodError, match=r"BertForSequenceClassification does not continue a text"):
        generate(*build_pair(), PROMPTS)


class TokensFirst(torch.nn.Module):
    """A projection that sees its input with tokens first."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(0, 1)).transpose(0, 1)  # type: ignore[no-any-return]


def test_several_draws_of_a_network_that_reorders_rows_are_refused() -> None:
    model, guide = pair_of("llama")
    expected = generate(model, guide, PROMPTS, num_samples=1, max_new_tokens=3)
    attention: Any = model.network.get_base_model().model.layers[0].self_attn  # type: ignore[operator]
    attention.q_proj = TokensFirst(attention.q_proj)
    with pytest.raises(AdapterError, match=r"LlamaForCausalLM mixes or reorders the rows.*num_samples=1"):
        generate(model, guide, PROMPTS, num_samples=2, max_new_tokens=3)
    assert generate(model, guide, PROMPTS, num_samples=1, max_new_tokens=3).tokens == expected.tokens


def test_a_network_whose_outputs_are_no_numbers() -> None:
    model, guide = pair_of("llama")
    with torch.no_grad():
        model.network.get_output_embeddings().weight.fill_(torch.nan)  # type: ignore[operator]
    with pytest.raises(DataError, match="outputs are NaN or infinite"):
        generate(model, guide, PROMPTS, num_samples=1, max_new_tokens=2)


def test_the_networks_own_rules_hold_but_for_how_a_token_is_chosen() -> None:
    model, guide = sharpened("llama", torch.float32, sample_scale=0.0)
    network: Any = model.network
    plain = generate(model, guide, PROMPTS, num_samples=2, max_new_tokens=20)
    network.generation_config.update(do_sample=True, temperature=0.3, top_k=7, num_beams=3, repetition_penalty=1.7)
    found = generate(model, guide, PROMPTS, num_samples=2, max_new_tokens=20)
    for index, prompt in enumerate(PROMPTS):
        tokens = torch.tensor([prompt])
        options: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": 1.0, "top_k": 50}
        expected = network.generate(input_ids=tokens, max_new_tokens=20, pad_token_id=0, **options)
        assert found.tokens[index] == expected[0, len(prompt) :].tolist()
    assert found.tokens != plain.tokens
    network.generation_config.suppress_tokens = [found.tokens[0][0]]
    assert generate(model, guide, PROMPTS[:1], num_samples=2, max_new_tokens=1).total_entropy.isfinite().all()


def test_a_network_is_tried_once() -> None:
    model, guide = pair_of("llama")
    calls: list[int] = []
    model.network.get_base_model().register_forward_hook(lambda *_: calls.append(1))  # type: ignore[operator]
    for expected in (2 + 3, 3):
        calls.clear()
        generate(model, guide, PROMPTS, num_samples=2, max_new_tokens=3)
        assert len(calls) == expected


def test_half_precision_writes_too() -> None:
    model, guide = sharpened("llama", torch.bfloat16)
    found = generate(model, guide, PROMPTS, num_samples=2, max_new_tokens=3)
    assert found.log_probs is not None
    assert found.log_probs.dtype == torch.double
    tokens, log_probs = averaged_steps(model, guide, PROMPTS[0], 1, 2, seed=0, design="antithetic")
    torch.testing.assert_close(found.total_entropy[0, 0], torch.special.entr(log_probs[:, 0].exp().mean(0)).sum())
    assert found.tokens[0][0] == tokens[0]
