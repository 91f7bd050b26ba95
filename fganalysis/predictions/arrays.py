"""What every prediction takes from a snapshot and gives back: arrays in double precision, quantities by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.feedback.matrices import read_by_next
from theory import quantities, wang2025
from theory.linear_guess import Moments

Array = NDArray[np.float64]
Prediction = dict[str, Array]


def double(tensors: Sequence[Tensor]) -> list[Array]:
    return [tensor.detach().double().cpu().numpy() for tensor in tensors]


def inputs_of(snapshot: Snapshot) -> list[Array]:
    return double([tap.inputs for tap in snapshot.taps])


def jacobians_of(snapshot: Snapshot) -> list[tuple[Array, Array]]:
    """The next tap's weight (next_unit, unit) and φ' (example, unit) of every tap but the last."""
    return [(double([j.weight])[0], double([j.derivative])[0]) for j in snapshot.upstream]


def blocks_of(snapshot: Snapshot) -> list[Array]:
    """φ(s_l) (example, unit) of every tap but the last."""
    return double([read_by_next(snapshot, index) for index in range(len(snapshot.taps) - 1)])


def quantities_of(snapshot: Snapshot, moments: Sequence[Moments]) -> Prediction:
    """Quantities over (space, layer) and the seed paper's two, from the moments of every tap's activation guess."""
    gradients, inputs = double(snapshot.gradients), inputs_of(snapshot)
    kernels = [x @ x.T for x in inputs]
    means = [moment.mean for moment in moments]
    plain = [moment.variance() for moment in moments]
    mixed = [moment.variance(kernel) for moment, kernel in zip(moments, kernels, strict=True)]
    activation = quantities.quantities(gradients, means, variances=plain)
    weight = quantities.quantities(gradients, means, kernels=kernels, variances=mixed)
    pairs = list(zip(gradients, moments, strict=True))
    return with_squared_bias({name: np.stack([activation[name], weight[name]]) for name in activation}) | {
        "wang2025_bias": np.array([*(wang2025.bias(g, moment) for g, moment in pairs), np.nan]),
        "wang2025_variance": np.array([*(wang2025.variance(g, moment) for g, moment in pairs), np.nan]),
    }


def with_squared_bias(found: Prediction) -> Prediction:
    return found | {"squared_bias": found["bias"] ** 2}


def at_weights(found: Prediction) -> Prediction:
    both = with_squared_bias(found) if "bias" in found else found
    return {name: np.stack([np.full_like(values, np.nan), values]) for name, values in both.items()}
