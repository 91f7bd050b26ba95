"""Singular values, effective ranks and overlaps of a snapshot's gradients, inputs and Jacobians, tap by tap.

For each tap the singular values σ_i and effective ranks of four matrices:

    activation_gradient g (example, unit)       layer_input x (example, input)
    weight_gradient G = gᵀx (unit, input)       upstream_jacobian J_b (next_unit, unit), a mean over examples

and, for each example b, the overlap of the activation gradient with the k leading right singular vectors V_k of J_b,

    o_k² = ‖V_kᵀ g_b‖² / ‖g_b‖²

A random subspace of R^d has the overlap k/d on average. A random subspace of the row space of J_b, of r dimensions, has
k/r, and g_b lies in this row space in any network, because g_b = J_bᵀ g_{l+1,b}. A high overlap with a dominant
subspace is not evidence that descent within it works (Song et al. 2025). The vectors of equal singular values are an
arbitrary basis of their span; all singular values of an orthogonal weight are equal. o_k² is then the expectation for a
random basis of the span, which rises linearly in k. Ranks and overlaps have no unit, and singular values have the unit
of their matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.upstream import UpstreamJacobian
from fganalysis.capturing.upstream_modes import UpstreamModes
from fganalysis.capturing.weight_maps.matrix import MatrixMap
from fganalysis.measuring import subspace
from fganalysis.measuring.subspace.equal_singular_values import rounding_gap, spread_evenly
from fganalysis.measuring.subspace.singular_modes import kept_modes
from fganalysis.results import schema

Array = NDArray[np.float64]


def upstream_modes(jacobian: UpstreamJacobian, gradient: Tensor) -> UpstreamModes:
    """The decomposition of every J_b = W diag(d_b) without its inactive units (d = 0), in double precision.

    gradient: (example, unit). LAPACK's singular value decomposition where the network is in double precision, otherwise
    its eigenvectors of J_bᵀJ_b. What counts as a zero singular value: see `fganalysis.subspace.modes`. Needs example ·
    unit · mode numbers; a width of 1024 takes .05 s an example and core in single precision, .11 s in double.
    """
    example_modes = [
        _active_modes(jacobian.weight, derivative, g)
        for derivative, g in zip(jacobian.derivative, gradient, strict=True)
    ]
    n_modes = max(1, *(len(values) for values, *_ in example_modes))
    values = gradient.new_zeros(len(example_modes), n_modes, dtype=torch.float64)
    components = torch.zeros_like(values)
    tied = torch.zeros_like(values, dtype=torch.bool)
    parts = gradient.new_zeros(*gradient.shape, n_modes)
    for example, (singular_values, squares, part, distinct) in enumerate(example_modes):
        values[example, : len(singular_values)] = singular_values
        components[example, : len(singular_values)] = squares
        parts[example, :, : len(singular_values)] = part
        tied[example, : len(distinct)] = ~distinct
    return UpstreamModes(
        values.cpu().numpy(),
        parts.cpu().numpy(),
        components.cpu().numpy(),
        tied.cpu().numpy(),
        gradient.double().square().sum(1).cpu().numpy(),
        min(jacobian.weight.shape),
    )


def _active_modes(weight: Tensor, derivative: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One example's nonzero σ (mode,), components (mode,), parts (unit, mode) and which σ are distinct (mode − 1,)."""
    active = derivative != 0
    rows = weight[:, active] * derivative[active]
    if not bool(rows.any()):
        nothing = weight.new_zeros(0)
        return nothing, nothing, weight.new_zeros(len(derivative), 0), nothing.bool()
    modes = subspace.modes(rows) if rows.dtype == torch.float64 else _modes_of_gram(rows)
    rank = int(modes.rank)
    kept, distinct = modes.vectors[:, :rank], modes.distinct[: rank - 1]
    along = gradient[active].double() @ kept
    part = weight.new_zeros(len(derivative), rank)
    part[active] = spread_evenly(kept * along, distinct).to(weight.dtype)
    return modes.values[:rank], spread_evenly(along.square(), distinct), part, distinct


def _modes_of_gram(rows: Tensor) -> subspace.Modes[Tensor]:
    """Modes by eigenvectors of the Gram matrix in double precision, less than half the time of `subspace.modes`.

    It resolves singular values above √unit · 1.5e-8 of the largest. What single precision counts as zero lies above.
    """
    doubled = rows.double()
    squares, vectors = torch.linalg.eigh(doubled.mT @ doubled)
    precision = torch.finfo(rows.dtype).eps
    zero, gap = max(rows.shape) * precision, rounding_gap(min(rows.shape), precision)
    return kept_modes(squares.flip(0).clamp(min=0).sqrt(), vectors.flip(1), zero, gap, doubled)


def spectra(snapshot: Snapshot, modes: Sequence[UpstreamModes]) -> xr.Dataset:
    """Singular values, energies and effective ranks over (matrix, layer, mode); overlaps over (layer, mode).

    modes: `upstream_modes` of every tap but the last, or empty if the upstream Jacobians are unknown. Entries about
    unknown Jacobians are NaN, and so are those of the output tap and of layer "all".
    """
    layers = [*snapshot.layers, schema.ALL_LAYERS]
    values = _singular_values(snapshot, modes)
    n_modes = max(
        *(len(singular_values[0]) for column in values for singular_values in column if singular_values is not None),
        *(layer_modes.smaller_side for layer_modes in modes),
    )
    ranked = {name: np.full((len(schema.MATRICES), len(layers)), np.nan) for name in schema.RANKS}
    curves = {name: np.full((*next(iter(ranked.values())).shape, n_modes), np.nan) for name in schema.MODE_CURVES}
    for layer, column in enumerate(values):
        for matrix, singular_values in enumerate(column):
            if singular_values is None:
                continue
            for name, numbers in _ranks(singular_values).items():
                ranked[name][matrix, layer] = _mean(numbers)
            length = singular_values.shape[1]
            curves["singular_value"][matrix, layer, :length] = singular_values.mean(0)
            curves["energy"][matrix, layer, :length] = _mean(subspace.energy_curve(singular_values))
    overlaps = {name: np.full((len(layers), n_modes), np.nan) for name in schema.OVERLAPS}
    for layer, layer_modes in enumerate(modes):
        for name, curve in _overlaps(layer_modes, snapshot.taps[layer].units, n_modes).items():
            overlaps[name][layer] = curve
    grid = (schema.MATRIX, schema.LAYER)
    return xr.Dataset(
        {name: (grid, numbers) for name, numbers in ranked.items()}
        | {name: ((*grid, schema.MODE), numbers) for name, numbers in curves.items()}
        | {name: ((schema.LAYER, schema.MODE), numbers) for name, numbers in overlaps.items()},
        coords={
            schema.STEP: snapshot.step,
            schema.MATRIX: list(schema.MATRICES),
            schema.LAYER: layers,
            schema.MODE: np.arange(1, n_modes + 1),
        },
    )


def _singular_values(snapshot: Snapshot, modes: Sequence[UpstreamModes]) -> list[list[Array | None]]:
    """Singular values (row, mode) of each layer and matrix: one row, or for the Jacobian a row for each example."""
    columns = []
    for number, layer in enumerate(snapshot.weights):
        matrices: list[Tensor | None] = [None, None, snapshot.weight_gradients[number]]
        if len(layer.taps) == 1:
            tap = snapshot.taps[layer.taps[0]]
            matrices[0] = snapshot.gradients[layer.taps[0]]
            matrices[1] = tap.inputs if isinstance(tap.weights, MatrixMap) else None
        column: list[Array | None] = [
            None if m is None else subspace.singular_values(m).cpu().numpy()[None] for m in matrices
        ]
        jacobian = None
        if number < len(modes):
            layer_modes = modes[number]
            jacobian = np.pad(
                layer_modes.values, ((0, 0), (0, max(0, layer_modes.smaller_side - layer_modes.values.shape[1])))
            )
        columns.append([*column, jacobian])
    return columns


def _ranks(values: Array) -> dict[str, Array]:
    return {
        "stable_rank": subspace.stable_rank(values),
        "entropy_rank": subspace.entropy_rank(values),
        "participation_ratio": subspace.participation_ratio(values),
        "srank": subspace.srank(values).astype(float),
    } | {name: subspace.modes_for_energy(values, share).astype(float) for name, share in schema.ENERGY_SHARES.items()}


def _overlaps(modes: UpstreamModes, units: int, n_modes: int) -> dict[str, Array]:
    """Mean, spread and standard error over examples of o_k², and what random subspaces give, each (mode,)."""
    overlap = modes.overlap[modes.squared_gradient > 0]
    overlap = np.pad(overlap, ((0, 0), (0, n_modes - overlap.shape[1])), mode="edge")
    ks = np.arange(1, n_modes + 1)
    random = subspace.random_overlap(np.minimum(ks, units), units)
    rank = modes.rank[modes.squared_gradient > 0, None]
    spread = overlap.std(0, ddof=1) if len(overlap) > 1 else np.full(n_modes, np.nan)
    return {
        "overlap": _mean(overlap),
        "overlap_spread": spread,
        "overlap_se": spread / np.sqrt(max(len(overlap), 1)),
        "random_overlap": random.mean,
        "random_overlap_spread": random.spread,
        "random_overlap_in_range": _mean(np.minimum(ks / np.maximum(rank, 1), 1.0)),
    }


def _mean(rows: Array) -> Array:
    """Mean over the rows without NaN; NaN if there is no such row."""
    known = rows[np.isfinite(rows).all(tuple(range(1, rows.ndim)))]
    return known.mean(0) if len(known) else np.full(rows.shape[1:], np.nan)
