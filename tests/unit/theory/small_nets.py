"""Small networks as plain NumPy arrays, their energy curves, and the exact moments of guesses on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from theory.energy_curves import Output, OverlapCurve, UpstreamSpectrum
from theory.subspace import Quantities

Array = NDArray[np.float64]

NAMES = ("squared_bias", "variance", "mse", "efficiency", "best_scale")


@dataclass(frozen=True)
class Net:
    """Jacobians (example, next_unit, unit), gradients (example, unit) and inputs (example, input), tap by tap."""

    jacobians: list[Array]
    gradients: list[Array]
    inputs: list[Array]

    @property
    def n_examples(self) -> int:
        return len(self.gradients[0])

    def output(self) -> Output:
        return Output(np.sum(self.gradients[-1] ** 2, axis=1), self.gradients[-1].shape[1])

    def svd(self, layer: int) -> tuple[Array, Array, Array]:
        """Left vectors, singular values and right vectors (example, unit, mode), the vectors zero beyond the rank."""
        left, values, right = np.linalg.svd(self.jacobians[layer], full_matrices=False)
        kept = values > 1e-12 * values[:, :1]
        return left * kept[:, None], values * kept, np.swapaxes(right, 1, 2) * kept[:, None]

    def curves(self) -> list[OverlapCurve]:
        curves = []
        for layer, gradient in enumerate(self.gradients[:-1]):
            _, values, right = self.svd(layer)
            components = np.einsum("bu,bum->bm", gradient, right) ** 2
            squared = np.sum(gradient**2, axis=1)
            zero = np.full_like(components, np.nan)
            overlap = np.divide(np.cumsum(components, 1), squared[:, None], out=zero, where=squared[:, None] > 0)
            curves.append(OverlapCurve(overlap, squared, np.sum(values > 0, 1)))
        return curves

    def parts(self, layer: int) -> tuple[Array, NDArray[np.bool_]]:
        """v_i v_iᵀg (example, unit, mode), and no two singular values equal."""
        right = self.svd(layer)[2]
        along = np.einsum("bu,bum->bm", self.gradients[layer], right)
        return right * along[:, None], np.zeros(along.shape, dtype=bool)

    def spectra(self) -> list[UpstreamSpectrum]:
        spectra = []
        for layer, gradient in enumerate(self.gradients[:-1]):
            _, values, right = self.svd(layer)
            components = np.einsum("bu,bum->bm", gradient, right) ** 2
            spectra.append(UpstreamSpectrum(values, components, np.sum(gradient**2, axis=1)))
        return spectra

    def projectors(self, k: int) -> list[Array]:
        """A of the orthogonal guess, (example, unit, noise), tap by tap."""
        factors = []
        for layer in range(len(self.jacobians)):
            left, _, right = self.svd(layer)
            factors.append(np.einsum("bum,bnm->bun", right[..., :k], left[..., :k]))
        return [*factors, self.identity()]

    def transposed(self) -> list[Array]:
        """A of the upstream guess."""
        return [*(np.swapaxes(jacobian, 1, 2) for jacobian in self.jacobians), self.identity()]

    def identity(self) -> Array:
        units = self.gradients[-1].shape[1]
        return np.broadcast_to(np.eye(units), (self.n_examples, units, units))


def agree(predicted: Quantities, exact: Quantities) -> bool:
    pairs = [(getattr(predicted, name), getattr(exact, name)) for name in NAMES]
    return all(np.shape(p) == np.shape(e) and np.allclose(p, e, rtol=1e-9, atol=1e-10) for p, e in pairs)


passes = pytest.mark.parametrize("layers", ["joint", "separate"])


def drawn_curves(
    seed: int, n_layers: int = 2, modes: int = 5, n_examples: int = 3
) -> tuple[list[OverlapCurve], Output]:
    rng = np.random.default_rng(seed)
    curves = []
    for _ in range(n_layers):
        rank = rng.integers(0, modes + 1, n_examples)
        energy = rng.gamma(0.3, size=(n_examples, modes)) * (np.arange(modes) < rank[:, None])
        total = energy.sum(1, keepdims=True)
        overlap = np.divide(np.cumsum(energy, 1), total, out=np.full_like(energy, np.nan), where=total > 0)
        curves.append(OverlapCurve(overlap, rng.gamma(0.5, size=n_examples) * (rank > 0), rank))
    return curves, Output(rng.gamma(1.0, size=n_examples), 3)
