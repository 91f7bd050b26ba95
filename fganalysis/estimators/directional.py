"""Guesses along directions at the activations: draw ε, map it to a direction, scale the direction by its slope.

    y_l,b = A_l,b ε_l,b        ĝ_l,b = t_b y_l,b  (example slope)   or   (Σ_b t_b) y_l,b  (batch slope)

Switches (docs/notation.md#the-three-switches): ``shared`` draws one ε for the whole batch; ``slope`` is "example" or
"batch"; ``layers`` "joint" perturbs all taps in one forward pass, "separate" each tap in a pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from fganalysis.arguments import check_choice, check_flag
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.noise import Noise, check_noise, drawn

Slope = Literal["example", "batch"]


@dataclass(frozen=True)
class Factor:
    """The A_l,b of a tap: ``apply`` maps noise (guess, example, noise_units) to directions (guess, example, unit)."""

    noise_units: int
    apply: Callable[[Tensor], Tensor]


def identity(units: int) -> Factor:
    """A = I, the factor of every estimator at the output tap."""
    return Factor(units, lambda noise: noise)


def per_example(matrices: Tensor) -> Factor:
    """The factor A_b = matrices_bᵀ. matrices: (example, next_unit, unit)."""
    return Factor(matrices.shape[1], lambda noise: torch.bmm(noise.transpose(0, 1), matrices).transpose(0, 1))


class Settings(Protocol):
    """The fields that every estimator of this family has."""

    @property
    def noise(self) -> Noise: ...
    @property
    def shared(self) -> bool: ...
    @property
    def slope(self) -> Slope: ...
    @property
    def layers(self) -> Layers: ...


def guess_along(
    settings: Settings, snapshot: Snapshot, factors: Sequence[Factor], n_guesses: int, generator: torch.Generator
) -> ActivationEstimates:
    """Draws ``n_guesses`` directions for each tap and scales them by their slopes. factors: one for each tap."""
    check_switches(settings)
    directions = []
    for tap, factor in zip(snapshot.taps, factors, strict=True):
        shape = (n_guesses, 1 if settings.shared else snapshot.n_examples, factor.noise_units)
        noise = drawn(settings.noise, shape, generator, tap.outputs)
        directions.append(factor.apply(noise.expand(n_guesses, snapshot.n_examples, -1)))
    slopes = snapshot.slopes(directions, settings.layers)
    if settings.slope == "batch":
        slopes = slopes.sum(-1, keepdim=True)
    per_layer = slopes.expand(-1, len(directions), -1).unbind(1)
    return ActivationEstimates(
        tuple(
            # In place where noise is not shared: allocating an array of this size takes longer than the arithmetic.
            direction * t.unsqueeze(-1) if settings.shared else direction.mul_(t.unsqueeze(-1))
            for direction, t in zip(directions, per_layer, strict=True)
        )
    )


def check_switches(settings: object) -> None:
    """Checks the fields noise, shared, slope and layers, as far as an estimator has them; for its ``__post_init__``.

    Raises:
        ValueError: a noise that is no law, or a value that docs/notation.md#the-three-switches does not list.
    """
    if hasattr(settings, "noise"):
        check_noise(settings.noise)
    if hasattr(settings, "shared"):
        check_flag("shared", settings.shared)
    if hasattr(settings, "slope"):
        check_choice("slope", settings.slope, ("example", "batch"))
    if hasattr(settings, "layers"):
        check_choice("layers", settings.layers, ("joint", "separate"))


def rescaled_to(directions: Tensor, norm: float) -> Tensor:
    """Each example's direction rescaled to ``norm``; a direction of zeros stays zero."""
    length = torch.linalg.vector_norm(directions, dim=-1, keepdim=True)
    return directions * torch.where(length > 0, norm / length, 0.0)
