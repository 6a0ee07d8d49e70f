"""Fitting: the loss falls, runs repeat bit for bit, options reach what they name, bad losses are reported."""

import copy
import io
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import TrainerCallback

from bayes_lora.errors import ConfigurationError, DataError, LikelihoodError, NonFiniteLossError
from bayes_lora.inference import FitOptions, FitResult, MonteCLoRAGuide, fit, fit_network, predict
from bayes_lora.models import BayesianLoRA
from tests.networks import build_network, build_pair, learnable_rows

Rows = list[dict[str, Any]]


OPTIONS = FitOptions(epochs=1, batch_size=8, learning_rate=1e-2, log_every=2)
CONFIG: dict[str, Any] = {"kl_weight": 1e-3, "num_components": 3, "sample_scale": 0.05}


def run(
    options: FitOptions = OPTIONS, network: peft.PeftModel | None = None, rows: Rows | None = None, **config: Any
) -> tuple[BayesianLoRA, MonteCLoRAGuide, FitResult]:
    """Fit a small network with dropout, so that its seed matters too."""
    network = build_network(num_layers=1, dropout=0.1) if network is None else network
    model, guide = build_pair(network, **CONFIG | config)
    return model, guide, fit(model, guide, learnable_rows() if rows is None else rows, options)


def parameters(*modules: torch.nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for module in modules for parameter in module.parameters()]


def equal(first: list[Tensor], second: list[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize("config", [{}, {"objective": "elbo", "num_train_examples": 48, "kl_temperature": 0.01}])
def test_it_learns_what_can_be_learned(config: dict[str, Any]) -> None:
    options = FitOptions(epochs=12, batch_size=8, learning_rate=2e-2, log_every=6)
    network = build_network(num_layers=1, target_modules=["query", "value", "dense"])
    model, guide = build_pair(network, **{"num_components": 3, "sample_scale": 0.02} | config)
    rows = learnable_rows()
    history = fit(model, guide, rows, options).history
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["nll"] < history[0]["nll"] / 2
    assert not any(module.training for module in model.modules())
    batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
    prediction = predict(model, guide, [batch], num_samples=4)
    assert (prediction.mean_probs.argmax(-1) == batch["labels"]).double().mean() > 0.9


def test_the_seed_decides_everything() -> None:
    outcomes = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 5)):
        network = build_network(num_layers=1, dropout=0.1)
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        model, guide, result = run(FitOptions(epochs=2, batch_size=8, seed=seed), network)
        assert torch.equal(torch.get_rng_state(), state)
        outcomes.append((parameters(model, guide), result.history))
    assert all(equal(outcomes[0][0], outcomes[1][0]))
    assert outcomes[0][1] == outcomes[1][1]
    assert not all(equal(outcomes[0][0], outcomes[2][0]))


def test_history() -> None:
    rows = learnable_rows(44)
    options = FitOptions(epochs=2, batch_size=8, learning_rate=1e-2, warmup_ratio=0.25, log_every=5)
    _, _, coarse = run(options, rows=rows)
    _, _, fine = run(FitOptions(**{**vars(options), "log_every": 1}), rows=rows)
    assert [entry["step"] for entry in coarse.history] == [5, 10, 12]
    assert [entry["step"] for entry in fine.history] == list(range(1, 13))
    assert [entry["epoch"] for entry in fine.history] == pytest.approx([step / 6 for step in range(1, 13)])
    terms = {"nll", "kl_dirichlet", "kl_wishart", "kl_normal", "cooperative"}
    for entry in coarse.history + fine.history:
        assert set(entry) == {"step", "epoch", "learning_rate", "loss"} | terms
        assert sum(entry[term] for term in terms) == pytest.approx(
            entry["loss"], rel=1e-6
        )  # the Trainer sums its loss in float32
    # An entry is the mean over the steps since the one before.
    for entry, steps in zip(coarse.history, (fine.history[:5], fine.history[5:10], fine.history[10:]), strict=True):
        for term in terms | {"loss"}:
            assert entry[term] == pytest.approx(sum(step[term] for step in steps) / len(steps), rel=1e-6)
    # Three steps up to the peak, then straight down to zero.
    expected = [1e-2 * (s / 3 if s < 3 else (12 - s) / 9) for s in range(12)]
    assert [entry["learning_rate"] for entry in fine.history] == pytest.approx(expected)
    assert coarse.seconds > 0


def test_alpha_and_v_have_their_own_learning_rate() -> None:
    for rates, moving in (((1e-12, 1e-1), "guide"), ((1e-1, 1e-12), "network")):
        model, guide = build_pair(build_network(num_layers=1), **CONFIG)
        before = parameters(model), parameters(guide)
        fit(model, guide, learnable_rows(), FitOptions(1, 8, *rates, warmup_ratio=0))
        after = parameters(model), parameters(guide)
        largest = [
            max((a - b).abs().max().item() for a, b in zip(*pair, strict=True))
            for pair in zip(before, after, strict=True)
        ]
        still, moved = largest if moving == "guide" else reversed(largest)
        assert still < 1e-10
        assert moved > 1e-2


def test_weight_decay_is_on_the_network_only() -> None:
    found = []
    for decay in (0.0, 5.0):
        options = FitOptions(epochs=1, batch_size=48, learning_rate=1e-2, weight_decay=decay, warmup_ratio=0)
        network = build_network(num_layers=1, dropout=0.1)
        torch.nn.init.ones_(network.get_parameter("base_model.model.classifier.modules_to_save.default.bias"))
        model, guide, _ = run(options, network)
        found.append((parameters(model), parameters(guide)))
    # One step: the gradients are the same, so that all that differs is the decay.
    assert all(equal(found[0][1], found[1][1]))
    decayed = [p.requires_grad and "bias" not in name for name, p in model.named_parameters()]
    assert [not same for same in equal(found[0][0], found[1][0])] == decayed


def test_frozen_parameters_stay_what_they_are() -> None:
    network = build_network(num_layers=1)
    frozen = [p.requires_grad for p in network.parameters()]
    before = parameters(network)
    model, _, _ = run(network=network)
    assert equal(before, parameters(model)) == [not trainable for trainable in frozen]
    assert [p.requires_grad for p in network.parameters()] == frozen


def test_post_hoc_only_the_posterior_learns() -> None:
    network = build_network(num_layers=1)
    network.requires_grad_(False)
    before = parameters(network)
    model, guide = build_pair(network, **CONFIG)
    start = parameters(guide)
    fit(model, guide, learnable_rows(), replace(OPTIONS, phases="posterior"))
    assert all(equal(before, parameters(model)))
    assert not any(equal(start, parameters(guide)))


def test_rows_may_call_it_label() -> None:
    renamed: Rows = [
        {("label" if name == "labels" else name): value for name, value in row.items()} for row in learnable_rows()
    ]
    first, second = run(), run(rows=renamed)
    assert all(equal(parameters(*first[:2]), parameters(*second[:2])))


def test_nan_in_the_posterior_is_named() -> None:
    model, guide = build_pair(**CONFIG)
    with torch.no_grad():
        guide.scale_r4_unconstrained[1, 2] = torch.nan
    with pytest.raises(NonFiniteLossError, match=r"at step 1, in the term\(s\) .*kl_wishart.*posterior_learning_rate"):
        fit(model, guide, learnable_rows(), OPTIONS)


def test_infinity_in_the_network_is_named_with_its_step() -> None:
    network = build_network(num_layers=1)
    with torch.no_grad():
        network.get_input_embeddings().weight[49] = torch.inf
    rows = learnable_rows()
    rows[-1]["input_ids"][0] = 49
    # Looking at every step, the first look that finds it is the step; looking once at the end must name the same one.
    with pytest.raises(NonFiniteLossError) as at_once:
        run(FitOptions(epochs=1, batch_size=8, log_every=1), copy.deepcopy(network), rows)
    message = str(at_once.value)
    assert re.search(r"at step [2-6], in the term\(s\) nll\. Lower the learning rate", message)
    with pytest.raises(NonFiniteLossError, match=re.escape(message)):
        run(FitOptions(epochs=1, batch_size=8, log_every=100), network, rows)
    assert issubclass(NonFiniteLossError, ArithmeticError)


def test_data_errors() -> None:
    with pytest.raises(DataError, match="the training set is empty"):
        run(rows=[])
    rows = learnable_rows()
    for row in rows:
        del row["labels"]
    with pytest.raises(DataError, match=r"have no labels, only \['attention_mask', 'input_ids'\]. Add a 'labels'"):
        run(rows=rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, r"epochs=0 must be an integer >= 1"),
        ({"seed": -1}, r"seed=-1 must be an integer from 0"),
        ({"epochs": 1.5}, r"epochs=1.5 must be an integer >= 1"),
        ({"epochs": True}, r"epochs=True must be an integer >= 1"),
        ({"learning_rate": "fast"}, r"learning_rate=.fast. must be positive and finite"),
        ({"batch_size": -1}, r"batch_size=-1 must be an integer >= 1"),
        ({"log_every": 0}, r"log_every=0 must be an integer >= 1"),
        ({"learning_rate": 0.0}, r"learning_rate=0.0 must be positive and finite"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan must be positive and finite"),
        ({"posterior_learning_rate": float("inf")}, r"posterior_learning_rate=inf must be positive and finite"),
        ({"max_grad_norm": -1.0}, r"max_grad_norm=-1.0 must be positive and finite"),
        ({"warmup_ratio": 1.1}, r"warmup_ratio=1.1 must lie between 0 and 1"),
        ({"weight_decay": -0.1}, r"weight_decay=-0.1 must be a finite number >= 0"),
        ({"weight_decay": float("nan")}, r"weight_decay=nan must be a finite number >= 0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        FitOptions(**options)


def test_the_progress_bar_shows_the_terms() -> None:
    screen = io.StringIO()
    model, guide = build_pair(build_network(num_layers=1), **CONFIG)
    console = Console(file=screen, force_terminal=True, width=160)
    result = fit(model, guide, learnable_rows(), OPTIONS, console=console)
    shown = screen.getvalue()
    assert "6/6" in shown
    last = result.history[-1]
    assert f"nll {last['nll']:.2f} coop {last['cooperative']:.2f} KL D" in shown
    assert f"N {last['kl_normal']:.0e}".replace("e-0", "e-") in shown


def test_the_progress_bar_fits_eighty_columns() -> None:
    screen = io.StringIO()
    model, guide = build_pair(build_network(num_layers=1), **CONFIG)
    fit(model, guide, learnable_rows(), OPTIONS, console=Console(file=screen, force_terminal=True, width=80))
    assert re.search(r"6/6.*0:00:00.*left nll \d\.\d\d coop \d\.\d\d KL D \de-\d W \de-\d N", screen.getvalue())


def test_the_progress_bar_leaves_out_what_has_no_weight() -> None:
    screen = io.StringIO()
    model, guide = build_pair(build_network(num_layers=1), **CONFIG | {"kl_weight": 0.0, "cooperative_weight": 0.0})
    fit(model, guide, learnable_rows(), OPTIONS, console=Console(file=screen, force_terminal=True, width=80))
    assert re.search(r"left nll \d\.\d\d *\W", screen.getvalue())
    assert not re.search("coop|KL", screen.getvalue())


def test_batches_without_labels_are_refused() -> None:
    def forgetful(rows: list[Any]) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}

    model, guide = build_pair(build_network(num_layers=1), **CONFIG)
    with pytest.raises(LikelihoodError, match="nothing to learn from: the batch has input_ids and no 'labels'"):
        fit(model, guide, learnable_rows(), OPTIONS, collate=forgetful)


def test_weights_spoilt_by_the_last_step_are_named() -> None:
    model, guide = build_pair(build_network(num_layers=1), **CONFIG)
    options = FitOptions(epochs=1, batch_size=48, learning_rate=1e308, warmup_ratio=0, weight_decay=9.9)
    with pytest.raises(NonFiniteLossError, match=r"is NaN or infinite after the last step"):
        fit(model, guide, learnable_rows(), options)


def test_no_noise_is_kept_after_the_fit() -> None:
    model, _, _ = run()
    assert all(adapter.linear.draw is None for adapter in model.sites.adapters)


def test_no_console_no_output(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_seconds_of_a_resumed_run_are_those_of_all_its_steps(tmp_path: Path) -> None:
    class Slow(TrainerCallback):
        """Each step takes a quarter of a second more, until the run is broken off after the third."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            time.sleep(0.25)
            if state.global_step == 3:
                raise KeyboardInterrupt

    network, rows = build_network(), learnable_rows(40)
    options = FitOptions(epochs=1, batch_size=8, save_every=1)
    with pytest.raises(KeyboardInterrupt):
        fit_network(network, rows, options, checkpoints=tmp_path, callbacks=[Slow()])
    seconds = fit_network(network, rows, options, checkpoints=tmp_path).seconds
    quick = fit_network(network, rows, options).seconds
    # Of the three slow steps the second was the last that was saved.
    assert seconds > 2 * 0.25
    assert seconds < 3 * 0.25 + 3 * quick
    # What is finished is only loaded, and took as long as it took.
    assert fit_network(network, rows, options, checkpoints=tmp_path).seconds >= seconds
