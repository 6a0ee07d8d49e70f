"""Language models: transformers' own loss, whatever the padding; labels that do not fit."""

from typing import Any

import peft
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.nn.functional import cross_entropy

import bayes_lora as bl
from bayes_lora.adapters import unwrap
from bayes_lora.errors import LikelihoodError, UnsupportedAdapterError
from bayes_lora.inference import ItemizedELBO, MonteCLoRAGuide, predict
from bayes_lora.inference.training.svi_module import SVIModule
from bayes_lora.models import BayesianLoRA, CausalLanguageModel, LikelihoodNetwork
from tests.language import NETWORKS, padded, pair_of, texts
from tests.networks import build_llama

EACH = pytest.mark.parametrize("name", NETWORKS)


def nll_and_gradients(model: BayesianLoRA, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Of the sites that the ELBO sees, at sample_scale=0."""
    elbo = ItemizedELBO()
    parameters = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    loss = elbo.differentiable_loss(model, MonteCLoRAGuide(model), **batch)
    return elbo.terms["nll"], list(torch.autograd.grad(loss, parameters))


@EACH
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_without_noise_it_is_the_loss_of_transformers(
    name: str, side: str, dtype: torch.dtype, tolerance: float
) -> None:
    model, _ = pair_of(name, dtype, sample_scale=0.0)
    batch = padded(texts(), side)
    nll, own = nll_and_gradients(model, batch)
    network: Any = unwrap(model.network)
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    output = network(**batch, position_ids=positions)
    loss = output.loss  # transformers computes it in float32 at most
    if dtype == torch.float64:
        loss = cross_entropy(output.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
        torch.testing.assert_close(output.loss.double(), loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(nll, loss.detach(), rtol=tolerance, atol=0)
    for one, other in zip(own, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.shows(
    "architecture",
    "works",
    {
        "llama": "LLaMA as a language model",
        "llama, tied": "language models whose head is the embeddings' weight",
        "gpt2": "GPT-2 as a language model",
        "qwen3": "Qwen3 as a language model",
        "gemma3": "Gemma 3 as a language model",
        "mistral": "Mistral as a language model",
    },
)
@EACH
def test_padding_on_either_side_changes_nothing(name: str) -> None:
    model, _ = pair_of(name, sample_scale=0.0)
    alone = [nll_and_gradients(model, padded([row], "right")) for row in texts()]
    counts = torch.tensor([len(row) - 2 for row in texts()]).double()
    expected = sum(nll * count for (nll, _), count in zip(alone, counts, strict=True)) / counts.sum()
    for side in ("left", "right"):
        nll, _ = nll_and_gradients(model, padded(texts(), side))
        torch.testing.assert_close(nll, torch.as_tensor(expected), rtol=1e-10, atol=0)


def test_positions_from_the_edge_of_the_batch_would_be_wrong() -> None:
    """The control: a network that knows positions by number, told what transformers assumes where nobody says it."""
    model, _ = pair_of("gpt2", sample_scale=0.0)
    batch = padded(texts(), "left")
    right = nll_and_gradients(model, batch)[0]
    from_the_edge = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    assert abs(nll_and_gradients(model, {**batch, "position_ids": from_the_edge})[0] - right) > 1e-4


def test_half_precision_has_the_loss_in_single() -> None:
    model, _ = pair_of("llama", torch.bfloat16, sample_scale=0.0)
    batch = padded(texts(), "right")
    nll = nll_and_gradients(model, batch)[0]
    network: Any = unwrap(model.network)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, network(**batch).loss.detach(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((2, 3), torch.tensor([0, 1]), r"logits of shape \(2, 3\); a language model has \(row, token, vocabulary\)"),
        ((2, 3, 5), torch.zeros(2, 2, dtype=torch.long), r"labels have shape \(2, 2\)"),
        ((2, 3, 5), torch.zeros(2, 4, dtype=torch.long), r"labels have shape \(2, 4\)"),
        ((1, 3, 5), torch.zeros(1, 3), "tokens are integers"),
        ((1, 3, 5), torch.tensor([[0, 5, 1]]), "The tokenizer is another network's, or the embeddings want 6 rows"),
    ],
)
def test_labels_that_do_not_fit(shape: tuple[int, ...], labels: Tensor, message: str) -> None:
    with pytest.raises(LikelihoodError, match=message):
        CausalLanguageModel().checked_labels(torch.zeros(shape), labels)


def test_labels_that_do_not_fit_the_tokens() -> None:
    """Also where the network makes logits of a row's last tokens only, which fit more labels than one."""
    model, guide = pair_of("llama")
    batch = padded(texts(), "right", prompt=4)
    wider = {**batch, "labels": torch.nn.functional.pad(batch["labels"], (1, 0), value=-100)}
    outside = {**batch, "labels": batch["labels"].where(batch["labels"] != batch["labels"].max(), 50)}
    for use in (
        lambda wrong: ItemizedELBO().differentiable_loss(model, guide, **wrong),
        lambda wrong: model(**wrong),
        lambda wrong: predict(model, guide, [wrong], num_samples=2),
    ):
        with pytest.raises(LikelihoodError, match=r"the labels have shape \(5, 13\), the tokens \(5, 12\)"):
            use(wider)
        with pytest.raises(LikelihoodError, match=r"labels run from .* to 50, but there are 50 classes"):
            use(outside)


def test_logits_that_somebody_sees_are_all_there() -> None:
    model, guide = pair_of("llama")
    batch = padded(texts(), "right", prompt=4)
    assert model(**batch).shape == (5, 12, 50)
    with poutine.trace() as found:
        model(**batch)
    assert found.trace.nodes["logits"]["value"].shape == (5, 12, 50)
    made: list[torch.Size] = []
    network: Any = model.network
    network.get_base_model().lm_head.register_forward_hook(lambda _, __, output: made.append(output.shape))
    ItemizedELBO().differentiable_loss(model, guide, **batch)
    assert made == [(5, 9, 50)]


def test_a_tied_head_is_in_no_checkpoint() -> None:
    """Nor are the embeddings that it shares its weight with: both stay as they came."""
    model, guide = pair_of("llama, tied")
    for module in (SVIModule(model, guide), LikelihoodNetwork(unwrap(model.network), CausalLanguageModel())):
        trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        buffers = {name for name, _ in module.named_buffers()}
        assert trained
        assert trained <= set(module.state_dict()) <= trained | buffers


@pytest.mark.shows("adapter", "refused", "an adapter on a head that shares its weight with the embeddings")
def test_a_tied_head_takes_no_adapter() -> None:
    lora: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "lm_head"]}
    config = bl.MonteCLoRAConfig()
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        tied = peft.get_peft_model(build_llama(tied=True), peft.LoraConfig(**lora))
    with pytest.raises(UnsupportedAdapterError, match=r"lm_head: its weight is that of 'model\.embed_tokens' as well"):
        BayesianLoRA(tied, config, CausalLanguageModel())
    untied = peft.get_peft_model(build_llama(), peft.LoraConfig(**lora))
    model = BayesianLoRA(untied, config, CausalLanguageModel())
    assert any("lm_head" in name for name in model.sites.names)
