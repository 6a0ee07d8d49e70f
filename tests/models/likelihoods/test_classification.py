"""Networks and labels that the classification likelihood refuses."""

from typing import Any

import peft
import pytest
import torch
from pyro import poutine
from transformers import BertConfig, BertForTokenClassification, BertModel

import bayes_lora as bl
from bayes_lora.errors import LikelihoodError
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_bert, build_network, build_pair

LORA = peft.LoraConfig(r=2, target_modules=["query"])


def test_one_label() -> None:
    with pytest.raises(LikelihoodError, match=r"num_labels=1, a regression head.*num_labels=2"):
        BayesianLoRA(peft.get_peft_model(build_bert(num_labels=1), LORA), bl.MonteCLoRAConfig())


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_other_problem_types(problem: str) -> None:
    network = build_network()
    network.config.problem_type = problem
    with pytest.raises(LikelihoodError, match=rf"problem_type='{problem}'.*network\.config\.problem_type"):
        BayesianLoRA(network, bl.MonteCLoRAConfig())


def test_single_label_classification_is_accepted(batch: Batch) -> None:
    network = build_network()
    network.config.problem_type = "single_label_classification"
    model, _ = build_pair(network)
    assert poutine.trace(model).get_trace(**batch).nodes["y"]["is_observed"]


@pytest.mark.parametrize(("label", "span"), [(3, "0 to 3"), (-100, "-100 to 2"), (-1, "-1 to 2")])
def test_labels_outside_the_classes(batch: Batch, label: int, span: str) -> None:
    model, _ = build_pair()
    batch["labels"][0] = label
    with pytest.raises(LikelihoodError, match=rf"labels run from {span}, but there are 3 classes, 0 to 2"):
        poutine.trace(model).get_trace(**batch)


@pytest.mark.parametrize("rows", [1, 5])
def test_several_labels_for_a_row(batch: Batch, rows: int) -> None:
    model, _ = build_pair()
    multi = {name: values[:rows] for name, values in batch.items()} | {"labels": torch.tensor([[1, 0, 1]] * rows)}
    with pytest.raises(LikelihoodError, match=rf"labels have shape \({rows}, 3\) for {rows} rows.*multi-label"):
        poutine.trace(model).get_trace(**multi)


def small(kind: Any) -> Any:
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_labels": 3}
    config = BertConfig(vocab_size=50, num_hidden_layers=1, num_attention_heads=2, **sizes)
    return peft.get_peft_model(kind(config), LORA)


def test_a_token_classifier(batch: Batch) -> None:
    model = BayesianLoRA(small(BertForTokenClassification), bl.MonteCLoRAConfig())
    with pytest.raises(LikelihoodError, match=r"logits of shape \(5, 7, 3\).*AutoModelForSequenceClassification"):
        poutine.trace(model).get_trace(**batch)


def test_a_network_without_logits(batch: Batch) -> None:
    model = BayesianLoRA(small(BertModel), bl.MonteCLoRAConfig())
    with pytest.raises(LikelihoodError, match=r"returned BaseModelOutput\w* without logits.*task head"):
        poutine.trace(model).get_trace(**batch)


def test_the_mean_over_examples(batch: Batch) -> None:
    model, guide = build_pair()
    traces = [poutine.trace(guide).get_trace()]
    traces.append(poutine.trace(poutine.replay(model, trace=traces[0])).get_trace(**batch))
    site, logits = traces[1].nodes["y"], traces[1].nodes["logits"]["value"]
    traces[1].compute_log_prob()
    torch.testing.assert_close(-site["log_prob_sum"], torch.nn.functional.cross_entropy(logits, batch["labels"]))


def test_labels_that_are_no_integers_are_refused(batch: Batch) -> None:
    model, _ = build_pair()
    with pytest.raises(LikelihoodError, match=r"labels are torch\.float32; classes are integers.*labels\.long"):
        poutine.trace(model).get_trace(**{**batch, "labels": batch["labels"].float()})
