"""The parts of a result that a page shows one after the other: a diagnosis, or a Dataset.

A Dataset counts as what was measured; its variables ``x_predicted`` are what was predicted. A study is a tree of such
parts. Diagnoses that lie in one folder and are of one gradient, as those of a step's estimators are, become one.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from fganalysis.measuring.joining import along
from fganalysis.results import schema

MEASURED, FORECAST, SPECTRA = "measured", "predicted", "subspace"  # Nodes of a diagnosis.
MOST_PARTS = 6


@dataclass(frozen=True)
class Part:
    """What is measured and what is predicted, each with step and estimator as dimensions where it has them."""

    title: str
    measured: xr.Dataset = field(default_factory=xr.Dataset)
    predicted: xr.Dataset = field(default_factory=xr.Dataset)
    subspace: xr.Dataset = field(default_factory=xr.Dataset)
    attributes: Mapping[str, object] = field(default_factory=dict)


def parts(result: xr.Dataset | xr.DataTree) -> tuple[list[Part], list[str]]:
    """The parts of a result, at most `MOST_PARTS`, and the names of those beyond."""
    if isinstance(result, xr.Dataset):
        return [_of_dataset("", result)], []
    found: list[Part] = []
    beyond: list[str] = []
    waiting = [("", result)]
    while waiting:
        title, node = waiting.pop(0)
        if len(found) >= MOST_PARTS:  # Not even opened: a study may have ten thousand cells.
            beyond.append(title)
            continue
        if _is_diagnosis(node):
            found.append(_of_diagnosis(title, node))
            continue
        if node.data_vars:
            found.append(_of_dataset(title, node.to_dataset()))
        below = {str(name): child for name, child in _opened(node, MOST_PARTS**2)}
        together = _together({name: child for name, child in below.items() if _is_diagnosis(child)})
        if together is not None:
            found.append(_of_diagnosis(title, together))
            below = {name: child for name, child in below.items() if not _is_diagnosis(child)}
        waiting += [(f"{title}/{name}".lstrip("/"), child) for name, child in below.items()]
        beyond += [f"{title}/{name}".lstrip("/") for name in list(node.children)[MOST_PARTS**2 :]]
    return found, beyond


def _opened(node: xr.DataTree, most: int) -> Iterator[tuple[str, xr.DataTree]]:
    for name in list(node.children)[:most]:
        yield str(name), node.children[name]


def _is_diagnosis(node: xr.DataTree) -> bool:
    return any(name in node.children and not node.children[name].children for name in (MEASURED, SPECTRA))


def _of_diagnosis(title: str, tree: xr.DataTree) -> Part:
    nodes = {
        name: tree[name].to_dataset() if name in tree.children else xr.Dataset()
        for name in (MEASURED, FORECAST, SPECTRA)
    }
    given = [nodes[FORECAST].attrs, nodes[SPECTRA].attrs, nodes[MEASURED].attrs, tree.attrs]
    attributes: dict[str, object] = {str(name): value for one in given for name, value in one.items()}
    if schema.NOT_MEASURED in attributes:
        reasons = [found for one in given if isinstance(found := parsed(one.get(schema.NOT_MEASURED)), dict)]
        attributes[schema.NOT_MEASURED] = json.dumps({name: why for one in reasons for name, why in one.items()})
    return Part(title, _with_dims(nodes[MEASURED]), _with_dims(nodes[FORECAST]), _with_dims(nodes[SPECTRA]), attributes)


def _of_dataset(title: str, dataset: xr.Dataset) -> Part:
    forecast = {
        str(name): str(name).removesuffix(schema.PREDICTED)
        for name in dataset.data_vars
        if str(name).endswith(schema.PREDICTED)
    }
    errors = {name + schema.SE: plain + schema.SE for name, plain in forecast.items() if name + schema.SE in dataset}
    predicted = dataset[[*forecast, *errors]].rename(forecast | errors)
    if set(schema.MODE_CURVES) <= set(dataset.data_vars):
        return Part(title, subspace=_with_dims(dataset), attributes=dataset.attrs)
    return Part(title, _with_dims(dataset), _with_dims(predicted), attributes=dataset.attrs)


def parsed(value: object) -> object:
    """The value of an attribute in JSON, or of a text with several such values, as joined results have it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        pass
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return found


def _with_dims(dataset: xr.Dataset) -> xr.Dataset:
    """Step, estimator, space and layer are dimensions even of a single one."""
    alone = [dim for dim in (schema.STEP, schema.ESTIMATOR, schema.SPACE, schema.LAYER) if _is_alone(dataset, dim)]
    return dataset.expand_dims(alone) if alone else dataset


def _is_alone(dataset: xr.Dataset, dim: str) -> bool:
    return dim in dataset.coords and not dataset[dim].ndim


def _together(diagnoses: Mapping[str, xr.DataTree]) -> xr.DataTree | None:
    """One diagnosis from several of different estimators and the same exact gradients; None where they are not such."""
    trees = list(diagnoses.values())
    if sum(MEASURED in tree.children for tree in trees) < 2:
        return None
    nodes: dict[str, xr.Dataset] = {}
    for name in (MEASURED, FORECAST):
        datasets = [_with_dims(tree[name].to_dataset()) for tree in trees if name in tree.children]
        if not datasets or not _of_one_gradient(datasets):
            return None
        nodes[name] = along(schema.ESTIMATOR, datasets)
    subspaces = [tree[SPECTRA].to_dataset() for tree in trees if SPECTRA in tree.children]
    if len(subspaces) > 1:
        return None
    return xr.DataTree.from_dict(nodes | ({SPECTRA: subspaces[0]} if subspaces else {}))


def _of_one_gradient(datasets: list[xr.Dataset]) -> bool:
    """Whether all have the exact gradient's norms of the first, and no estimator twice."""
    if not all({schema.STEP, schema.ESTIMATOR} <= set(one.dims) and "gradient_norm" in one for one in datasets):
        return False
    names = [str(name) for one in datasets for name in one[schema.ESTIMATOR].values]
    norms = [one["gradient_norm"].isel({schema.ESTIMATOR: 0}, drop=True) for one in datasets]
    same = all(norm.dims == norms[0].dims and norm.shape == norms[0].shape for norm in norms)
    return same and len(set(names)) == len(names) and all(np.array_equal(norm, norms[0]) for norm in norms)
