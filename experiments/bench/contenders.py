"""The contenders of the bench: ways to train, draw and predict, each built the same way and ready to run.

One more is one more entry of `TRAINING`: a name, a label, and a function that makes its turn for a case.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from peft.tuners.lora.config import MontecloraConfig
from pyro import poutine
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.experiments.bench.cases import Batch, Case, adapter_bank, lora_network, make_batch, plain_network
from bayes_lora.experiments.bench.timing import Turn, synchronize, timed
from bayes_lora.inference import (
    FitOptions,
    ItemizedELBO,
    LaplaceOptions,
    MonteCLoRAGuide,
    fit,
    fit_laplace,
    fit_network,
    predict,
)
from bayes_lora.models import BayesianLoRA

Build = Callable[[Case], Turn]

_LEARNING_RATE = 1e-4
# Beyond about 20 components its Dirichlet KL overflows float32, and the step after fails.
PEFT_MOST_COMPONENTS = 16
_NUM_TRAIN_EXAMPLES = 1000  # of objective "elbo": it weighs a term, and costs nothing


@dataclass(frozen=True)
class Entrant:
    """Who a measurement is of.

    Attributes:
        name: in results.
        label: in tables and plots.
        ours: whether it is this library's.
    """

    name: str
    label: str
    ours: bool = False


@dataclass(frozen=True)
class Contender(Entrant):
    """One way of making a training step.

    Attributes:
        build: makes the turn of a case; the model, the batch and the optimizer are new each time.
        references: names of those it is compared with, where they are in the same race.
        components: N, where the contender has components.
    """

    build: Build = field(kw_only=True)
    references: tuple[str, ...] = ("lora",)
    components: int | None = None


def _loop(parameters: Any, loss_of: Callable[[], Tensor], case: Case) -> Turn:
    """Forward, backward, AdamW: the same loop for all."""
    optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=_LEARNING_RATE)

    def step() -> None:
        loss_of().backward()
        optimizer.step()
        optimizer.zero_grad()

    return timed(step, case.device)


def _full(case: Case) -> Turn:
    network, batch = plain_network(case), make_batch(case)
    return _loop(network.parameters(), lambda: network(**batch).loss, case)


def _peft(**options: Any) -> Build:
    """PEFT's adapter on the network's own loss; `options` go to peft.LoraConfig."""

    def build(case: Case) -> Turn:
        network, batch = lora_network(case, **options), make_batch(case)
        return _loop(network.parameters(), lambda: network(**batch).loss, case)

    return build


def _lora_pyro(case: Case) -> Turn:
    """The plain adapter under Pyro's ELBO, beside as many latent sites as the posterior has, each of a single number:
    what is left of a posterior's cost there when all that is ours is taken away."""
    network, batch = lora_network(case), make_batch(case)
    latents = [f"z{index}" for index in range(_num_latents(case))]
    zero, one = torch.zeros((), device=case.device), torch.ones((), device=case.device)
    locations = nn.ParameterList(nn.Parameter(zero.clone()) for _ in latents)

    def model(**batch: Tensor) -> None:
        for name in latents:
            pyro.sample(name, dist.Normal(zero, one, validate_args=False))
        labels = batch.pop("labels")
        with pyro.plate("data", len(labels)):
            pyro.sample("y", dist.Categorical(logits=network(**batch).logits, validate_args=False), obs=labels)

    def guide(**batch: Tensor) -> None:
        for name, location in zip(latents, locations, strict=True):
            pyro.sample(name, dist.Normal(location, one, validate_args=False))

    elbo = TraceMeanField_ELBO()
    return _loop(
        [*network.parameters(), *locations.parameters()],
        lambda: elbo.differentiable_loss(model, guide, **batch) / case.batch,
        case,
    )


def _num_latents(case: Case) -> int:
    """Latent sites of a posterior over the case's adapters."""
    _, guide = posterior(lora_network(case))
    trace = poutine.trace(guide).get_trace()
    return sum(site["type"] == "sample" and not site["is_observed"] for site in trace.nodes.values())


def _lora_fused(case: Case) -> Turn:
    """The plain adapter on its own loss, through the layer that the posterior's passes go through: what is left of a
    posterior's cost when its noise, its KL and Pyro are taken away."""
    model, _ = posterior(lora_network(case))
    batch = make_batch(case)
    none = [model.sites.example.new_zeros(len(group), group.rank, group.in_features) for group in model.sites.groups]

    def loss() -> Tensor:
        with model.perturbed(none):
            return model.network(**batch).loss  # type: ignore[no-any-return]

    return _loop(model.network.parameters(), loss, case)


def peft_monteclora(num_components: int) -> Build:
    """PEFT's MonteCLoRA with its variational loss added as PEFT's documentation has it; the rest at its defaults."""

    def build(case: Case) -> Turn:
        network = lora_network(case, monteclora_config=MontecloraConfig(num_samples=num_components))
        batch = make_batch(case)
        return _loop(
            network.parameters(), lambda: network(**batch).loss + network.base_model._get_monteclora_loss(), case
        )

    return build


def posterior(network: Any, num_components: int = 4, **config: Any) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
    """Model and guide on a network; `config` as `MonteCLoRAConfig` has it."""
    if config.get("objective") == "elbo":
        config["num_train_examples"] = _NUM_TRAIN_EXAMPLES
    model = BayesianLoRA(network, MonteCLoRAConfig(num_components=num_components, **config))
    return model, MonteCLoRAGuide(model)


def _bayesian(num_components: int = 4, elbo: type[ELBO] = ItemizedELBO, use_dora: bool = False, **config: Any) -> Build:
    """This library's objective in the same plain loop, with its terms as `fit` computes it, or by an ELBO of Pyro's."""

    def build(case: Case) -> Turn:
        model, guide = posterior(lora_network(case, use_dora=use_dora), num_components, **config)
        batch, loss_of = make_batch(case), elbo()(model, guide)
        return _loop(loss_of.parameters(), lambda: loss_of(**batch), case)

    return build


def _svi(case: Case) -> Turn:
    """Pyro's own loop and ELBO, with Pyro's own optimizer: one AdamW for each parameter."""
    model, guide = posterior(lora_network(case))
    batch = make_batch(case)
    svi = pyro.infer.SVI(model, guide, pyro.optim.AdamW({"lr": _LEARNING_RATE}), loss=pyro.infer.TraceMeanField_ELBO())
    return timed(lambda: svi.step(**batch), case.device)


def _fit(case: Case) -> Turn:
    model, guide = posterior(lora_network(case))
    return fitted(lambda *args, **kwargs: fit(model, guide, *args, **kwargs), case)


def _fit_lora(case: Case) -> Turn:
    network = lora_network(case)
    return fitted(lambda *args, **kwargs: fit_network(network, *args, **kwargs), case)


def fitted(run: Callable[..., Any], case: Case) -> Turn:
    """A turn of a whole fit, all of the Trainer's work for a step included, its start and end left out.

    A fit collates a batch for each step, one ahead of the training: the third batch comes after the first step and
    the last one after the last step but one, so that as many steps lie between the two as there are batches between.
    """
    batch = make_batch(replace(case, device="cpu"))  # as a loader has it: moving it is the Trainer's work

    def turn(steps: int) -> float:
        moments: list[float] = []

        def collate(rows: list[Any]) -> Batch:
            if len(moments) in (2, steps + 2):
                synchronize(case.device)
            moments.append(time.perf_counter())
            return dict(batch)

        rows = [{"labels": 0}] * (case.batch * (steps + 3))
        run(rows, FitOptions(epochs=1, batch_size=case.batch, learning_rate=_LEARNING_RATE), collate=collate)
        return (moments[-1] - moments[2]) / steps

    return turn


_TRAINING = (
    Contender("lora", "PEFT LoRA", build=_peft()),
    Contender("lora_fused", "LoRA, fused layer", True, build=_lora_fused),
    Contender("peft_monteclora", "PEFT MonteCLoRA, N = 4", build=peft_monteclora(4), components=4),
    Contender("peft_monteclora_n8", "PEFT MonteCLoRA, N = 8", build=peft_monteclora(8), components=8),
    Contender("paper", "bayes_lora, paper", True, build=_bayesian(), components=4),
    Contender("paper_explicit", "bayes_lora, paper, explicit", True, build=_bayesian(sampler="explicit"), components=4),
    Contender("elbo", "bayes_lora, elbo", True, build=_bayesian(objective="elbo"), components=4),
    Contender("lora_pyro", "LoRA, TraceMeanField_ELBO over as many sites of one number", build=_lora_pyro),
    Contender(
        "paper_pyro",
        "bayes_lora, paper, TraceMeanField_ELBO",
        True,
        ("lora", "lora_pyro"),
        build=_bayesian(elbo=TraceMeanField_ELBO),
        components=4,
    ),
    Contender("paper_svi", "bayes_lora, paper, pyro.infer.SVI", True, build=_svi, components=4),
    Contender("lora_fit", "PEFT LoRA, Trainer", build=_fit_lora),
    Contender("paper_fit", "bayes_lora, paper, fit", True, ("lora", "lora_fit"), build=_fit, components=4),
    Contender("full", "full fine-tuning", build=_full),
)
TRAINING = {contender.name: contender for contender in _TRAINING}

_BESIDE = ("lora", "dora")
DORA = (
    TRAINING["lora"],
    Contender("dora", "PEFT DoRA", build=_peft(use_dora=True)),
    Contender("dora_paper", "bayes_lora, paper, DoRA", True, _BESIDE, build=_bayesian(use_dora=True), components=4),
    Contender(
        "dora_elbo",
        "bayes_lora, elbo, DoRA",
        True,
        _BESIDE,
        build=_bayesian(use_dora=True, objective="elbo"),
        components=4,
    ),
)


def over_components(counts: tuple[int, ...]) -> list[Contender]:
    """LoRA, and every way with components at each N it can do, compared also with itself at the first N."""
    ways: dict[str, tuple[str, bool, Callable[[int], Build]]] = {
        "paper": ("bayes_lora, paper", True, _bayesian),
        "paper_explicit": ("bayes_lora, paper, explicit", True, lambda n: _bayesian(n, sampler="explicit")),
        "peft_monteclora": ("PEFT MonteCLoRA", False, peft_monteclora),
    }
    found = [TRAINING["lora"]]
    for name, (label, ours, build) in ways.items():
        for n in counts if name != "peft_monteclora" else [n for n in counts if n <= PEFT_MOST_COMPONENTS]:
            references = ("lora", f"{name}_n{counts[0]}")
            named = f"{name}_n{n}", f"{label}, N = {n}", ours, references
            found.append(Contender(*named, build=build(n), components=n))
    return found


def sampling_and_kl(num_adapters: int, width: int, rank: int) -> Turn:
    """One draw of all adapters' noise, the KLs, and the backward pass through both: a step without the network."""
    model, guide = posterior(adapter_bank(num_adapters, width, rank))
    elbo = ItemizedELBO()
    noises: list[Tensor] = []

    def prior() -> None:
        noises[:] = model.perturbations(model.sample_latents())

    def step() -> None:
        kl = elbo.differentiable_loss(prior, guide)
        # What the network sends back is a gradient of the noise's shape, whatever its values.
        torch.autograd.backward([kl, *noises], [torch.ones_like(kl), *(torch.ones_like(noise) for noise in noises)])
        guide.zero_grad()

    return timed(step)


def draws(case: Case, **config: Any) -> Turn:
    """One posterior draw of every adapter's noise, without gradients."""
    model, guide = posterior(lora_network(case), **config)

    @torch.no_grad()
    def step() -> None:
        model.perturbations(guide())

    return timed(step, case.device)


def prediction(case: Case, num_samples: int, num_batches: int) -> Turn:
    """`predict` on some batches."""
    model, guide = posterior(lora_network(case))
    batches = [_unlabelled(case)] * num_batches
    return timed(lambda: predict(model, guide, batches, num_samples=num_samples, seed=0), case.device)


def laplace(case: Case, **options: Any) -> Turn:
    """One batch of a Laplace fit, with the decomposition of its factors at the end."""
    network: nn.Module = lora_network(case).eval()
    batch, chosen = make_batch(case), LaplaceOptions(**options)
    return timed(lambda: fit_laplace(network, [batch], chosen), case.device)


def passes(case: Case, num_samples: int, num_batches: int) -> Turn:
    """As many forward passes of the plain adapter as `prediction` has draws."""
    network: nn.Module = lora_network(case).eval()
    batch = _unlabelled(case)

    @torch.no_grad()
    def step() -> None:
        for _ in range(num_samples * num_batches):
            network(**batch)

    return timed(step, case.device)


def _unlabelled(case: Case) -> Batch:
    batch = make_batch(case)
    del batch["labels"]
    return batch
