"""The matrices A_b that turn noise into directions, y_b = A_b ε_b: diagonal, masked, dense or of low rank.

The methods below are all that second moments of a guess need, so a diagonal or low-rank A is never written out:

    pull       a_b = A_bᵀ g_b                         the slope of example b is a_b·ε
    push       A_b a_b                                with a = Aᵀg the mean guess Σ_b g_b, Σ = A Aᵀ
    diagonal   Σ_uu = Σ_j A_uj²                       its sum over units is tr Σ
    fourth     Σ_j a_j² A_uj²                         what a fourth moment other than the Gaussian one adds
    traces     tr A_bᵀA_c                             these three for pairs of examples that share their noise
    crossed    (A_c a_b)·(A_b a_c)
    fourth_pairs   Σ_j a_bj a_cj (A_bᵀA_c)_jj
    squared_covariance   ‖Σ‖_F²
    restricted   the same A with the columns of some noise alone, the others zero

Where an example has several rows at a tap, its units are the numbers of all of them, row after row.

Arrays are float64. Raises ValueError for arrays of another type or number of dimensions, or that do not fit together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CHUNK_ELEMENTS = 2**22  # numbers held at once where a pair of examples needs A written out: 32 MiB


class Factor(Protocol):
    """A_b of every example, (unit, noise). The methods are those in the table of the module docstring."""

    @property
    def shape(self) -> tuple[int, int]:
        """(example, unit)."""

    def pull(self, gradient: Array) -> Array:
        """(example, unit) → (example, noise)."""

    def push(self, noise: Array) -> Array:
        """(…, example, noise) → (…, example, unit); one example of noise, not as many as there are, goes to all."""

    def diagonal(self) -> Array:
        """(example, unit)."""

    def fourth(self, noise: Array) -> Array:
        """(example, noise) → (example, unit)."""

    def traces(self) -> Array:
        """(example, example)."""

    def crossed(self, noise: Array) -> Array:
        """(example, noise) → (example, example)."""

    def fourth_pairs(self, noise: Array) -> Array:
        """(example, noise) → (example, example)."""

    def squared_covariance(self) -> Array:
        """(example,)."""

    def restricted(self, mask: Array) -> Factor:
        """mask: ones and zeros, (noise,)."""


@dataclass(frozen=True, eq=False)
class Diagonal:
    """A_b = diag(scale_b): ``scale`` (example, unit), ones for activity perturbation, zeros for units left alone."""

    scale: Array

    def __post_init__(self) -> None:
        _check("scale", self.scale, 2)

    @property
    def shape(self) -> tuple[int, int]:
        return self.scale.shape[0], self.scale.shape[1]

    def pull(self, gradient: Array) -> Array:
        return self.scale * gradient

    def push(self, noise: Array) -> Array:
        return self.scale * noise

    def diagonal(self) -> Array:
        return self.scale**2

    def fourth(self, noise: Array) -> Array:
        return (self.scale * noise) ** 2

    def traces(self) -> Array:
        return self.scale @ self.scale.T

    def crossed(self, noise: Array) -> Array:
        return gram(self.scale * noise)

    def fourth_pairs(self, noise: Array) -> Array:
        return gram(self.scale * noise)

    def squared_covariance(self) -> Array:
        return np.sum(self.scale**4, axis=1)

    def restricted(self, mask: Array) -> Diagonal:
        return Diagonal(self.scale * mask)


@dataclass(frozen=True, eq=False)
class Masked:
    """A_b = diag(scale_b) matrixᵀ: ``scale`` (example, unit), ``matrix`` (noise, unit), the same for all examples."""

    scale: Array
    matrix: Array

    def __post_init__(self) -> None:
        _check("scale", self.scale, 2)
        _check("matrix", self.matrix, 2)
        if self.scale.shape[1] != self.matrix.shape[1]:
            raise ValueError(
                "scale must be (example, unit) and matrix (noise, unit) with the same unit, "
                f"got {self.scale.shape} and {self.matrix.shape}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.scale.shape[0], self.scale.shape[1]

    def pull(self, gradient: Array) -> Array:
        return (self.scale * gradient) @ self.matrix.T

    def push(self, noise: Array) -> Array:
        return self.scale * (noise @ self.matrix)

    def diagonal(self) -> Array:
        return self.scale**2 * np.sum(self.matrix**2, axis=0)

    def fourth(self, noise: Array) -> Array:
        return self.scale**2 * (noise**2 @ self.matrix**2)

    def traces(self) -> Array:
        return gram(self.scale * np.sqrt(np.sum(self.matrix**2, axis=0)))

    def crossed(self, noise: Array) -> Array:
        # (A_c a_b)_u (A_b a_c)_u = s_cu (Mᵀa_b)_u s_bu (Mᵀa_c)_u: the scales are swapped.
        return gram(self.push(noise))

    def fourth_pairs(self, noise: Array) -> Array:
        return _fourth_pairs(self._rows, self.shape, noise)

    def squared_covariance(self) -> Array:
        square = self.scale**2
        return np.sum(square * (square @ (self.matrix.T @ self.matrix) ** 2), axis=1)

    def restricted(self, mask: Array) -> Masked:
        return Masked(self.scale, self.matrix * mask[:, None])

    def _rows(self, units: slice) -> Array:
        return self.scale[:, units, None] * self.matrix.T[units]


@dataclass(frozen=True, eq=False)
class Dense:
    """A_b = array_b: ``array`` (example, unit, noise)."""

    array: Array

    def __post_init__(self) -> None:
        _check("array", self.array, 3)

    @property
    def shape(self) -> tuple[int, int]:
        return self.array.shape[0], self.array.shape[1]

    def pull(self, gradient: Array) -> Array:
        return np.matmul(gradient[:, None, :], self.array)[:, 0]

    def push(self, noise: Array) -> Array:
        pushed: Array = np.matmul(self.array, noise[..., None])[..., 0]
        return pushed

    def diagonal(self) -> Array:
        return np.einsum("bun,bun->bu", self.array, self.array)

    def fourth(self, noise: Array) -> Array:
        return np.matmul(self.array**2, noise[:, :, None] ** 2)[:, :, 0]

    def traces(self) -> Array:
        return gram(self.array.reshape(len(self.array), -1))

    def crossed(self, noise: Array) -> Array:
        return _crossed(self._rows, self.shape, noise)

    def fourth_pairs(self, noise: Array) -> Array:
        return _fourth_pairs(self._rows, self.shape, noise)

    def squared_covariance(self) -> Array:
        wide = self.array if self.array.shape[1] < self.array.shape[2] else self.array.transpose(0, 2, 1)
        return np.array([np.sum(gram(matrix) ** 2) for matrix in wide])

    def restricted(self, mask: Array) -> Dense:
        return Dense(self.array * mask)

    def _rows(self, units: slice) -> Array:
        return self.array[:, units]


@dataclass(frozen=True, eq=False)
class LowRank:
    """A_b = left_b right_bᵀ: ``left`` (example, unit, mode), ``right`` (example, noise, mode)."""

    left: Array
    right: Array

    def __post_init__(self) -> None:
        _check("left", self.left, 3)
        _check("right", self.right, 3)
        if self.left.shape[::2] != self.right.shape[::2]:
            raise ValueError(
                "left must be (example, unit, mode) and right (example, noise, mode) with the same example and mode, "
                f"got {self.left.shape} and {self.right.shape}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.left.shape[1]

    def pull(self, gradient: Array) -> Array:
        return np.matmul(self.right, np.matmul(gradient[:, None, :], self.left).transpose(0, 2, 1))[:, :, 0]

    def push(self, noise: Array) -> Array:
        pushed: Array = np.matmul(self.left, np.matmul(noise[..., None, :], self.right).swapaxes(-1, -2))[..., 0]
        return pushed

    def diagonal(self) -> Array:
        return self._weighted(np.ones(self.right.shape[:2]))

    def fourth(self, noise: Array) -> Array:
        return self._weighted(noise**2)

    def traces(self) -> Array:
        return _pairs(self._rows, self.shape, self.right.shape[1], lambda rows: gram(rows.reshape(len(rows), -1)))

    def crossed(self, noise: Array) -> Array:
        return _crossed(self._rows, self.shape, noise)

    def fourth_pairs(self, noise: Array) -> Array:
        return _fourth_pairs(self._rows, self.shape, noise)

    def squared_covariance(self) -> Array:
        # ‖A Aᵀ‖_F² = tr (LᵀL RᵀR)².
        inner = np.matmul(self.left.transpose(0, 2, 1), self.left) @ np.matmul(
            self.right.transpose(0, 2, 1), self.right
        )
        return np.einsum("bmn,bnm->b", inner, inner)

    def restricted(self, mask: Array) -> LowRank:
        return LowRank(self.left, self.right * mask[:, None])

    def _weighted(self, weights: Array) -> Array:
        """Σ_j w_j A_uj² = L_u (Rᵀ diag(w) R) L_uᵀ for weights (example, noise)."""
        inner = np.matmul((self.right * weights[:, :, None]).transpose(0, 2, 1), self.right)
        return np.einsum("bum,bum->bu", np.matmul(self.left, inner), self.left)

    def _rows(self, units: slice) -> Array:
        return np.matmul(self.left[:, units], self.right.transpose(0, 2, 1))


def gram(vectors: Array) -> Array:
    """Inner products of the rows of (example, unit), (example, example)."""
    return vectors @ vectors.T


def _crossed(rows: Callable[[slice], Array], shape: tuple[int, int], noise: Array) -> Array:
    def part(matrices: Array) -> Array:
        applied = np.matmul(matrices, noise.T)  # (example b, unit, example c): (A_b a_c)_u
        return np.einsum("buc,cub->bc", applied, applied)

    return _pairs(rows, shape, noise.shape[1] + shape[0], part)


def _fourth_pairs(rows: Callable[[slice], Array], shape: tuple[int, int], noise: Array) -> Array:
    def part(matrices: Array) -> Array:
        return gram((matrices * noise[:, None, :]).reshape(len(matrices), -1))

    return _pairs(rows, shape, noise.shape[1], part)


def _pairs(
    rows: Callable[[slice], Array], shape: tuple[int, int], per_unit: int, part: Callable[[Array], Array]
) -> Array:
    """Adds up what every unit contributes, (example, example), a few rows of A (example, unit, noise) at a time."""
    examples, units = shape
    step = max(1, CHUNK_ELEMENTS // max(1, examples * per_unit))
    total = np.zeros((examples, examples))
    for start in range(0, units, step):
        total += part(rows(slice(start, start + step)))
    return total


def _check(name: str, array: Array, ndim: int) -> None:
    if array.ndim != ndim or array.dtype != np.float64:
        raise ValueError(f"{name} must have {ndim} dimensions of float64, got {array.ndim} of {array.dtype}")
