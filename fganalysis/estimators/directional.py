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
from fganalysis.capturing.jacobian import Jacobian, by_example, from_examples
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers, Tap
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.noise import Noise, check_noise, drawn
from fganalysis.estimators.passes import Passes

Slope = Literal["example", "batch"]


@dataclass(frozen=True)
class Factor:
    """The A of a tap: ``apply`` maps noise (guess, noise row, noise_units) to directions (guess, row, unit).

    noise_tap: the tap in whose rows the noise is drawn; None for the tap itself.
    """

    noise_units: int
    apply: Callable[[Tensor], Tensor]
    noise_tap: Tap | None = None


def identity(units: int) -> Factor:
    """A = I, the factor of every estimator at the output tap."""
    return Factor(units, lambda noise: noise)


def factors_of(snapshot: Snapshot, make: Callable[[Jacobian], Factor]) -> list[Factor]:
    """A factor a tap, made of its upstream Jacobian; the identity at an output tap, which has none."""
    pairs = zip(snapshot.taps, snapshot.jacobians, strict=True)
    return [identity(tap.units) if jacobian is None else make(jacobian) for tap, jacobian in pairs]


def decomposed(snapshot: Snapshot) -> list[Jacobian | None]:
    """The Jacobians of single examples, a tap each; None at an output tap, and where a tap's rows serve all examples.

    Such a tap, as that of a positional embedding, has no Jacobian of an example. Its noise is not mapped, as that of an
    output tap.
    """
    return [
        None if tap.owners is None and not snapshot.interaction else jacobian
        for tap, jacobian in zip(snapshot.taps, snapshot.jacobians, strict=True)
    ]


def factors_of_decomposed(snapshot: Snapshot, factors: Sequence[Factor]) -> list[Factor]:
    """A factor a tap: ``factors`` for the taps that `decomposed` names, in their order; the identity elsewhere."""
    remaining = iter(factors)
    pairs = zip(snapshot.taps, decomposed(snapshot), strict=True)
    return [identity(tap.units) if jacobian is None else next(remaining) for tap, jacobian in pairs]


def per_example(jacobian: Jacobian, matrices: Tensor) -> Factor:
    """The factor A_e = matrices_eᵀ of each example, (example, number at the next tap, number)."""

    def apply(noise: Tensor) -> Tensor:
        numbers = by_example(jacobian.following, noise)
        return from_examples(jacobian.tap, torch.bmm(numbers.transpose(0, 1), matrices).transpose(0, 1))

    return Factor(jacobian.following.units, apply, jacobian.following)


class SlopeSettings(Protocol):
    """The field that says how many passes take the slopes."""

    @property
    def layers(self) -> Layers: ...


class Settings(SlopeSettings, Protocol):
    """The fields that every estimator of this family has."""

    @property
    def noise(self) -> Noise: ...
    @property
    def shared(self) -> bool: ...
    @property
    def slope(self) -> Slope: ...


def guess_along(
    settings: Settings, snapshot: Snapshot, factors: Sequence[Factor], n_guesses: int, generator: torch.Generator
) -> ActivationEstimates:
    """Draws ``n_guesses`` directions for each tap and scales them by their slopes. factors: one for each tap."""
    check_switches(settings)
    if settings.slope == "example":
        snapshot.check_examples_apart()
    directions = []
    for tap, factor in zip(snapshot.taps, factors, strict=True):
        noise = _noise(settings, factor.noise_tap or tap, factor.noise_units, n_guesses, generator)
        directions.append(factor.apply(noise))
    slopes = snapshot.slopes(directions, settings.layers, by_example=settings.slope == "example")
    per_tap = slopes.expand(-1, len(directions), -1).unbind(1)
    guesses = []
    for tap, direction, slope in zip(snapshot.taps, directions, per_tap, strict=True):
        if settings.slope == "example":
            # A row that serves all examples has the slope of the batch.
            slope = slope.sum(-1, keepdim=True) if tap.owners is None else tap.owners.spread(slope)
        factor_of_row = slope.unsqueeze(-1)
        # In place where noise is not shared: allocating an array of this size takes longer than the arithmetic.
        guesses.append(direction * factor_of_row if settings.shared else direction.mul_(factor_of_row))
    return ActivationEstimates(tuple(guesses))


def passes_along(
    settings: SlopeSettings, snapshot: Snapshot, n_guesses: int, products: int = 0, beside: Sequence[str] = ()
) -> Passes:
    """A forward pass with a tangent a guess, or one a tap and guess, and the weight gradients of the mean guess.

    products: that each guess takes beside, for its directions.
    """
    passes = 1 if settings.layers == "joint" else len(snapshot.taps)
    return Passes(1, n_guesses * passes, products=1 + n_guesses * products, beside=tuple(beside))


def _noise(settings: Settings, tap: Tap, units: int, n_guesses: int, generator: torch.Generator) -> Tensor:
    """Noise (guess, row, noise_units), with ``shared`` the same for every example."""
    if not settings.shared or tap.owners is None:
        return drawn(settings.noise, (n_guesses, len(tap.outputs), units), generator, tap.outputs)
    rows_each = tap.owners.rows_each
    noise = drawn(settings.noise, (n_guesses, rows_each, units), generator, tap.outputs)
    return tap.owners.from_examples(noise.unsqueeze(1).expand(-1, tap.owners.n_examples, -1, -1))


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
