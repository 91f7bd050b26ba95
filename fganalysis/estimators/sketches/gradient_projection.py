"""Projection of the gradient on the leading directions of an older one: a biased compression of an optimiser's memory.

    Ĝ = G P Pᵀ,   P (input, k) the k leading right singular vectors of an older gradient of the layer

Nothing is random. The squared bias ‖G − G P Pᵀ‖² is the energy of G outside of the older gradient's subspace, and the
variance is zero. `RandomProjection` is what a subspace of that size keeps that knows nothing of the gradient.
Sources: docs/mathematics.md#projections-of-the-gradient; Zhao et al. 2024 (GaLore, which projects the shorter side).
Biases and layers that are no matrix stay exact (`fganalysis.estimators.sketches.layers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.arguments import check_kind, check_whole, described
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.factored import FactoredEstimates, Product, WrittenOut, summed
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.sketches.layers import SketchedLayer, sketched, sketched_layers


def gradients_to_project_on(snapshot: Snapshot) -> dict[str, Tensor]:
    """G of every layer that is a matrix, (unit, input), biases left out: what `GradientProjection` takes for older."""
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    pairs = zip(snapshot.layers, sketched_layers(snapshot), strict=True)
    return {name: layer.of_weights.clone() for name, layer in pairs if layer is not None}


@dataclass(frozen=True)
class GradientProjection:
    """Ĝ = G P Pᵀ with the ``k`` leading right singular vectors of ``older``; fewer where it has no more.

    Args:
        k: at least 1; a layer of fewer inputs keeps all of its gradient.
        older: (unit, input) by the name of every layer that is a matrix, such as `gradients_to_project_on` makes of the
            snapshot of an earlier step. None takes the gradient itself, an age of zero.

    Raises:
        ValueError: a wrong setting; at a call, an older gradient that is missing or of another shape.
    """

    k: int = 1
    older: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        check_whole("k", self.k)
        if self.older is None:
            return
        matrices = isinstance(self.older, Mapping) and all(
            isinstance(name, str) and isinstance(part, Tensor) and part.ndim == 2 and bool(part.isfinite().all())
            for name, part in self.older.items()
        )
        if not matrices:
            raise ValueError(
                "older must be None or a mapping from layer names to finite tensors (unit, input), such as "
                f"fga.estimators.gradients_to_project_on(snapshot) makes, got {described(self.older)}"
            )

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> FactoredEstimates:
        basis = self.directions(snapshot)
        names = {id(layer): name for name, layer in zip(snapshot.layers, sketched_layers(snapshot), strict=True)}

        def guess(layer: SketchedLayer) -> Product | WrittenOut:
            directions = basis[names[id(layer)]]
            product = Product((directions @ layer.of_weights.T).unsqueeze(0), directions.unsqueeze(0))
            single = summed([product])
            if isinstance(single, WrittenOut):
                return WrittenOut(single.guesses.expand(n_guesses, -1, -1))
            return Product(single.left.expand(n_guesses, -1, -1), single.right.expand(n_guesses, -1, -1))

        return sketched(snapshot, n_guesses, guess, lambda layer: 0)

    def directions(self, snapshot: Snapshot) -> dict[str, Tensor]:
        """Pᵀ of every layer that is a matrix, (direction, input), orthonormal.

        Raises:
            ValueError: an older gradient that is missing or of another shape.
        """
        # Beside the older gradients, so that no others have their address while the snapshot remembers this.
        key = ("directions of older gradients", id(self.older), int(self.k))
        kept: tuple[object, dict[str, Tensor]] = snapshot.remember(
            key, lambda: (self.older, self._directions(snapshot))
        )
        return kept[1]

    def _directions(self, snapshot: Snapshot) -> dict[str, Tensor]:
        present = gradients_to_project_on(snapshot)
        made = {}
        for name, gradient in present.items():
            older = gradient if self.older is None else self.older.get(name)
            if older is None or older.shape != gradient.shape:
                there = "none" if older is None else f"one of shape {tuple(older.shape)}"
                raise ValueError(
                    f"older must have a gradient of shape {tuple(gradient.shape)} for layer {name!r}, got {there}"
                )
            made[name] = _leading(older.to(gradient.device).double(), int(self.k)).to(gradient.dtype)
        return made

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        return Passes(forward=1, backward=1, beside=("projections, and a decomposition of each older gradient",))


def _leading(matrix: Tensor, k: int) -> Tensor:
    """The right singular vectors of the k largest singular values that are no rounding errors, (direction, input)."""
    _, values, right = torch.linalg.svd(matrix, full_matrices=False)
    least = values[0] * max(matrix.shape) * torch.finfo(torch.float32).eps
    return right[: min(k, int((values > least).sum()))]
