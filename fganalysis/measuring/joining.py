"""Joins the results of several estimators or steps, and the reasons for what could not be measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from fganalysis.results import schema

NODES = ("measured", "predicted", "subspace")
LONGEST_REASON = 300


def join(trees: Sequence[xr.DataTree]) -> xr.DataTree:
    """One tree from the diagnoses of several steps, with the parts that all of them have."""
    nodes = {
        name: along(schema.STEP, [tree[name].to_dataset() for tree in trees])
        for name in NODES
        if all(name in tree.children for tree in trees)
    }
    joined = xr.DataTree.from_dict(nodes)
    joined.attrs |= as_attribute([_reasons(tree.attrs) for tree in trees])
    return joined


def along(dim: str, datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Datasets joined along a dimension that they have, or a new dimension.

    A dataset with fewer groups gets NaN in ``gram`` and 0 in ``group_size`` for the missing groups. Attributes that
    differ become a text with all values. Reasons are merged by label, and the parameters left out by any are listed.
    """
    by_name: dict[str, list[object]] = {}
    for dataset in datasets:
        for name, value in dataset.attrs.items():
            by_name.setdefault(name, []).append(value)
    attributes = {name: v[0] if len(set(map(str, v))) == 1 else str(v) for name, v in by_name.items()}
    if schema.NOT_LOOKED_AT in by_name:
        names = [name for value in by_name[schema.NOT_LOOKED_AT] for name in json.loads(str(value))]
        attributes[schema.NOT_LOOKED_AT] = json.dumps(list(dict.fromkeys(names)))
    attributes |= as_attribute([_reasons(dataset.attrs) for dataset in datasets])
    stacked = xr.concat(
        [_with_groups_numbered(dataset) for dataset in datasets],
        dim=dim,
        data_vars="all",
        join="outer",
        fill_value={"group_size": 0},
        combine_attrs="drop_conflicts",
    )
    return stacked.drop_vars([schema.GROUP, schema.OTHER_GROUP], errors="ignore").assign_attrs(attributes)


def _with_groups_numbered(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with coordinates for the groups, so that datasets with different numbers of groups can be joined."""
    dims = [dim for dim in (schema.GROUP, schema.OTHER_GROUP) if dim in dataset.dims]
    return dataset.assign_coords({dim: np.arange(dataset.sizes[dim]) for dim in dims})


def in_a_sentence(error: Exception) -> str:
    """The message of an error on one line, preceded by its type unless it is a ValueError."""
    text = " ".join(str(error).split())
    text = text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 1] + "…"


def _reasons(attributes: Mapping[Any, object]) -> dict[str, str]:
    reasons: dict[str, str] = json.loads(str(attributes.get(schema.NOT_MEASURED, "{}")))
    return reasons


def as_attribute(reasons: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The attribute with all reasons by label; empty without reasons."""
    merged: dict[str, str] = {}
    for name, reason in (pair for by_label in reasons for pair in by_label.items()):
        known = merged.setdefault(name, reason)
        if reason not in known:
            merged[name] = f"{known}; {reason}"
    return {schema.NOT_MEASURED: json.dumps(merged, ensure_ascii=False)} if merged else {}
