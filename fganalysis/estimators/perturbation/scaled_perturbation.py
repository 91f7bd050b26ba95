"""Scaled perturbation: directions whose entries have variances of their own, as of a diagonal preconditioner.

    V = Σ^½ u,  u ~ law over all weights,  Σ diagonal        Ĝ_l = t V_l,  t = Σ_l ⟨V_l, G_l⟩

The mean is Σ G, a preconditioned gradient. This is biased unless Σ = I, and can still be the better step. It is what
HiZOO does with Σ the inverse of an estimated diagonal of the Hessian, which must not depend on the same u.

Random: u. Biased: the mean is Σ G. Sources: Zhao et al. 2024 (HiZOO); Malladi et al. 2023 (MeZO, appendix: Σ by the
norms of the parameters).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.arguments import described, listed
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.directional import check_switches
from fganalysis.estimators.guesses import WeightEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise, drawn
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.perturbation.weight_directions import guess_along_weights, parameters_of
from fganalysis.estimators.tangents_of_weights import passes_of_tangents

Scales = Mapping[str, float | Tensor]


@dataclass(frozen=True)
class ScaledPerturbation:
    """Ĝ = (V·G) V, V = Σ^½ u; ``noise`` is the law of u, one noise vector a layer.

    scales: Σ by the name of a parameter, a number or a tensor that can be expanded to the parameter's shape; 1 where a
    parameter has none. By default every parameter has the mean square of its weights, over that of all weights: each is
    moved in proportion to its size, and a parameter of zeros is not moved.

    ``layers`` is a switch of docs/notation.md#the-three-switches.

    Raises:
        ValueError: scales that are no mapping of names to finite numbers of at least 0; at a call, names that are not
            those of trainable parameters, tensors of other shapes, or only zeros.
    """

    scales: Scales | None = None
    noise: Noise = GAUSSIAN
    layers: Layers = "joint"

    def __post_init__(self) -> None:
        if self.scales is not None:
            _check_scales(self.scales)
        check_switches(self)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        return guess_along_weights(self, snapshot, n_guesses, generator)

    def draw(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """V, (guess, unit, input) a layer."""
        return tuple(
            drawn(self.noise, (n_guesses, *layer.weight.shape), generator, layer.weight, vector_dims=2) * scale.sqrt()
            for layer, scale in zip(snapshot.weights, self.variances(snapshot), strict=True)
        )

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        return passes_of_tangents(n_guesses, self.layers, snapshot)

    def variances(self, snapshot: Snapshot) -> tuple[Tensor, ...]:
        """Σ, (unit, input) a layer.

        Raises:
            ValueError: as the class says of a call.
        """
        scales = _by_size(snapshot) if self.scales is None else self.scales
        shapes = {part.name: part.shape for layer in snapshot.weights for part in parameters_of(layer)}
        unknown = [name for name in scales if name not in shapes]
        if unknown:
            raise ValueError(
                f"scales has the name {described(unknown[0])}, which is no trainable parameter: {listed(shapes)}"
            )
        by_layer = []
        for layer in snapshot.weights:
            expanded = {
                part.name: _expanded(part.name, scales.get(part.name, 1.0), part.shape, layer.weight)
                for part in parameters_of(layer)
            }
            by_layer.append(layer.columns(expanded))
        if not any(bool(scale.any()) for scale in by_layer):
            raise ValueError("every scale is zero, so that no weight would be moved: give scales above zero")
        return tuple(by_layer)


def _by_size(snapshot: Snapshot) -> dict[str, Tensor]:
    """The mean square of each parameter's weights over that of all weights."""
    weights = {name: w for layer in snapshot.weights for name, w in layer.by_parameter(layer.weight).items()}
    # Relative to the largest weight, whose square may be beyond the data type.
    largest = torch.stack([weight.abs().max() for weight in weights.values()]).max()
    if not bool(largest):
        return {name: torch.ones_like(largest) for name in weights}
    squares = {name: (weight / largest).square().sum() for name, weight in weights.items()}
    mean = sum(squares.values()) / sum(weight.numel() for weight in weights.values())
    return {name: squares[name] / weight.numel() / mean for name, weight in weights.items()}


def _expanded(name: str, scale: float | Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    given = torch.as_tensor(scale, dtype=like.dtype, device=like.device)
    fits = given.ndim <= len(shape) and all(
        a in (1, b) for a, b in zip(reversed(given.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ValueError(f"scales of {name!r} must be a number or a tensor for {tuple(shape)}, got {described(scale)}")
    return given.expand(shape)


def _check_scales(scales: object) -> None:
    words = "scales must be a mapping of parameter names to finite numbers or tensors of at least 0"
    if not isinstance(scales, Mapping) or not all(isinstance(name, str) for name in scales):
        raise ValueError(f"{words}, got {described(scales)}")
    for name, scale in scales.items():
        number = isinstance(scale, int | float | Tensor) and not isinstance(scale, bool)
        values = torch.as_tensor(scale) if number else torch.tensor(torch.nan)
        if not bool((values.isfinite() & (values >= 0)).all()):
            raise ValueError(f"{words}, got {described(scale)} for {name!r}")
