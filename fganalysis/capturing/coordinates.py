"""Coordinates and exact squared norms, which every result on a snapshot has."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from fganalysis.capturing.reference import Reference
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.results import schema

SQUARES_AT_ONCE = 2**20


def coordinates(reference: Reference, name: str) -> dict[str, object]:
    """The coordinates that every result has."""
    return {
        schema.STEP: reference.step,
        schema.ESTIMATOR: name,
        schema.SPACE: list(reference.spaces),
        schema.LAYER: [*reference.layers, schema.ALL_LAYERS],
    }


def squared_gradients(snapshot: Snapshot, at_activations: bool = True) -> np.ndarray:
    """Exact ‖g‖² and ‖G‖², (space, layer), layer "all" last.

    NaN at the activations for parameters of no tap. Guesses ``at_activations`` have none at the weights for them
    either, so that "all" is then all layers but this one.
    """

    def squares(tensors: Iterable[torch.Tensor]) -> list[float]:
        # In parts, as a copy in double precision is twice as large.
        return [
            sum(float(part.double().square().sum()) for part in tensor.flatten().split(SQUARES_AT_ONCE))
            for tensor in tensors
        ]

    at_taps = squares(snapshot.gradients)
    by_layer = [sum(at_taps[i] for i in layer.taps) if layer.taps else np.nan for layer in snapshot.weights]
    by_space = np.array([by_layer, squares(snapshot.weight_gradients)])
    if at_activations:
        by_space[1, [not layer.taps for layer in snapshot.weights]] = np.nan
    return np.concatenate([by_space, over_layers(by_space)[:, None]], axis=1)


def over_layers(by_layer: np.ndarray) -> np.ndarray:
    """(space, layer, …) → (space, …): sums over the layers that are known; NaN where none is."""
    known = ~np.isnan(by_layer)
    return np.where(known.any(1), np.where(known, by_layer, 0.0).sum(1), np.nan)
