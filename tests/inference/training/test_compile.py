"""torch.compile of the network: what eager mode computes, with new noise at every step and no new graphs."""

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pyro
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import lookup_backend
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback, TrainingArguments

from bayes_lora.adapters import unwrap
from bayes_lora.errors import UnsupportedAdapterError
from bayes_lora.inference import ItemizedELBO, MonteCLoRAGuide, SVITrainer, predict
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_network, build_pair, make_batch


class Counting:
    """A backend that needs no compiler and counts the graphs it is given."""

    def __init__(self, name: str = "aot_eager") -> None:
        self.name = name
        self.graphs = 0

    def __call__(self, graph: Any, inputs: list[Any]) -> Callable[..., Any]:
        self.graphs += 1
        return lookup_backend(self.name)(graph, inputs)


pytestmark = [
    # torch asks whether a tensor has a gradient, and hides the warning this gives, but not where warnings are errors
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    # torch's own word on the first release of Python 3.13, about speed alone
    pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """Every test compiles anew; and torch.compile turns off the validation of torch's distributions, for good."""
    validates = pyro.settings.get("validate_distributions_torch")
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()
    pyro.settings.set(validate_distributions_torch=validates)


class Tiny(nn.Module):
    """Tokens through two layers of width 16, averaged: few enough operations to compile in a moment."""

    def __init__(self, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, 3)
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> tuple[Tensor]:
        hidden = self.embeddings(input_ids)
        if self.gradient_checkpointing and self.training:
            hidden = checkpoint(self.run, hidden, use_reentrant=False)
        else:
            hidden = self.run(hidden)
        return (self.head((hidden * attention_mask[..., None]).mean(1)),)

    def run(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden).tanh()
        return hidden


def build_tiny(gradient_checkpointing: bool = False, **options: Any) -> Any:
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=r"layers\.\d", modules_to_save=["head"], **options)
    network = peft.get_peft_model(Tiny(gradient_checkpointing), lora)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return network.train()


def build_bert() -> Any:
    return build_network(num_layers=1, dtype=torch.float32).train()


def pair(network: Any) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
    return build_pair(network, sample_scale=0.5)


def step(model: BayesianLoRA, guide: MonteCLoRAGuide, seed: int, learning_rate: float = 0.1) -> Tensor:
    torch.manual_seed(seed)
    parameters = [p for p in (*model.parameters(), *guide.parameters()) if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=learning_rate)
    optimizer.zero_grad()
    loss = ItemizedELBO().differentiable_loss(model, guide, **make_batch())
    loss.backward()
    optimizer.step()
    return loss.detach()


def session(model: BayesianLoRA, guide: MonteCLoRAGuide, backend: Counting) -> tuple[list[Tensor], list[int]]:
    """What training and prediction in turns compute; and how many graphs there were after each of two rounds."""
    values, graphs = [], []
    for _ in range(2):
        values += [step(model, guide, seed) for seed in range(3)]
        with torch.no_grad():
            values.append(model.network_logits(make_batch()))
        for options in ({"at_mean": True}, {"num_samples": 3}, {"num_samples": 2, "draws_per_pass": 1}):
            values.append(predict(model, guide, [make_batch()], **options).logits)
        graphs.append(backend.graphs)
    return values + [p.detach() for p in (*model.parameters(), *guide.parameters())], graphs


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_compiled_network_computes_what_eager_mode_does(use_dora: bool) -> None:
    network, backend = build_tiny(use_dora=use_dora), Counting("aot_eager")
    network.compile(backend=backend, fullgraph=not use_dora)  # PEFT asks for the weight in a way that breaks the graph
    values, graphs = session(*pair(network), backend)
    expected, none = session(*pair(build_tiny(use_dora=use_dora)), Counting())
    torch.testing.assert_close(values, expected)
    assert none == [0, 0]
    assert 0 < graphs[0] == graphs[1]


def test_gradient_checkpointing() -> None:
    network, backend = build_tiny(gradient_checkpointing=True), Counting("aot_eager")
    network.compile(backend=backend, fullgraph=True)
    found, expected = pair(network), pair(build_tiny())
    torch.testing.assert_close(*([step(*models, seed) for seed in range(3)] for models in (found, expected)))
    assert backend.graphs == 1


@pytest.mark.parametrize("compiled", ["before", "after a pass", "after"])
def test_new_noise_at_every_step_from_one_graph(compiled: str) -> None:
    network, backend = build_tiny(), Counting()
    if compiled != "after":
        network.compile(backend=backend)
    if compiled == "after a pass":
        network(**make_batch())
    model, guide = pair(network)
    if compiled == "after":
        network.compile(backend=backend)
    before = backend.graphs
    losses = [step(model, guide, seed, learning_rate=0.0) for seed in range(4)]
    assert len({float(loss) for loss in losses}) == 4  # nothing else changes from step to step
    assert backend.graphs == before + 1
    expected = pair(build_tiny())
    torch.testing.assert_close(losses, [step(*expected, seed, learning_rate=0.0) for seed in range(4)])


def test_a_pass_of_the_users_own_is_at_the_mean() -> None:
    network, backend = build_tiny(), Counting()
    network.compile(backend=backend)
    model, guide = pair(network)
    graphs = []
    for seed in range(3):
        step(model, guide, seed)
        logits = model.network_logits(make_batch())  # with gradients, where recomputing would see the noise
        torch.testing.assert_close(logits, unwrap(copy.deepcopy(network))(**make_batch())[0])
        graphs.append(backend.graphs)
    assert graphs[1] == graphs[2]
    noise = [torch.randn_like(model.sites.means(group).mT) for group in model.sites.groups]
    with torch.no_grad(), model.perturbed(noise):
        assert not torch.allclose(model.network_logits(make_batch()), logits)


def test_a_transformer() -> None:
    network, backend = build_bert(), Counting()
    network.compile(backend=backend, fullgraph=True)
    found, expected = pair(network), pair(build_bert())
    torch.testing.assert_close(*([step(*models, seed) for seed in range(3)] for models in (found, expected)))
    with torch.no_grad():
        torch.testing.assert_close(*(model.network_logits(make_batch()) for model, _ in (found, expected)))
    assert backend.graphs == 2


def test_the_wrapper_is_refused_before_and_at_the_mean_after(batch: Batch) -> None:
    network = build_tiny()
    message = r"torch.compile\(module\) has put the network.*Compile in place.*network\.compile\(\.\.\.\)"
    with pytest.raises(UnsupportedAdapterError, match=r"^_orig_mod\.base_model\.model\.layers\.0: " + message):
        pair(torch.compile(network, backend="eager"))
    network.base_model.model.layers = torch.compile(network.base_model.model.layers, backend="eager")
    with pytest.raises(UnsupportedAdapterError, match=r"^base_model\.model\.layers\._orig_mod\.0: " + message):
        pair(network)

    network, backend = build_tiny(), Counting()
    model, guide = pair(network)
    compiled: Any = torch.compile(network, backend=backend)
    for seed in range(3):
        step(model, guide, seed)
        with torch.no_grad():
            torch.testing.assert_close(compiled(**batch)[0], unwrap(copy.deepcopy(network))(**batch)[0])
    assert backend.graphs == 1


class Watch(TrainerCallback):
    """The number of graphs that there were after each step."""

    def __init__(self) -> None:
        self.graphs: list[int] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.graphs.append(counters["stats"]["unique_graphs"])


@pytest.mark.slow  # the whole loss is compiled here, Pyro's part with it
@pytest.mark.filterwarnings("ignore:Dynamo d:UserWarning")  # torch says what it inlines, and what stays in eager mode
def test_the_trainers_torch_compile(tmp_path: Path) -> None:
    rows = [{name: value[i % 5] for name, value in make_batch().items()} for i in range(40)]
    histories, watch = [], Watch()
    for options in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        arguments = TrainingArguments(
            str(tmp_path),
            num_train_epochs=1,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            **options,  # type: ignore[arg-type]
        )
        trainer = SVITrainer(*pair(build_tiny()), arguments, train_dataset=rows, callbacks=[watch])
        trainer.train()
        terms = ("loss", "nll", "kl_dirichlet", "kl_wishart", "kl_normal", "cooperative")
        histories.append([[e[term] for term in terms] for e in trainer.state.log_history if "loss" in e])
    torch.testing.assert_close(torch.tensor(histories[1]), torch.tensor(histories[0]))
    eager, compiled = watch.graphs[:10], watch.graphs[10:]
    assert eager == [0] * 10
    assert 0 < compiled[5] == compiled[9]


@pytest.mark.slow  # a minute of C++
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # inductor imports what torch deprecates
@pytest.mark.skipif(shutil.which("g++") is None, reason="an installed g++ would run this")
def test_inductor() -> None:
    network = build_tiny()
    network.compile()
    found = pair(network)
    losses = [step(*found, seed) for seed in range(3)]
    expected = pair(build_tiny())
    torch.testing.assert_close(losses, [step(*expected, seed) for seed in range(3)], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        logits = [pair[0].network_logits(make_batch()) for pair in (found, expected)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)
