"""The passes of an evaluation under the Trainer, and which parameters it decays."""

from pathlib import Path

import datasets
import pytest
from transformers import default_data_collator

from bayes_lora.inference import evaluate, predict
from tests.inference.training.test_trainer import build_trainer, learnable_rows


def test_an_evaluation_tries_once_whether_draws_can_share_a_pass(tmp_path: Path) -> None:
    """Four batches of two rows: two passes of the trial, and one pass a batch for its draws and the mean together."""
    trainer = build_trainer(tmp_path, per_device_eval_batch_size=2, dropout=0.0)
    trainer.num_samples = 16
    calls: list[int] = []
    trainer.svi.model.network.register_forward_hook(lambda *_: calls.append(1))
    rows = datasets.Dataset.from_list(learnable_rows(8))
    metrics = trainer.evaluate(rows)
    assert len(calls) == 6  # 16 of them up to version 0.1
    # And the numbers are those of predictions of their own.
    batches = [default_data_collator(learnable_rows(8))]
    pair = trainer.svi.model, trainer.svi.guide
    predictive, point = (
        predict(*pair, batches, num_samples=16, seed=trainer.args.seed),
        predict(*pair, batches, at_mean=True),
    )
    for prefix, found in (("eval_", predictive), ("eval_point_", point)):
        assert found.labels is not None
        for name, value in evaluate(found.mean_probs, found.labels).items():
            assert metrics[prefix + name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("of", ["all", "b_and_head", "adapters"])
def test_weight_decay_may_leave_out_what_has_a_prior(tmp_path: Path, of: str) -> None:
    trainer = build_trainer(tmp_path, weight_decay=0.3, weight_decay_of=of)
    names = {id(parameter): name for name, parameter in trainer.svi.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    decayed = {
        names[id(p)].split(".default")[0].rpartition(".")[2] for g in groups if g["weight_decay"] for p in g["params"]
    }
    left_out = {"all": set[str](), "b_and_head": {"lora_A"}, "adapters": {"modules_to_save"}}[of]
    assert decayed == {"lora_A", "lora_B", "modules_to_save"} - left_out
    means = {id(adapter.linear.weight) for adapter in trainer.svi.model.sites.adapters}
    assert means <= {
        id(parameter) for group in groups for parameter in group["params"]
    }  # they are trained all the same
