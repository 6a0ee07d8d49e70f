"""Saving what a way of training has trained, and loading it again."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from transformers import PreTrainedModel

from bayes_lora.adapters.placement import require_loaded
from bayes_lora.errors import AdapterError, BayesLoRAError, CheckpointFileError, RunExistsError
from bayes_lora.files import write_whole
from bayes_lora.inference.finetuning.adalora import active_ranks
from bayes_lora.inference.finetuning.lora import LoRAOptions
from bayes_lora.inference.finetuning.point_networks import PointNetwork, make_network
from bayes_lora.inference.storage.fingerprint import base_fingerprint
from bayes_lora.inference.storage.posteriors import describe_likelihood
from bayes_lora.models import Likelihood, LikelihoodNetwork
from bayes_lora.models.likelihood_network import LIKELIHOOD, NETWORK
from bayes_lora.models.likelihoods.kinds import likelihood_kinds
from bayes_lora.sealed_files import Format, write_sealed

TENSORS_FILE = "trained.safetensors"
DESCRIPTION_FILE = "trained.json"
SCHEMA_VERSION = 1

_KEYS = {"way", "lora", "bottleneck_size", "new_modules", "rank_pattern", "base_fingerprint", "tensors_sha256"}
_FORMAT = Format(CheckpointFileError, "Save it again, or copy it again.", SCHEMA_VERSION)


def save_trained(point: PointNetwork, folder: Path) -> Path:
    """Write what was trained, and what it takes to make the network again, into `folder`, whole or not at all.

        trained.safetensors   the trained tensors, by their names in the network, and those of the likelihood
        trained.json          way, options, AdaLoRA's ranks, fingerprint of the base model, checksums; written last

    Args:
        point: the network, after training.
        folder: where to; it is made if need be.

    Raises:
        RunExistsError: the folder holds a trained network already.
        ConfigurationError: an AdaLoRA network whose ranks were never allocated.
    """
    if (folder / DESCRIPTION_FILE).exists():
        raise RunExistsError(f"{folder} holds a trained network already. Choose another folder, or delete it.")
    if point.way == "adalora":
        active_ranks(_network(point))
    trained, likelihood = _trained(point), _likelihood(point)
    of_likelihood = {} if likelihood is None else {"likelihood": asdict(describe_likelihood(likelihood))}
    tensors = save({name: value.detach().cpu().contiguous() for name, value in trained.items()})
    description = {
        "schema_version": SCHEMA_VERSION,
        "way": point.way,
        "lora": asdict(point.options),
        "bottleneck_size": point.bottleneck_size,
        "new_modules": list(point.new_modules),
        "rank_pattern": _config(point).rank_pattern if point.way == "adalora" else None,
        "base_fingerprint": None if point.way == "full" else base_fingerprint(_network(point), _carried(point)),
        "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
        **of_likelihood,
    }
    write_whole(folder / TENSORS_FILE, tensors)
    write_sealed(folder / DESCRIPTION_FILE, description)
    return folder


def load_trained(network: PreTrainedModel, folder: Path) -> PointNetwork:
    """What `save_trained` wrote, on a freshly loaded base model, in evaluation mode.

    Args:
        network: the base model that it was trained on, in the same precision, without adapters. It is changed in
            place, once the files are known to be whole and to be of this base.
        folder: the folder.

    Raises:
        CheckpointFileError: a file is missing, damaged, edited or of another schema version; names the file.
        AdapterError: it was trained on another base model.

    Example:
        >>> point = load_trained(load_base_model("minilm", labels).network, folder)  # doctest: +SKIP
    """
    description = _FORMAT.read_description(
        folder / DESCRIPTION_FILE,
        _KEYS,
        f"{folder} holds no trained network, or one whose saving was cut short. Train it.",
    )
    tensors = _read_tensors(folder / TENSORS_FILE, description["tensors_sha256"])
    require_loaded(network)
    expected = description["base_fingerprint"]
    if expected is not None and base_fingerprint(network, _in_network(tensors)) != expected:
        raise AdapterError(
            f"{folder} was trained on another base model than this {type(network).__name__}, or in another precision. "
            "Load the one it was trained on, without adapters."
        )
    try:
        options = LoRAOptions(**description["lora"])
        likelihood = _made_again(network, description.get("likelihood"))
        point = make_network(
            description["way"],
            network,
            description["new_modules"],
            options,
            bottleneck_size=description["bottleneck_size"],
            likelihood=likelihood,
        )
    except (KeyError, TypeError, BayesLoRAError) as error:
        raise AdapterError(f"{folder} does not fit this {type(network).__name__}: {error}") from error
    trained = _trained(point)
    odd = sorted(
        name
        for name in {*trained, *tensors}
        if name not in trained or name not in tensors or not _alike(trained[name], tensors[name])
    )
    if odd:
        raise AdapterError(
            f"{folder} does not fit this {type(network).__name__}: {len(odd)} tensors are in one of the two only, or "
            f"have another shape or precision, such as {odd[0]}. Load the base model it was trained on, with as many "
            "classes and in the same precision."
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[name])
    if point.way == "adalora":
        _config(point).rank_pattern = description["rank_pattern"]
    point.network.eval()
    return point


def _trained(point: PointNetwork) -> dict[str, Tensor]:
    """What was trained, and all of the likelihood, by their names in the point estimate."""
    trained = {name: value for name, value in point.network.named_parameters() if value.requires_grad}
    likelihood = _likelihood(point)
    return trained if likelihood is None else trained | _named(likelihood.state_dict(keep_vars=True))


def _named(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {LIKELIHOOD + name: value for name, value in state.items()}


def _likelihood(point: PointNetwork) -> Likelihood | None:
    return point.network.likelihood if isinstance(point.network, LikelihoodNetwork) else None


def _network(point: PointNetwork) -> Any:
    """Without the likelihood."""
    return point.network.network if isinstance(point.network, LikelihoodNetwork) else point.network


def _in_network(names: Iterable[str]) -> list[str]:
    """Names of a point estimate's tensors as they are in its network."""
    return [name.removeprefix(NETWORK) for name in names if not name.startswith(LIKELIHOOD)]


def _made_again(network: PreTrainedModel, saved: Any) -> Likelihood | None:
    if saved is None:
        return None
    return likelihood_kinds()[saved["kind"]].from_settings(network, saved["settings"])


def _carried(point: PointNetwork) -> list[str]:
    """Parameters that the base model does not have: the trained ones, and the rank that AdaLoRA divides by."""
    names = [name for name, _ in _network(point).named_parameters()]
    return [*_in_network(_trained(point)), *(name for name in names if ".ranknum." in name)]


def _config(point: PointNetwork) -> Any:
    return _network(point).peft_config["default"]


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _read_tensors(path: Path, digest: str) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointFileError(f"{path} cannot be read ({error}). {_FORMAT.remedy}") from error
    _FORMAT.require_checksum(path, hashlib.sha256(data).hexdigest(), digest, DESCRIPTION_FILE)
    return load(data)
