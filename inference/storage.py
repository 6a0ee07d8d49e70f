"""Saving a posterior beside its PEFT adapter, and loading it again."""

import hashlib
import json
import os
import secrets
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.errors import BayesLoRAError, PosteriorFileError, RunExistsError
from bayes_lora.files import sha256_of
from bayes_lora.inference.guide import MonteCLoRAGuide
from bayes_lora.models import BayesianLoRA

SCHEMA_VERSION = 1
POSTERIOR_FILE = "posterior.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"  # these two are PEFT's
ADAPTER_CONFIG_FILE = "adapter_config.json"
DESCRIPTION_FILE = "bayes_lora.json"
_SCALE = "sample_scale"


def save_posterior(model: BayesianLoRA, guide: MonteCLoRAGuide, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write the mean adapter and the posterior into `folder`, whole or not at all.

    The folder is a PEFT adapter folder, which ``PeftModel.from_pretrained`` opens as the mean adapter without this
    library, plus `posterior.safetensors` (alpha and v, as logarithms, and epsilon) and `bayes_lora.json` (schema
    version, config, adapter order, checksums of both weight files, fingerprint of the base model).

    Raises:
        RunExistsError: the folder exists and `overwrite` was not said.
        PosteriorFileError: the posterior is of an adapter of another name than PEFT's "default".
    """
    folder = Path(folder)
    others = sorted({adapter.key for adapter in model.sites.adapters} - {"default"})
    if others:
        raise PosteriorFileError(
            f"the posterior is of adapters {others}; PEFT writes only the adapter named 'default' where it looks for "
            "it again. Build the network with get_peft_model(..., adapter_name='default')."
        )
    if folder.exists() and not overwrite:
        raise RunExistsError(f"{folder} exists already. Choose another folder, or pass overwrite=True.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    temporary.mkdir()
    try:
        model.network.save_pretrained(str(temporary))  # type: ignore[operator]
        learned = {**guide.state_dict(), _SCALE: model.sample_scale}
        state = {name: value.detach().cpu().contiguous() for name, value in learned.items()}
        save_file(state, temporary / POSTERIOR_FILE)
        description = {
            "schema_version": SCHEMA_VERSION,
            "config": asdict(model.config),
            "adapters": list(model.sites.names),
            "sha256": {name: sha256_of(temporary / name) for name in (ADAPTER_FILE, POSTERIOR_FILE)},
            "base_fingerprint": base_fingerprint(model.network),
        }
        (temporary / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        _put_in_place(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def _put_in_place(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; one that is there leaves first, and comes back if that fails."""
    old = new.with_name(new.name + "-replaced")
    replacing = folder.exists()
    if replacing:
        folder.replace(old)
    try:
        new.replace(folder)
    except BaseException:
        if replacing:
            old.replace(folder)
        raise
    if replacing:
        shutil.rmtree(old)


def load_posterior(base_network: nn.Module, folder: str | Path) -> tuple[BayesianLoRA, MonteCLoRAGuide]:
    """Open a folder of `save_posterior` on a freshly loaded base network, which it wraps.

    Raises:
        PosteriorFileError: a file missing, damaged or of a newer schema, or written for another base model.
    """
    folder = Path(folder)
    description = _read_description(folder)
    # PEFT would look for a missing file on the hub.
    for name in (ADAPTER_CONFIG_FILE, ADAPTER_FILE, POSTERIOR_FILE):
        if not (folder / name).is_file():
            raise PosteriorFileError(f"{folder / name} is missing: {folder} was not written whole. Save the run again.")
    for name in (ADAPTER_FILE, POSTERIOR_FILE):
        if sha256_of(folder / name) != description["sha256"].get(name):
            raise PosteriorFileError(
                f"{folder / name} does not have the checksum in {DESCRIPTION_FILE}: it is damaged. Save the run again."
            )
    try:
        config = MonteCLoRAConfig(**description["config"])
    except (TypeError, BayesLoRAError) as error:
        raise PosteriorFileError(f"{folder / DESCRIPTION_FILE}: its config cannot be used: {error}") from error
    try:
        network = PeftModel.from_pretrained(base_network, str(folder))
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise PosteriorFileError(
            f"{folder}: its adapter does not fit this {type(base_network).__name__}: {error}. "
            f"Load the base it was trained on (base_model_name_or_path in {ADAPTER_CONFIG_FILE})."
        ) from error
    if base_fingerprint(network) != description["base_fingerprint"]:
        raise PosteriorFileError(
            f"{folder} was saved for another base model than this {type(base_network).__name__}. "
            f"Load the base it was trained on (base_model_name_or_path in {ADAPTER_CONFIG_FILE}). If it is, it "
            "has modules which its checkpoint lacks and which start at random: name them in LoraConfig's "
            "modules_to_save when training."
        )
    model = BayesianLoRA(network, config)
    if list(model.sites.names) != description["adapters"]:
        raise PosteriorFileError(
            f"{folder}: its posterior is of adapters {description['adapters']}, but the network has "
            f"{list(model.sites.names)}. The folder mixes files of two runs."
        )
    guide = MonteCLoRAGuide(model)
    try:
        state = load_file(folder / POSTERIOR_FILE)
        model.set_sample_scale(state.pop(_SCALE))
        guide.load_state_dict(state)
    except (RuntimeError, KeyError, BayesLoRAError, SafetensorError) as error:
        raise PosteriorFileError(f"{folder / POSTERIOR_FILE} does not fit the adapters: {error}") from error
    return model.eval(), guide


def base_fingerprint(network: nn.Module) -> str:
    """A digest of the base weights under a PEFT model: names, shapes and a few values of each, rounded to bfloat16.

    The same for float32 and bfloat16 copies of one checkpoint. The modules in PEFT's `modules_to_save`, such as the
    task head, are left out: they are new at every load and travel with the adapter.
    """
    configs = getattr(network, "peft_config", {}).values()
    heads = {name for config in configs for name in config.modules_to_save or ()}
    digest = hashlib.sha256()
    for name, parameter in sorted(_base_parameters(network)):
        if not any(f".{head}." in f".{name}" for head in heads):
            values = parameter.detach().reshape(-1)[:16].to("cpu", torch.bfloat16).float().tolist()
            digest.update(f"{name}{tuple(parameter.shape)}{values}".encode())
    return digest.hexdigest()


def _base_parameters(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    found = []
    for name, parameter in network.named_parameters():
        parts = name.removeprefix("base_model.model.").split(".")
        if not any(part.startswith("lora_") for part in parts):
            found.append((".".join(part for part in parts if part != "base_layer"), parameter))
    return found


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION_FILE
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PosteriorFileError(f"{path} is missing: {folder} is not a folder that save_posterior wrote.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PosteriorFileError(f"{path} is not JSON: {error}. The file is damaged; save the run again.") from error
    keys = {"schema_version", "config", "adapters", "sha256", "base_fingerprint"}
    if not isinstance(description, dict) or not keys <= set(description):
        raise PosteriorFileError(f"{path} lacks some of {sorted(keys)}. The file is damaged; save the run again.")
    if description["schema_version"] != SCHEMA_VERSION:
        raise PosteriorFileError(
            f"{path} has schema version {description['schema_version']}, this library reads {SCHEMA_VERSION}. "
            "Install a newer bayes-lora."
        )
    return description
