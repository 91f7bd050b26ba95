"""A row of a monitor, one measurement: plain lists and texts, and what they are in a Dataset and in JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import xarray as xr

from fganalysis.results import schema

# Of each estimator, with the parts beside them; with the predictions, which have no parts.
KEPT_QUANTITIES = ("bias", "relative_bias", "shrinkage", "variance", "cosine", "efficiency")
OF_ESTIMATOR = (
    *(name + part for name in KEPT_QUANTITIES for part in ("", *schema.BESIDE, schema.PREDICTED)),
    "gradient_norm",
)
NOISE = "gradient_noise_scale"
OF_LAYER = (NOISE, "example_variance", "squared_mean_gradient", "grad_cosine", "grad_relative_error")
OF_STEP = ("loss", "n_examples", "n_examples_of_guesses", "measuring_seconds", "training_seconds", "skipped")
Numbers = list[Any]  # Nested lists of floats.


@dataclass
class Row:
    """One measurement.

    Attributes:
        step: at which it was made. layers: names, all layers first.
        of_step: by the names of `OF_STEP`. of_layer: by those of `OF_LAYER`, (layer,).
        of_estimator: by label and by the names of `OF_ESTIMATOR`, (space, layer). n_guesses: by label.
        reasons: why numbers are missing, by label, or by ``.grad``, ``gradient_noise_scale``, ``batch``.
    """

    step: int
    layers: list[str] = field(default_factory=lambda: [schema.ALL_LAYERS])
    of_step: dict[str, float] = field(default_factory=dict)
    of_layer: dict[str, Numbers] = field(default_factory=dict)
    of_estimator: dict[str, dict[str, Numbers]] = field(default_factory=dict)
    n_guesses: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def plain(row: Row) -> dict[str, Any]:
    """The row as JSON holds it: NaN is None, and infinities are texts."""
    made: dict[str, Any] = _each_number(asdict(row), _to_json)
    return made


def row_of(state: Mapping[str, Any]) -> Row:
    """The reverse of `plain`."""
    numbers = ("of_step", "of_layer", "of_estimator")
    parts = {part.name: state[part.name] for part in fields(Row)}
    return Row(**parts | {name: _each_number(parts[name], _from_json) for name in numbers})


def flat(row: Row) -> dict[str, float]:
    """The values of a row that are known, and their predictions, by names such as "activity/weight/cosine".

    A layer's name stands at the end. Errors, bounds and flags of intervals are in the Dataset alone.
    """
    found = {name: row.of_step[name] for name in OF_STEP if name in row.of_step}
    for name, values in row.of_layer.items():
        if _shown(name):
            found |= {_path(name, layer): value for layer, value in zip(row.layers, values, strict=True)}
    for label, by_name in row.of_estimator.items():
        for name, by_space in by_name.items():
            if _shown(name):
                for space, values in zip(schema.SPACES, by_space, strict=True):
                    found |= {
                        _path(f"{label}/{space}/{name}", layer): value
                        for layer, value in zip(row.layers, values, strict=True)
                    }
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def dataset_of(rows: Sequence[Row], labels: Sequence[str]) -> xr.Dataset:
    """All rows over (step, estimator, space, layer); NaN where a row has no number."""
    layers = list(dict.fromkeys(layer for row in rows for layer in row.layers)) or [schema.ALL_LAYERS]
    labels = list(dict.fromkeys([*labels, *(label for row in rows for label in row.of_estimator)]))
    sizes = {
        schema.STEP: len(rows),
        schema.ESTIMATOR: len(labels),
        schema.SPACE: len(schema.SPACES),
        schema.LAYER: len(layers),
    }
    known = schema.variables()

    def empty(name: str, *over: str) -> tuple[tuple[str, ...], np.ndarray]:
        dims = (schema.STEP, *over, *known[name].dims)
        return dims, np.full([sizes[dim] for dim in dims], np.nan)

    made = {name: empty(name) for name in (*OF_STEP, *OF_LAYER)}
    made |= {name: empty(name, schema.ESTIMATOR) for name in (*OF_ESTIMATOR, "n_guesses")}
    for place, row in enumerate(rows):
        at = [layers.index(layer) for layer in row.layers]
        for name, number in row.of_step.items():
            made[name][1][place] = number
        for name, values in row.of_layer.items():
            made[name][1][place, at] = values
        for label, by_name in row.of_estimator.items():
            column = labels.index(label)
            made["n_guesses"][1][place, column] = row.n_guesses[label]
            for name, by_space in by_name.items():
                made[name][1][place, column][:, at] = by_space
    coordinates = {
        schema.STEP: np.array([row.step for row in rows], dtype=np.int64),
        schema.ESTIMATOR: np.array(labels, dtype=str),
        schema.SPACE: list(schema.SPACES),
        schema.LAYER: layers,
    }
    return schema.validate(schema.annotate(xr.Dataset(made, coords=coordinates)))


def reasons_of(rows: Iterable[Row]) -> str:
    """All reasons as a JSON object from label to sentence, each with its steps; empty without any."""
    found: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        for label, reason in row.reasons.items():
            found.setdefault(label, {}).setdefault(reason, []).append(row.step)
    sentences = {
        label: "; ".join(f"{reason} ({_steps(steps)})" for reason, steps in by_reason.items())
        for label, by_reason in found.items()
    }
    return json.dumps(sentences, ensure_ascii=False) if sentences else ""


def _steps(steps: list[int]) -> str:
    if len(steps) < 4:
        return f"step{'s' * (len(steps) > 1)} {', '.join(map(str, steps))}"
    return f"{len(steps)} steps from {steps[0]} to {steps[-1]}"


def _shown(name: str) -> bool:
    return not name.endswith(schema.BESIDE)


def _path(name: str, layer: str) -> str:
    return name if layer == schema.ALL_LAYERS else f"{name}/{layer}"


def _each_number(thing: Any, function: Any) -> Any:
    if isinstance(thing, dict):
        return {key: _each_number(part, function) for key, part in thing.items()}
    if isinstance(thing, list):
        return [_each_number(part, function) for part in thing]
    return function(thing)


def _to_json(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def _from_json(value: Any) -> Any:
    if value is None:
        return math.nan
    return float(value) if value in ("inf", "-inf") else value
