"""What every prediction takes from a snapshot and gives back: arrays in double precision, quantities by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.weight_maps.matrix import MatrixMap
from fganalysis.estimators.feedback.matrices import read_by_next

Array = NDArray[np.float64]
Prediction = dict[str, Array]


def double(tensors: Sequence[Tensor]) -> list[Array]:
    return [tensor.detach().double().cpu().numpy() for tensor in tensors]


class NoClosedForm(ValueError):
    """A network on which the closed form of an estimator is not known; the message says why."""


def inputs_of(snapshot: Snapshot) -> list[Array]:
    """x (example, input) of every tap.

    Raises:
        NoClosedForm: a tap that is not a matrix with a row an example, or parameters that several taps share.
    """
    refuse_other_than_plain(snapshot)
    return double([tap.inputs for tap in snapshot.taps])


def jacobians_of(snapshot: Snapshot) -> list[tuple[Array, Array]]:
    """The next tap's weight (next_unit, unit) and φ' (example, unit) of every tap but the last.

    Raises:
        NoClosedForm: a network that is no chain of Linear modules.
    """
    try:
        jacobians = snapshot.upstream
    except ValueError as error:
        raise NoClosedForm(str(error)) from error
    return [(double([j.weight])[0], double([j.derivative])[0]) for j in jacobians]


def refuse_other_than_plain(snapshot: Snapshot) -> None:
    """Raises NoClosedForm unless every tap is a matrix with a row an example, in a layer of its own."""
    for tap in snapshot.taps:
        plain = tap.owners is not None and tap.owners.is_plain and isinstance(tap.weights, MatrixMap)
        if not plain or len(snapshot.weights[tap.layer].taps) > 1:
            raise NoClosedForm(
                f"no closed form is known for tap {tap.name!r}, which is not a Linear module with a row an example"
            )


def blocks_of(snapshot: Snapshot) -> list[Array]:
    """φ(s_l) (example, unit) of every tap but the last."""
    return double([read_by_next(snapshot, index) for index in range(len(snapshot.taps) - 1)])


def with_squared_bias(found: Prediction) -> Prediction:
    return found | {"squared_bias": found["bias"] ** 2}


def at_weights(found: Prediction) -> Prediction:
    both = with_squared_bias(found) if "bias" in found else found
    return {name: np.stack([np.full_like(values, np.nan), values]) for name, values in both.items()}
