"""Networks that are refused, since the noise would be skipped or wrong: each error says what to do."""

from collections.abc import Callable
from typing import Any

import peft
import pytest
from peft.tuners.lora.awq import AwqLoraLinear
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from peft.tuners.lora.gptq import GPTQLoraLinear
from peft.tuners.lora.layer import LoraLayer
from pyro import poutine
from torch import nn

import bayes_lora as bl
from bayes_lora.adapters import find_adapters, unwrap
from bayes_lora.adapters.perturbation import PerturbedLinear
from bayes_lora.errors import AdapterError, UnsupportedAdapterError
from bayes_lora.models import BayesianLoRA
from tests.networks import Batch, build_bert, build_network, build_pair

CONFIG = bl.MonteCLoRAConfig()


def lora(network: nn.Module, **options: Any) -> Any:
    return peft.get_peft_model(network, peft.LoraConfig(r=2, **options))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(8, 2)


def ia3() -> Any:
    config = peft.IA3Config(task_type="SEQ_CLS", target_modules=["query"], feedforward_modules=[])
    return peft.get_peft_model(build_bert(), config)


def adalora() -> Any:
    config = peft.AdaLoraConfig(task_type="SEQ_CLS", target_modules=["query"], total_step=10, tinit=1, tfinal=1)
    return peft.get_peft_model(build_bert(), config)


def monteclora() -> Any:
    return lora(
        build_bert(), target_modules=["query"], monteclora_config=MontecloraConfig(num_samples=2, buffer_size=4)
    )


def alora() -> Any:
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["query"], alora_invocation_tokens=[1])
    return peft.inject_adapter_in_model(config, build_bert())


def bdlora() -> Any:
    blocks = BdLoraConfig(target_modules_bd_a=["query"], target_modules_bd_b=["value"], nblocks=2)
    return build_network(use_bdlora=blocks)


def quantized(kind: Any) -> Any:
    """PEFT's layer for a quantization whose own library it does not need in order to be built."""
    layer = kind(nn.Linear(8, 4), "default", config=peft.LoraConfig(), r=2, lora_alpha=2)
    return nn.ModuleDict({"mix": layer})


def merged() -> Any:
    network = build_network()
    network.merge_adapter()
    return network


def disabled() -> Any:
    network = build_network()
    network.base_model.disable_adapter_layers()
    return network


def wrapped() -> Any:
    network = build_network()
    BayesianLoRA(network, CONFIG)
    return network


def hooked() -> Any:
    network = build_network()
    linear = find_adapters(network)[0].linear
    linear.forward = linear.forward  # type: ignore[method-assign]  # as accelerate's hooks do
    return network


def hooked_magnitude() -> Any:
    network = build_network(use_dora=True)
    magnitude = find_adapters(network)[0].layer.lora_magnitude_vector["default"]
    magnitude.forward = magnitude.forward
    return network


def tied() -> Any:
    network = build_network()
    first, second = find_adapters(network)[:2]
    second.linear.weight = first.linear.weight
    return network


class Subclass(nn.Linear):
    pass


def subclassed() -> Any:
    network = build_network()
    adapter = find_adapters(network)[0]
    adapter.layer.lora_A["default"] = Subclass(16, 4)
    return network


UNSUPPORTED = UnsupportedAdapterError
QUERY = r"^bert\.encoder\.layer\.0\.attention\.self\.query: "
REFUSED: dict[str, tuple[Callable[[], Any], type[AdapterError], str]] = {
    "no PEFT": (
        build_bert,
        AdapterError,
        r"no LoRA-A .* BertForSequenceClassification: it has no PEFT layers.*get_peft",
    ),
    "IA3": (ia3, AdapterError, r"no LoRA-A matrix found in PeftModel.*: its PEFT layers are Linear"),
    "AdaLoRA": (adalora, UNSUPPORTED, QUERY + r"LoRA layers of type peft\.tuners\.adalora\.layer\.SVDLinear"),
    "MonteCLoRA": (monteclora, UNSUPPORTED, QUERY + r"adapter 'default' is a Monteclora .*monteclora_config"),
    "aLoRA": (
        alora,
        UNSUPPORTED,
        QUERY + r"adapter 'default' is a ALora .*plain LoRA, or DoRA of Linear layers.*alora_invocation_tokens",
    ),
    "MiCA": (lambda: build_network(init_lora_weights="mica"), UNSUPPORTED, QUERY + r"adapter 'default' is a MiCA "),
    "KaSA": (lambda: build_network(kasa_config=KasaConfig()), UNSUPPORTED, QUERY + r"adapter 'default' is a Kasa "),
    "VeLoRA": (
        lambda: build_network(velora_config=VeloraConfig()),
        UNSUPPORTED,
        QUERY + r"adapter 'default' is a Velora ",
    ),
    "BD-LoRA": (bdlora, UNSUPPORTED, QUERY + r"adapter 'default' is a BdLora "),
    "hooked magnitude": (
        hooked_magnitude,
        UNSUPPORTED,
        QUERY + r"the magnitude of adapter 'default' is a DoraLinearLayer with a replaced forward, not a plain",
    ),
    "Embedding": (
        lambda: build_network(target_modules=["word_embeddings"]),
        UNSUPPORTED,
        r"word_embeddings: PEFT's Embedding adapter .* by token .*Adapt Linear and convolution layers only",
    ),
    "MultiheadAttention": (
        lambda: lora(Attention(), target_modules=["mix"]),
        UNSUPPORTED,
        r"^mix: PEFT's MultiheadAttention adapter .*merged weight",
    ),
    "GPTQ": (
        lambda: quantized(GPTQLoraLinear),
        UNSUPPORTED,
        r"^mix: LoRA layers of type peft\.tuners\.lora\.gptq\.GPTQLoraLinear are not supported.*BitsAndBytesConfig",
    ),
    "AWQ": (
        lambda: quantized(AwqLoraLinear),
        UNSUPPORTED,
        r"^mix: LoRA layers of type peft\.tuners\.lora\.awq\.AwqLoraLinear are not supported.*BitsAndBytesConfig",
    ),
    "merged": (merged, AdapterError, QUERY + r"the adapter is merged .*unmerge_adapter\(\)"),
    "disabled": (disabled, AdapterError, QUERY + r"adapters are disabled.*enable_adapter_layers\(\)"),
    "already wrapped": (wrapped, AdapterError, QUERY + r"adapter 'default' already belongs .*unwrap\(net\)"),
    "replaced forward": (hooked, UNSUPPORTED, QUERY + r"LoRA-A .* is a Linear with a replaced forward, not a plain"),
    "subclass": (subclassed, UNSUPPORTED, QUERY + r"LoRA-A .* is a Subclass, not a plain"),
    "tied": (tied, UNSUPPORTED, r"adapters 'bert.*0.*query' and 'bert.*0.*value' share one LoRA-A matrix"),
}


@pytest.mark.shows(
    "quantization",
    "refused",
    {"GPTQ": "GPTQ", "AWQ": "AWQ"},
)
@pytest.mark.shows(
    "adapter",
    "refused",
    {
        "IA3": "IA3",
        "AdaLoRA": "AdaLoRA",
        "MonteCLoRA": "PEFT's own MonteCLoRA (`monteclora_config`)",
        "aLoRA": "aLoRA (`alora_invocation_tokens`)",
        "MiCA": '`init_lora_weights="mica"`',
        "KaSA": "KaSA (`kasa_config`)",
        "VeLoRA": "VeLoRA (`velora_config`)",
        "BD-LoRA": "BD-LoRA (`use_bdlora`)",
        "Embedding": "LoRA of embeddings",
        "MultiheadAttention": "LoRA of `torch.nn.MultiheadAttention`",
        "merged": "merged adapters",
        "tied": "two layers with one LoRA-A",
    },
)
@pytest.mark.parametrize(("build", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(build: Callable[[], Any], error: type[AdapterError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        BayesianLoRA(build(), CONFIG)
    assert caught.type is error
    assert isinstance(caught.value, ValueError)


def add(network: Any) -> None:
    network.add_adapter("late", peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))


def activate_both(network: Any) -> None:
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            layer.set_adapter(["default", "other"])


def take_back(network: Any) -> None:
    unwrap(network)


def wrap_again(network: Any) -> None:
    BayesianLoRA(unwrap(network), CONFIG)


def change(network: Any) -> None:
    network.set_adapter("other")


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "added": (add, r"adapters \['late'\] were added after BayesianLoRA was built.*unwrap\(net\)"),
    "not active": (
        change,
        QUERY
        + r"the active adapters are \['other'\], but the posterior is of \['default'\].*net\.set_adapter\('default'\)",
    ),
    "another active too": (
        activate_both,
        QUERY + r"the active adapters are \['default', 'other'\], but the posterior is of \['default'\]",
    ),
    "unwrapped": (take_back, r"no longer belongs to this BayesianLoRA model: it was unwrapped"),
    "wrapped again": (wrap_again, r"or wrapped by another one since"),
    "merged": (lambda network: network.merge_adapter(), r"the adapter is merged"),
    "disabled": (lambda network: network.base_model.disable_adapter_layers(), r"adapters are disabled"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_changed_afterwards(batch: Batch, change: Callable[[Any], None], message: str) -> None:
    network = build_network()
    network.add_adapter("other", peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    model, _ = build_pair(network.double())
    change(network)
    with pytest.raises(AdapterError, match=message):
        poutine.trace(model).get_trace(**batch)


def test_a_failed_build_leaves_the_network_alone() -> None:
    network = build_network(target_modules=["query", "word_embeddings"])
    with pytest.raises(UnsupportedAdapterError):
        BayesianLoRA(network, CONFIG)
    assert not any(isinstance(module, PerturbedLinear) for module in network.modules())
