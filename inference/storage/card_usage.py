"""The code in a model card that loads the posterior, by the kind of inputs that the network reads."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bayes_lora.inference.storage.posterior_files import FIRST_ADAPTER
from bayes_lora.models.likelihoods.words import Words

# Where a card says to load the posterior from, until it is known under which name it is on the hub.
HERE = "path/to/this/folder"


@dataclass(frozen=True)
class _Kind:
    """Code that differs by what a network reads.

    Attributes:
        network: transformers' Auto class of the network.
        processor: that of what makes its inputs.
        batch: lines that make `batch` with it; given the number of texts and where a row is cut.
        name: what it is called there.
        imports: a line for what these need, or none.
        options: of the network besides its outputs.
    """

    network: str
    processor: str
    batch: Callable[[int, int | None], str]
    name: str = "processor"
    imports: str = ""
    options: str = ""


def _text(num_texts: int, max_length: int | None) -> str:
    texts = ", ".join(['["The first text."]', '["The second text."]'][:num_texts])
    cut = "truncation=True" + ("" if max_length is None else f", max_length={max_length}")
    return f'batch = tokenizer({texts}, {cut}, return_tensors="pt")'


def _language(num_texts: int, max_length: int | None) -> str:
    return (
        'batch = tokenizer(["The text."], return_tensors="pt")\n'
        "# Labels are the tokens that are to be scored; -100 instead leaves one out, such as those of a prompt.\n"
        'batch["labels"] = batch["input_ids"]'
    )


def _image(num_texts: int, max_length: int | None) -> str:
    return 'batch = processor(Image.open("image.png").convert("RGB"), return_tensors="pt")'


def _recording(num_texts: int, max_length: int | None) -> str:
    return (
        'samples, rate = soundfile.read("recording.wav", dtype="float32")  # one channel, at processor.sampling_rate\n'
        'batch = processor(samples, sampling_rate=rate, return_tensors="pt")'
    )


# Vision and speech models come with heads for other classes, which are replaced.
_ANY_HEAD = ", ignore_mismatched_sizes=True"
_KINDS: Mapping[str, _Kind] = {
    "text-classification": _Kind("AutoModelForSequenceClassification", "AutoTokenizer", _text, "tokenizer"),
    "text-generation": _Kind("AutoModelForCausalLM", "AutoTokenizer", _language, "tokenizer"),
    "image-classification": _Kind(
        "AutoModelForImageClassification",
        "AutoImageProcessor",
        _image,
        imports="from PIL import Image",
        options=_ANY_HEAD,
    ),
    "audio-classification": _Kind(
        "AutoModelForAudioClassification",
        "AutoFeatureExtractor",
        _recording,
        imports="import soundfile",
        options=_ANY_HEAD,
    ),
}


def usage(
    pipeline: str | None,
    base: str | None,
    words: Words,
    point: str,
    *,
    num_texts: int = 1,
    max_length: int | None = None,
    num_labels: int = 0,
    adapters: Sequence[str] = (),
) -> str:
    """The card's section with code: complete for a pipeline that is known here, else around a network and batches.

    Args:
        pipeline: of the network, as the hub calls it.
        base: the base model's name on the hub, or None.
        words: of the likelihood.
        point: what the network predicts with when it is loaded without the posterior, such as "posterior mean".
        num_texts: of a row of text.
        max_length: tokens after which such a row was cut.
        num_labels: that have a name.
        adapters: that are active, in their order, where there are several; the folder itself is the first.
    """
    others = [adapter for adapter in adapters if adapter != FIRST_ADAPTER]
    kind = _KINDS.get(pipeline or "")
    if kind is None:
        also = "".join(f', then `load_adapter("{HERE}/{other}", adapter_name="{other}")`' for other in others)
        also += f" and `base_model.set_adapter({list(adapters)})`" if others else ""
        return f"""## Use

```python
from bayes_lora.inference import load_posterior, predict

model, guide = load_posterior(base_network, "{HERE}")  # the base model, freshly loaded
prediction = predict(model, guide, batches, num_samples=32, seed=0)
```

The {point} alone needs PEFT only: `PeftModel.from_pretrained(base_network, "{HERE}")`{also}."""
    outputs = num_labels if words.num_outputs is None else words.num_outputs
    labels = f", num_labels={outputs}" if outputs else ""
    network = f"{kind.network}.from_pretrained(base{labels}{kind.options})"
    shown = "\n".join(f"print({line}" for line in words.shown)
    more = "".join(f'network.load_adapter("{HERE}/{other}", adapter_name="{other}")\n' for other in others)
    more += f"network.base_model.set_adapter({list(adapters)})\n" if others else ""
    imports = f"{kind.imports}\n" if kind.imports else ""
    imports += "import torch\n" if words.batch else ""
    batch = "\n".join(words.batch) or kind.batch(num_texts, max_length)
    return f"""## Use

```python
{imports}from transformers import {", ".join(sorted((kind.network, kind.processor)))}

from bayes_lora.inference import load_posterior, predict

base = {json.dumps(base or "path/to/the/base/model")}
{kind.name} = {kind.processor}.from_pretrained(base)
{batch}

network = {network}
model, guide = load_posterior(network, "{HERE}")
prediction = predict(model, guide, [batch], num_samples=32, seed=0)
{shown}
```

The {point} alone needs PEFT only:

```python
import torch
from peft import PeftModel

network = {network}
network = PeftModel.from_pretrained(network, "{HERE}").eval()
{more}with torch.no_grad():
    print({words.point}
```"""
