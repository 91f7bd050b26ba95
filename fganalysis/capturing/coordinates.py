"""Coordinates and exact squared norms, which every result on a snapshot has."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.results import schema


def coordinates(snapshot: Snapshot, name: str) -> dict[str, object]:
    """The coordinates that every result on a snapshot has."""
    return {
        schema.STEP: snapshot.step,
        schema.ESTIMATOR: name,
        schema.SPACE: list(schema.SPACES),
        schema.LAYER: [*snapshot.layers, schema.ALL_LAYERS],
    }


def squared_gradients(snapshot: Snapshot) -> np.ndarray:
    """Exact ‖g‖² and ‖G‖², (space, layer), layer "all" last."""

    def squares(tensors: Iterable[torch.Tensor]) -> list[float]:
        return [float(t.double().square().sum()) for t in tensors]

    by_space = np.array([squares(snapshot.gradients), squares(snapshot.weight_gradients)])
    return np.concatenate([by_space, by_space.sum(1, keepdims=True)], axis=1)
