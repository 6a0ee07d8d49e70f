"""What draws predict, as groups for ArviZ: labels of every kind of likelihood with named dimensions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from bayes_lora.errors import DataError
from bayes_lora.labels import TO_PREDICT
from bayes_lora.models import Likelihood
from bayes_lora.models.likelihoods.diagnosed import Variable
from bayes_lora.randomness import stream

_DRAWS = ("chain", "draw")


def predictive_groups(
    likelihood: Likelihood,
    prediction: Any,
    *,
    seed: int,
    label_names: Sequence[Any] | None = None,
    example_ids: Sequence[Any] | None = None,
) -> dict[str, xr.Dataset]:
    """The groups posterior_predictive, and where the rows have labels log_likelihood and observed_data.

    Args:
        likelihood: of the labels.
        prediction: of `predict`.
        seed: of the labels drawn.
        label_names: coordinates of classes, labels or outputs; else these count from 0.
        example_ids: coordinates of rows; else these count from 0.

    Raises:
        DataError: ids or names that are not as many as what they name.
        LikelihoodError: a likelihood that has no density, or labels that it gives none.
    """
    num_samples, num_examples = likelihood.pack(prediction).shape[:2]
    variables = likelihood.predictive_variables(prediction)
    # A stream for each draw, so that fewer draws are the first of many.
    generators = [torch.Generator().manual_seed(stream(seed, draw)) for draw in range(num_samples)]
    drawn = [likelihood.replicated(prediction, draw, 1, generator) for draw, generator in enumerate(generators)]
    dims, first = ("example", *likelihood.label_dims), drawn[0]
    predicted = {name: (of.values.numpy(), of.dims, _attributes(of)) for name, of in variables.items() if of.of_draws}
    if first is not None:
        values = np.stack([of.numpy()[0] for of in drawn if of is not None])
        predicted = {"y": (values, dims, {"long_name": "label drawn"}), **predicted}
    coords = _coords(likelihood, num_examples, label_names, example_ids)
    predictive = _dataset(predicted, {"chain": [0], "draw": np.arange(num_samples), **coords}, _DRAWS)
    fixed = {name: (of.values.numpy(), of.dims, _attributes(of)) for name, of in variables.items() if not of.of_draws}
    found = {"posterior_predictive": predictive.merge(_dataset(fixed, coords))}
    labels = _known(likelihood, prediction)
    if labels is None:
        return found
    density = {"y": (likelihood.draw_log_density(prediction).numpy(), ("example",), _LOG_LIKELIHOOD)}
    found["log_likelihood"] = _dataset(density, {"chain": [0], "draw": np.arange(num_samples), **coords}, _DRAWS)
    # Classes may come as numbers of any type, and so may zeros and ones.
    labels = labels if first is None or first.is_floating_point() else labels.long()
    observed = {"y": (labels.numpy(), dims, {"long_name": "label observed"})}
    found["observed_data"] = _dataset(observed, coords)
    return found


_LOG_LIKELIHOOD = {"long_name": "log likelihood", "units": "nats"}


def _known(likelihood: Likelihood, prediction: Any) -> Tensor | None:
    labels: Tensor | None = prediction.labels
    if labels is None or ("token" in likelihood.label_dims and bool((labels == TO_PREDICT).any())):
        return None
    return labels


def _attributes(variable: Variable) -> dict[str, str]:
    return {"long_name": variable.long_name} | ({"units": variable.units} if variable.units else {})


def _dataset(
    variables: Mapping[str, tuple[Any, tuple[str, ...], Mapping[str, str]]],
    coords: Mapping[str, Any],
    before: tuple[str, ...] = (),
) -> xr.Dataset:
    """With the dimensions `before` in front of each variable's own, and coordinates of those that occur.

    A dimension of length 1 that belongs to the labels, as of a single output, is left out: its labels are numbers.
    """
    found = {}
    for name, (values, dims, attributes) in variables.items():
        values = values[None] if before else values
        found[name] = xr.DataArray(values, dims=(*before, *dims), attrs=dict(attributes))
    dataset = xr.Dataset(found)
    if dataset.sizes.get("output") == 1:
        dataset = dataset.squeeze("output")
    for name, values in coords.items():
        if name in dataset.sizes and len(values) != dataset.sizes[name]:
            raise DataError(
                f"there are {len(values)} names for {dataset.sizes[name]} coordinates of {name!r}. Give one for each."
            )
    return dataset.assign_coords({str(dim): coords.get(str(dim), np.arange(n)) for dim, n in dataset.sizes.items()})


def _coords(
    likelihood: Likelihood, num_examples: int, label_names: Sequence[Any] | None, example_ids: Sequence[Any] | None
) -> dict[str, Any]:
    if example_ids is not None and len(example_ids) != num_examples:
        raise DataError(
            f"there are {len(example_ids)} example_ids for {num_examples} rows. Give one for each row of the loader."
        )
    found: dict[str, Any] = {"example": np.arange(num_examples) if example_ids is None else np.asarray(example_ids)}
    if likelihood.named_dim is not None and label_names is not None:
        found[likelihood.named_dim] = list(label_names)
    return found
