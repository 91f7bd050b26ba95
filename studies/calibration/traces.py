"""How often the interval of the curvature's trace, and of the effective rank, holds the truth (`fganalysis.progress`).

Curvature matrices are written out. Everything else is that of `fganalysis.progress`: random directions, and the part of
the trace that is known exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fganalysis.measuring.network_curvature import averaged_over_probes, of_network
from fganalysis.measuring.second_derivatives import Curvature
from fganalysis.measuring.ways_to_products import Matrix
from fganalysis.results import schema
from fganalysis.statistics.intervals import Estimate
from studies.calibration.counting import LEVELS, counted
from studies.calibration.estimators import Network, captured


@dataclass(frozen=True)
class Case:
    """A curvature matrix of a tanh network; with more directions than it has weights its trace would be exact."""

    sizes: tuple[int, ...]
    matrix: Matrix
    guesses: tuple[int, ...]


CASES = {
    "Hessian, 392 weights": Case((8, 16, 12, 6), "hessian", (64, 256)),
    "Gauss–Newton, 1072 weights": Case((10, 24, 26, 8), "gauss_newton", (64, 256, 1024)),
}


@dataclass(frozen=True, eq=False)
class Written:
    """A symmetric matrix in place of a `Curvature`, as the factors of its eigenvalues that are not zero."""

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> Written:
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
        kept = values.abs() > 1e-12 * values.abs().max()
        if 2 * int(kept.sum()) > len(values):  # Nothing is saved.
            return cls((matrix + matrix.T) / 2, torch.eye(0, dtype=matrix.dtype))
        return cls(vectors[:, kept], values[kept, None] * vectors[:, kept].T)

    def products(self, vectors: Tensor) -> Tensor:
        images = vectors @ self.left
        return images @ self.right if len(self.right) else images

    def forms(self, vectors: Tensor) -> Tensor:
        return (vectors * self.products(vectors)).sum(-1).double()


def counted_traces(name: str, repeats: int, n_guesses: int, seed: int, device: str) -> xr.Dataset:
    """How often each interval held the truth, over (quantity, space, layer), layers numbered and the whole last."""
    case = CASES[name]
    snapshot = captured(Network(case.sizes, activation=torch.nn.Tanh), device)
    real = Curvature(snapshot, case.matrix)
    axes = torch.eye(real.n_weights, dtype=torch.float64, device=snapshot.device)
    written = cast(Curvature, Written.of(real.products(axes)))
    everything = of_network(snapshot, real, real.n_weights, seed)
    seeds = np.random.SeedSequence(seed).generate_state(repeats, np.uint32)
    found = np.stack([of_network(snapshot, written, n_guesses, int(one)).curvature.traces for one in seeds])
    whole = np.concatenate([found, found.sum(-1, keepdims=True)], axis=-1)
    trace = averaged_over_probes(np.moveaxis(whole, 1, -1), exact=False)
    per_slope = everything.squared_gradient / everything.gradient_curvature
    estimates = {"curvature_trace": (trace, everything.trace().value)}
    estimates["effective_rank"] = (
        trace.scaled(np.abs(per_slope)).where(per_slope > 0),
        np.where(per_slope > 0, everything.trace().value * per_slope, np.nan),
    )
    rows = []
    for estimate, exact in estimates.values():
        value, se, low, high = (part[:, None] for part in (estimate.value, estimate.se, estimate.low, estimate.high))
        flags = [np.broadcast_to(flag, estimate.value.shape)[:, None] for flag in (estimate.wide, estimate.tail)]
        one = Estimate(value, se, low, high, *flags)
        rows.append(counted([(one, np.full(value.shape, np.nan))], exact[None]))
    dataset = xr.concat(rows, dim="quantity").assign_coords(quantity=list(estimates))
    layers = [*snapshot.layers, schema.ALL_LAYERS]
    return dataset.assign_coords({schema.SPACE: ["weight"], schema.LAYER: layers, "level": LEVELS})
