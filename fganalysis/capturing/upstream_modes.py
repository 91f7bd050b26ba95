"""UpstreamModes: the singular modes of one tap's upstream Jacobians and the gradient in them, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class UpstreamModes:
    """All modes of one tap's upstream Jacobians, and how its activation gradients lie in them.

    values: (example, mode), σ descending, zero beyond the rank. parts: (example, unit, mode), v_i v_iᵀg in the
    network's precision, zero beyond the rank. components: (example, mode), (v_iᵀg)². Both are means over the modes
    whose singular values are equal. tied: (example, mode), whether σ equals the next one, see
    `fganalysis.subspace.Modes`. squared_gradient: (example,). smaller_side: min(next_unit, unit); there are fewer modes
    where no example's rank is that high.
    """

    values: Array
    parts: NDArray[np.floating]
    components: Array
    tied: NDArray[np.bool_]
    squared_gradient: Array
    smaller_side: int

    @property
    def rank(self) -> NDArray[np.int64]:
        """How many singular values count as nonzero, (example,)."""
        return (self.values > 0).sum(1)

    @property
    def overlap(self) -> Array:
        """o_k² (example, mode); NaN for an example without a gradient."""
        squared = self.squared_gradient[:, None]
        unknown = np.full_like(self.components, np.nan)
        return np.divide(np.cumsum(self.components, 1), squared, out=unknown, where=squared > 0).clip(max=1.0)
