"""A Laplace posterior in one safetensors file, whose header holds its description as JSON."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from bayes_lora.errors import BayesLoRAError, PosteriorFileError, RunExistsError
from bayes_lora.files import write_whole
from bayes_lora.inference.predictors.laplace.blocks import Block, DiagonalBlock, KroneckerBlock
from bayes_lora.inference.predictors.laplace.laplace import LaplaceOptions, LaplacePosterior
from bayes_lora.inference.predictors.laplace.matching import match_linears
from bayes_lora.sealed_files import Format

SCHEMA_VERSION = 1
_HEADER = "laplace"  # its key in the file's metadata
_FORMAT = Format(PosteriorFileError, "Save the posterior again, or copy it again.", SCHEMA_VERSION)


def save_laplace(posterior: LaplacePosterior, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a posterior, whole or not at all.

    The file is a safetensors file: one tensor per field of each block, named ``<linear>.<field>``, and in its metadata
    under "laplace" a JSON text with the options, the numbers and a checksum of everything. The network is not in it.

    Raises:
        RunExistsError: the file exists and `overwrite` was not said.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise RunExistsError(f"{path} exists already. Choose another name, or pass overwrite=True.")
    tensors = {
        f"{name}.{field.name}": getattr(block, field.name).detach().cpu().contiguous()
        for name, block in posterior.blocks.items()
        for field in fields(block)  # type: ignore[arg-type]
    }
    description = {
        "schema_version": SCHEMA_VERSION,
        "options": asdict(posterior.options),
        "linears": list(posterior.blocks),
        "squared_norms": dict(posterior.squared_norms),
        "log_likelihood": posterior.log_likelihood,
        "num_rows": posterior.num_rows,
        "prior_precision": posterior.prior_precision,
    }
    sealed = {**description, "sha256": _digest(description, tensors)}
    write_whole(path, save(tensors, metadata={_HEADER: json.dumps(sealed)}))
    return path


def load_laplace(network: nn.Module, path: str | Path) -> LaplacePosterior:
    """Open what `save_laplace` wrote, for the network that the posterior was fitted on.

    Raises:
        PosteriorFileError: the file is missing, damaged, edited, of another schema version, or of another network.
    """
    path = Path(path)
    metadata, tensors = _FORMAT.read_tensors(path, "Give the file that save_laplace wrote.")
    description = _checked(path, metadata.get(_HEADER), tensors)
    try:
        options = LaplaceOptions(**description["options"])
        posterior = LaplacePosterior(
            options,
            {name: _block(options, name, tensors) for name in description["linears"]},
            description["squared_norms"],
            description["log_likelihood"],
            description["num_rows"],
            description["prior_precision"],
        )
    except (TypeError, KeyError, BayesLoRAError) as error:
        raise PosteriorFileError(f"{path}: what it says cannot be used ({error!r}). {_FORMAT.remedy}") from error
    linears = match_linears(network, posterior)
    devices = {linear.name: linear.module.weight.device for linear in linears}
    blocks = {name: block.to(devices[name]) for name, block in posterior.blocks.items()}
    return LaplacePosterior(**{**vars(posterior), "blocks": blocks})


def _checked(path: Path, header: str | None, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    try:
        description = json.loads(header or "")
        version, digest = description["schema_version"], description.pop("sha256")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PosteriorFileError(
            f"{path} is not a file that save_laplace wrote, or it was damaged. {_FORMAT.remedy}"
        ) from error
    # Before the checksum, which another version may take otherwise.
    _FORMAT.require_version(path, version)
    _FORMAT.require_checksum(path, _digest(description, tensors), digest)
    return description  # type: ignore[no-any-return]


def _block(options: LaplaceOptions, name: str, tensors: Mapping[str, Tensor]) -> Block:
    kind = DiagonalBlock if options.structure == "diagonal" else KroneckerBlock
    return kind(**{field.name: tensors[f"{name}.{field.name}"] for field in fields(kind)})


def _digest(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The checksum of what a description says, however it is laid out, and of every tensor."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
