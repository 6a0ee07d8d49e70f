"""Diagonal and Kronecker factors of the GGN against the matrix itself."""

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import bayes_lora as bl
from bayes_lora.errors import AdapterError
from bayes_lora.inference.predictors.laplace import LaplaceOptions, LaplacePosterior, LaplacePredictor, fit_laplace
from bayes_lora.inference.predictors.laplace.curvature import DiagonalCurvature, KroneckerCurvature, hessian_columns
from bayes_lora.inference.predictors.laplace.gradients import LinearGradients, backpropagate
from bayes_lora.inference.predictors.laplace.linears import select_linears
from bayes_lora.inference.predictors.laplace.low_rank import TruncatedSum, WholeSum
from bayes_lora.models import BayesianLoRA
from tests.inference.predictors.laplace.dense import (
    build_lively,
    build_pooled,
    dense_curvature,
    dense_ggn,
    dense_jacobians,
    indistinguishable_rows,
    random_rows,
    relative_error,
    rows_of,
    softmax_hessians,
    without_labels,
)
from tests.networks import Batch

EXACT = 1e-12  # relative: a few hundred sums in double precision
KFAC = ["kfac_reduce", "kfac_expand"]
PARAMETERS = ["all", "all_and_head", "last_layer"]
CPU = torch.device("cpu")


def exact_blocks(network: nn.Module, batch: Batch, parameters: str) -> list[Tensor]:
    jacobians = dense_jacobians(network, select_linears(network, parameters), batch)
    return [dense_ggn(jacobian, softmax_hessians(network, batch)) for jacobian in jacobians]


def errors(posterior: LaplacePosterior, expected: list[Tensor]) -> list[float]:
    found = [dense_curvature(block) for block in posterior.blocks.values()]
    return [relative_error(one, other) for one, other in zip(found, expected, strict=True)]


def fit(network: nn.Module, batches: list[Batch], **options: object) -> LaplacePosterior:
    return fit_laplace(network, batches, LaplaceOptions(**options))  # type: ignore[arg-type]


def test_columns_are_a_root_of_the_softmax_hessian() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64) * 3
    columns = hessian_columns(logits)
    probs = logits.softmax(-1)
    expected = probs.diag_embed() - probs.unsqueeze(-1) * probs.unsqueeze(-2)
    torch.testing.assert_close(torch.einsum("knc,knd->ncd", columns, columns), expected, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_diagonal_is_exact_on_a_transformer(batch: Batch, parameters: str) -> None:
    network = build_lively(target_modules=["query", "value", "output.dense"])
    posterior = fit(network, [batch], parameters=parameters, structure="diagonal")
    expected = [ggn.diagonal().diag() for ggn in exact_blocks(network, batch, parameters)]
    assert max(errors(posterior, expected)) < EXACT


def test_diagonal_without_off_diagonal_softmax_terms_is_seen(batch: Batch) -> None:
    network = build_lively()
    linears = select_linears(network, "all")

    def diagonal_only(logits: Tensor) -> Tensor:
        return logits.softmax(-1).sqrt().diag_embed().transpose(0, 1)

    _, gradients = backpropagate(network, linears, without_labels(batch), diagonal_only)
    for linear, of_linear, exact in zip(linears, gradients, exact_blocks(network, batch, "all"), strict=True):
        wrong = DiagonalCurvature(linear.shape, CPU)
        wrong.add(of_linear)
        assert relative_error(wrong.block().curvature.flatten(), exact.diagonal()) > 1e-2


@pytest.mark.parametrize("structure", KFAC)
def test_kfac_is_exact_for_one_example_at_one_position(structure: str) -> None:
    network, batch = build_pooled(), random_rows(1, 1)
    expected = exact_blocks(network, batch, "all_and_head")
    assert max(errors(fit(network, [batch], parameters="all_and_head", structure=structure), expected)) < EXACT


@pytest.mark.parametrize("structure", KFAC)
def test_kfac_is_exact_where_all_examples_have_one_hessian(structure: str) -> None:
    network = build_pooled()
    batch = indistinguishable_rows(network, 4, 1)
    expected = exact_blocks(network, batch, "all_and_head")
    assert max(errors(fit(network, [batch], parameters="all_and_head", structure=structure), expected)) < EXACT
    # Not for any rows, or the test above would say little.
    others = random_rows(4, 1)
    found = fit(network, [others], parameters="all_and_head", structure=structure)
    assert max(errors(found, exact_blocks(network, others, "all_and_head"))) > 1e-2


def test_reduce_is_exact_for_a_linear_network_that_averages_positions_and_expand_is_not() -> None:
    network = build_pooled()
    batch = indistinguishable_rows(network, 4, 3)
    expected = exact_blocks(network, batch, "all_and_head")
    reduced = errors(fit(network, [batch], parameters="all_and_head", structure="kfac_reduce"), expected)
    expanded = errors(fit(network, [batch], parameters="all_and_head", structure="kfac_expand"), expected)
    assert max(reduced) < EXACT
    assert max(expanded[:2]) > 0.1
    assert expanded[2] < EXACT  # the head sees one position


def test_kfac_of_a_loop_over_examples_and_positions() -> None:
    generator = torch.Generator().manual_seed(6)
    inputs = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    outputs = torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64)
    outputs[:, 1, 2:] = 0  # padding
    found = {}
    for reduce in (True, False):
        curvature = KroneckerCurvature((6, 5), CPU, reduce=reduce, max_rank=None)
        curvature.add(LinearGradients(inputs, outputs))
        found[reduce] = dense_curvature(curvature.block())
    lengths = [4, 2, 4]
    means = [inputs[i, :length].mean(0) for i, length in enumerate(lengths)]
    left = sum(torch.outer(g, g) for g in outputs.sum(2).flatten(0, 1))
    right = sum(torch.outer(a, a) for a in means) / 3
    assert relative_error(found[True], torch.kron(left, right)) < EXACT  # type: ignore[arg-type]
    pairs = [(i, t) for i, length in enumerate(lengths) for t in range(length)]
    left = sum(torch.outer(outputs[c, i, t], outputs[c, i, t]) for c in range(2) for i, t in pairs)
    right = sum(torch.outer(inputs[i, t], inputs[i, t]) for i, t in pairs) / len(pairs)
    assert relative_error(found[False], torch.kron(left, right)) < EXACT  # type: ignore[arg-type]


@pytest.mark.parametrize("structure", [*KFAC, "diagonal"])
def test_batches_and_padding_do_not_matter(batch: Batch, structure: str) -> None:
    network = build_lively()
    whole = fit(network, [batch], structure=structure)
    parts = [rows_of(batch, 0, 1), rows_of(batch, 2, 3), rows_of(batch, 4)]
    parts[2] = {name: value if name == "labels" else value[:, :4] for name, value in parts[2].items()}  # its padding
    seen = []
    split = fit_laplace(network, parts, LaplaceOptions(structure=structure), on_batch=lambda: seen.append(1))
    assert len(seen) == 3
    assert split.num_rows == whole.num_rows == 5
    assert split.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-12)
    for name, block in whole.blocks.items():
        assert relative_error(dense_curvature(split.blocks[name]), dense_curvature(block)) < 1e-10


def test_a_network_under_a_model_is_taken_at_its_mean(batch: Batch) -> None:
    plain = fit(build_lively(), [batch])
    network = build_lively()
    BayesianLoRA(network, bl.MonteCLoRAConfig())
    inside = fit(network, [batch])
    assert list(inside.blocks) == list(plain.blocks)
    for name, block in plain.blocks.items():
        assert torch.equal(dense_curvature(inside.blocks[name]), dense_curvature(block))


def test_fit_leaves_the_network_as_it_was(batch: Batch) -> None:
    network = build_lively().train()
    trained = [parameter.requires_grad for parameter in network.parameters()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        fit(network, [batch], parameters="all_and_head")
    assert network.training
    assert [parameter.requires_grad for parameter in network.parameters()] == trained
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_a_linear_called_twice_adds_its_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (self.mix(self.mix(x).tanh()),)

    torch.manual_seed(0)
    network = Twice().double()
    batch = {"x": torch.randn(4, 3, dtype=torch.float64), "labels": torch.tensor([0, 1, 2, 1])}
    posterior = fit(network, [batch], parameters="last_layer", structure="diagonal")
    expected = [ggn.diagonal().diag() for ggn in exact_blocks(network, batch, "last_layer")]
    assert max(errors(posterior, expected)) < EXACT


@pytest.mark.parametrize("options", [{"structure": "diagonal"}, {}, {"max_rank": 2}], ids=str)
def test_an_adapter_without_influence_keeps_its_prior(options: dict[str, object]) -> None:
    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.side, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            self.side(x)
            return (self.head(x),)

    torch.manual_seed(0)
    network = peft.get_peft_model(Unread(), peft.LoraConfig(r=3, target_modules=["side"])).double()
    batch = {"x": torch.randn(5, 4, dtype=torch.float64), "labels": torch.tensor([0, 1, 0, 1, 1])}
    posterior = fit(network, [batch], parameters="all_and_head", **options)
    unread, _, head = posterior.blocks.values()
    assert dense_curvature(unread).abs().max() == 0
    assert dense_curvature(head).abs().max() > 0
    unit = torch.eye(12, dtype=torch.float64)
    covariance = unread.output_covariance(unit.reshape(1, 12, *unread.shape), 4.0)[0]
    torch.testing.assert_close(covariance, unit / 4)


def test_truncated_sum_has_the_largest_eigenvalues() -> None:
    generator = torch.Generator().manual_seed(7)
    scales = 0.5 ** torch.arange(12, dtype=torch.float64)
    batches = [torch.randn(90, 12, generator=generator, dtype=torch.float64) * scales for _ in range(3)]
    whole = WholeSum(12, CPU)
    for rows in batches:
        whole.add(rows)
    missing = []
    for rank in (2, 4, 8, 12):
        truncated = TruncatedSum(12, rank, CPU)
        for rows in batches:
            truncated.add(rows)
        values, vectors = truncated.eigen()
        assert vectors.shape == (12, rank)
        torch.testing.assert_close(vectors.mT @ vectors, torch.eye(rank, dtype=torch.float64))
        best = whole.eigen()[0].flip(0)
        # What was cut on the way is bounded by the eigenvalues that the rank leaves out.
        torch.testing.assert_close(values, best[:rank], rtol=1e-12, atol=float(best[rank:].sum()) * 3)
        missing.append(relative_error(vectors * values @ vectors.mT, whole.matrix))
    assert missing[0] > 10 * missing[1] > 100 * missing[2]
    assert missing[3] < EXACT


def test_low_rank_factors_converge_to_the_full_ones(batch: Batch) -> None:
    network = build_lively()
    full = fit(network, [batch])
    missing = []
    for rank in (1, 3, 8, 15):
        cut = fit(network, [batch], max_rank=rank)
        for block in cut.blocks.values():
            assert max(block.left_vectors.shape[1], block.right_vectors.shape[1]) <= rank  # type: ignore[attr-defined]
        pairs = zip(cut.blocks.values(), full.blocks.values(), strict=True)
        missing.append(max(relative_error(dense_curvature(a), dense_curvature(b)) for a, b in pairs))
    assert missing[0] > missing[1] > missing[2]
    assert missing[0] > 1e-2
    assert missing[3] < 1e-10  # 15 directions are enough for five rows of three classes


class Square(TorchDispatchMode):
    """Notes whether any operation makes a matrix of (width, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.width, self.seen = width, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            self.seen |= isinstance(value, Tensor) and sum(size >= self.width for size in value.shape) > 1
        return made


@pytest.mark.parametrize("structure", KFAC)
def test_a_wide_factor_is_never_made_whole(structure: str) -> None:
    width = 200

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.head = nn.Linear(width, 4, bias=False), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (self.head(self.down(x).tanh().mean(1)),)

    torch.manual_seed(0)
    network = peft.get_peft_model(Wide(), peft.LoraConfig(r=4, target_modules=["down"]))
    batch = {"x": torch.randn(3, 50, width), "labels": torch.tensor([0, 1, 0])}
    seen = {}
    for max_rank in (8, None):
        with Square(width) as watch:
            posterior = fit(network, [batch], structure=structure, max_rank=max_rank)
            LaplacePredictor(network, posterior)([batch], num_samples=2)
        seen[max_rank] = watch.seen
    assert seen == {8: False, None: True}


def test_a_layer_in_which_rows_are_merged_is_refused() -> None:
    class Merging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (self.mix(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1),)

    batch = {"x": torch.randn(4, 5, 3), "labels": torch.tensor([0, 1, 0, 1])}
    with pytest.raises(AdapterError, match=r"mix: its input has shape \(20, 3\) where the batch has 4 rows"):
        fit(Merging(), [batch], parameters="last_layer")
