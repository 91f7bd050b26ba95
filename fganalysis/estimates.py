"""A block of gradient estimates in factored form: its scalars and its sum, never a dense weight matrix per guess.

A guess of a weight gradient made at the activations is Ĝ = Σ_b ĝ_b x_bᵀ, so with K = X Xᵀ = FᵀF over examples

    ⟨Ĝ, G⟩ = ⟨ĝ, K g⟩        ‖Ĝ‖² = ⟨ĝ, K ĝ⟩ = ‖F ĝ‖²

and the mean over guesses of Ĝ is the mean of ĝ. Both kinds of estimates answer the same questions; shapes are
(guess, example, unit) at the activations and (guess, unit, input) at the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fganalysis.snapshot import Snapshot

Sums = tuple[Tensor, ...]


@runtime_checkable
class Estimates(Protocol):
    """What the sampler asks of a block of guesses."""

    def __len__(self) -> int:
        """Number of guesses."""

    def first(self, n_guesses: int) -> Estimates:
        """The first guesses of the block."""

    def numbers_per_guess(self) -> int:
        """How many numbers one guess is made of, summed over taps."""

    def total(self) -> Sums:
        """Sum over guesses, a tensor a tap."""

    def square_total(self) -> Sums:
        """Sum over guesses and examples of squared activation guesses, (unit,) a tap; empty for weight guesses."""

    def inner_products(self, snapshot: Snapshot) -> tuple[Tensor, Tensor]:
        """⟨ĝ, g⟩ and ‖ĝ‖², each (space, layer, guess); NaN in a space where the estimator makes no guess."""

    def error_grams(self, snapshot: Snapshot, means: Sequence[Sums]) -> Tensor:
        """Inner products between the errors (mean − gradient) of several means, (space, layer, mean, mean)."""

    def dense(self, snapshot: Snapshot) -> tuple[Tensor | None, Tensor]:
        """Guesses written out, (guess, number), at the activations (None without any there) and weights: for tests."""

    def weight_gradients(self, snapshot: Snapshot) -> list[Tensor]:
        """Mean over the guesses as weight gradients, (unit, input) a tap: what an optimiser consumes."""


@dataclass(frozen=True)
class ActivationEstimates:
    """Guesses of the activation gradients, ``guesses[tap]`` of shape (guess, example, unit), loss per activation."""

    guesses: Sums

    def __len__(self) -> int:
        return self.guesses[0].shape[0]

    def first(self, n_guesses: int) -> ActivationEstimates:
        return ActivationEstimates(tuple(guess[:n_guesses] for guess in self.guesses))

    def numbers_per_guess(self) -> int:
        return sum(guess[0].numel() for guess in self.guesses)

    def total(self) -> Sums:
        return tuple(guess.sum(0) for guess in self.guesses)

    def square_total(self) -> Sums:
        return tuple(guess.square().sum((0, 1)) for guess in self.guesses)

    def inner_products(self, snapshot: Snapshot) -> tuple[Tensor, Tensor]:
        inner: list[Tensor] = []
        norms: list[Tensor] = []
        mixed = snapshot.mixed_gradients
        for tap, gradient, kernel_gradient, guess in zip(
            snapshot.taps, snapshot.gradients, mixed, self.guesses, strict=True
        ):
            flat = guess.flatten(1)
            inner += [flat @ gradient.flatten(), flat @ kernel_gradient.flatten()]
            norms += [_squared_norm(guess), _squared_norm_in_weights(guess, tap.kernel_root)]
        shape = (len(self.guesses), 2, len(self))
        return torch.stack(inner).view(shape).transpose(0, 1), torch.stack(norms).view(shape).transpose(0, 1)

    def error_grams(self, snapshot: Snapshot, means: Sequence[Sums]) -> Tensor:
        layers = []
        for index, (tap, gradient) in enumerate(zip(snapshot.taps, snapshot.gradients, strict=True)):
            errors = torch.stack([mean[index] for mean in means]).sub_(gradient)
            in_weights = torch.matmul(tap.kernel_root, errors)
            layers.append(torch.stack([_gram(errors), _gram(in_weights)]))
        return torch.stack(layers, dim=1)

    def dense(self, snapshot: Snapshot) -> tuple[Tensor | None, Tensor]:
        weights = [guess.mT @ tap.inputs for tap, guess in zip(snapshot.taps, self.guesses, strict=True)]
        return _flat(self.guesses), _flat(weights)

    def weight_gradients(self, snapshot: Snapshot) -> list[Tensor]:
        return [guess.mean(0).T @ tap.inputs for tap, guess in zip(snapshot.taps, self.guesses, strict=True)]


@dataclass(frozen=True)
class WeightEstimates:
    """Guesses c_l V_l of weight gradients: ``directions[tap]`` (guess, unit, input), ``coefficients`` (guess, layer).

    There is no guess of the activation gradients in them, so that space is NaN.
    """

    coefficients: Tensor
    directions: Sums

    def __len__(self) -> int:
        return self.directions[0].shape[0]

    def first(self, n_guesses: int) -> WeightEstimates:
        return WeightEstimates(self.coefficients[:n_guesses], tuple(d[:n_guesses] for d in self.directions))

    def numbers_per_guess(self) -> int:
        return sum(direction[0].numel() for direction in self.directions)

    def total(self) -> Sums:
        return tuple(
            (coefficient @ direction.flatten(1)).view(direction.shape[1:])
            for coefficient, direction in zip(self.coefficients.T, self.directions, strict=True)
        )

    def square_total(self) -> Sums:
        return ()

    def inner_products(self, snapshot: Snapshot) -> tuple[Tensor, Tensor]:
        inner, norms = [], []
        pairs = zip(snapshot.weight_gradients, self.directions, self.coefficients.T, strict=True)
        for gradient, direction, coefficient in pairs:
            inner.append(coefficient * (direction.flatten(1) @ gradient.flatten()))
            norms.append(coefficient.square() * _squared_norm(direction))
        return _only_weights(torch.stack(inner)), _only_weights(torch.stack(norms))

    def error_grams(self, snapshot: Snapshot, means: Sequence[Sums]) -> Tensor:
        layers = []
        for index, gradient in enumerate(snapshot.weight_gradients):
            layers.append(_gram_in_slices([mean[index] for mean in means], gradient))
        return _only_weights(torch.stack(layers))

    def dense(self, snapshot: Snapshot) -> tuple[Tensor | None, Tensor]:
        pairs = zip(self.coefficients.T, self.directions, strict=True)
        return None, _flat([coefficient[:, None, None] * direction for coefficient, direction in pairs])

    def weight_gradients(self, snapshot: Snapshot) -> list[Tensor]:
        return [total / len(self) for total in self.total()]


def _flat(guesses: Sequence[Tensor]) -> Tensor:
    return torch.cat([guess.flatten(1) for guess in guesses], dim=1)


def _squared_norm(guess: Tensor) -> Tensor:
    return torch.linalg.vector_norm(guess, dim=(1, 2)).square()


def _squared_norm_in_weights(guess: Tensor, root: Tensor) -> Tensor:
    """‖F ĝ‖² of every guess; a square root F is upper triangular, so its lower rows need the later examples alone."""
    rows, examples = root.shape
    if rows < examples:
        return _squared_norm(torch.matmul(root, guess))
    half = examples // 2
    later = _squared_norm(torch.matmul(root[half:, half:], guess[:, half:]))
    return later + _squared_norm(torch.matmul(root[:half], guess)) if half else later


def _gram(rows: Tensor) -> Tensor:
    flat = rows.flatten(1)
    return flat @ flat.T


def _gram_in_slices(means: list[Tensor], gradient: Tensor, slice_rows: int = 64) -> Tensor:
    """The Gram matrix of (mean − gradient), a slice of units at a time to bound the memory.

    In double precision: where guesses are much shorter than the gradient, as projections on few tangents are, the error
    is nearly the gradient, and all that is known of the mean is in its last digits.
    """
    gram = torch.zeros(len(means), len(means), dtype=torch.float64, device=gradient.device)
    for start in range(0, gradient.shape[0], slice_rows):
        rows = slice(start, start + slice_rows)
        gram += _gram(torch.stack([mean[rows] for mean in means]).double().sub_(gradient[rows]))
    return gram


def _only_weights(weights: Tensor) -> Tensor:
    return torch.stack([torch.full_like(weights, torch.nan), weights])
