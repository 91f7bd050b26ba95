"""A block of guesses at the weights in factored form: of every layer a product of two thin matrices a guess.

    Ĝ_l = Σ_j left_j right_jᵀ   over few terms j,   ⟨Ĝ, G⟩ = Σ_j left_jᵀ G right_j,   ‖Ĝ‖² = ⟨left leftᵀ, right rightᵀ⟩

A layer may also be written out, where the product has more numbers than the weights, or exact, with no error at all.
Inner products are taken in double precision, so that no scale of the loss is too small or too large for their squares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fganalysis.arguments import described
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.block_of_guesses import Sums
from fganalysis.estimators.guess_products import errors_of_means, gram_of, no_gram, only_weights, slices_of
from fganalysis.estimators.guesses import AtWeights


class LayerGuesses(Protocol):
    """The guesses of one layer's weights, (guess, unit, input) when written out."""

    def __len__(self) -> int: ...

    def first(self, n_guesses: int) -> LayerGuesses: ...

    def arrays(self) -> Sums:
        """What they are made of, (guess, …) each."""

    def like(self, weight: Tensor) -> Sums:
        """A tensor of the shape of a single guess for each of the `arrays`, for a layer with these weights."""

    def written(self) -> Tensor:
        """(guess, unit, input)."""

    def total(self) -> Tensor:
        """Sum over guesses, (unit, input)."""

    def inner_products(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """⟨Ĝ, G⟩ and ‖Ĝ‖², (guess,) each in double precision."""


@dataclass(frozen=True, eq=False)
class Product:
    """Ĝ = leftᵀ right. left: (guess, term, unit). right: (guess, term, input)."""

    left: Tensor
    right: Tensor

    def __len__(self) -> int:
        return len(self.left)

    def first(self, n_guesses: int) -> Product:
        return Product(self.left[:n_guesses], self.right[:n_guesses])

    def arrays(self) -> Sums:
        return self.left, self.right

    def like(self, weight: Tensor) -> Sums:
        terms = self.left.shape[1]
        return weight.new_empty(1).expand(terms, weight.shape[0]), weight.new_empty(1).expand(terms, weight.shape[1])

    def written(self) -> Tensor:
        return self.left.mT @ self.right

    def total(self) -> Tensor:
        return self.left.flatten(0, 1).T @ self.right.flatten(0, 1)

    def scaled(self, scales: Tensor) -> Product:
        """Each guess times its scale, (guess,)."""
        return Product(self.left * scales[:, None, None], self.right)

    def inner_products(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        left, right = self.left.double(), self.right.double()
        inner = torch.einsum("gti,gti->g", left @ gradient.double(), right)
        return inner, ((left @ left.mT) * (right @ right.mT)).sum((1, 2))


@dataclass(frozen=True, eq=False)
class WrittenOut:
    """guesses: (guess, unit, input)."""

    guesses: Tensor

    def __len__(self) -> int:
        return len(self.guesses)

    def first(self, n_guesses: int) -> WrittenOut:
        return WrittenOut(self.guesses[:n_guesses])

    def arrays(self) -> Sums:
        return (self.guesses,)

    def like(self, weight: Tensor) -> Sums:
        return (weight,)

    def written(self) -> Tensor:
        return self.guesses

    def total(self) -> Tensor:
        return self.guesses.sum(0)

    def scaled(self, scales: Tensor) -> WrittenOut:
        """Each guess times its scale, (guess,)."""
        return WrittenOut(self.guesses * scales[:, None, None])

    def inner_products(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        guesses = self.guesses.double().flatten(1)
        return guesses @ gradient.double().flatten(), guesses.square().sum(1)


def summed(parts: Sequence[Product]) -> Product | WrittenOut:
    """The sum of the guesses of several products, written out where the factors have as many numbers as the weights."""
    left, right = (torch.cat(factors, dim=1) for factors in ([p.left for p in parts], [p.right for p in parts]))
    terms, units, inputs = left.shape[1], left.shape[2], right.shape[2]
    if terms * (units + inputs) < units * inputs:
        return Product(left, right)
    return WrittenOut(left.mT @ right)


@dataclass(frozen=True, eq=False)
class Exact:
    """The gradient itself, (unit, input), as every guess."""

    gradient: Tensor
    n_guesses: int

    def __len__(self) -> int:
        return self.n_guesses

    def first(self, n_guesses: int) -> Exact:
        return Exact(self.gradient, min(n_guesses, self.n_guesses))

    def arrays(self) -> Sums:
        return ()

    def like(self, weight: Tensor) -> Sums:
        return ()

    def written(self) -> Tensor:
        return self.gradient.expand(self.n_guesses, *self.gradient.shape)

    def total(self) -> Tensor:
        return self.gradient * self.n_guesses

    def inner_products(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        exact = self.gradient.double()
        inner, square = (exact * gradient.double()).sum(), exact.square().sum()
        return inner.expand(self.n_guesses), square.expand(self.n_guesses)


@dataclass(frozen=True, eq=False)
class FactoredEstimates(AtWeights):
    """Guesses of the weight gradients; there are none of the activation gradients, so that space is NaN.

    layers: the guesses of each layer. noise: how many random numbers of a guess are in memory while it is made.

    Raises:
        ValueError: no layer, or layers with different numbers of guesses.
    """

    layers: tuple[LayerGuesses, ...]
    noise: int = 0
    made_at: ClassVar[str] = "weight"

    def __post_init__(self) -> None:
        lengths = [len(layer) for layer in self.layers]
        if len(set(lengths)) != 1:
            raise ValueError(f"layers must hold the same number of guesses for every layer, got {described(lengths)}")

    def __len__(self) -> int:
        return len(self.layers[0])

    def first(self, n_guesses: int) -> FactoredEstimates:
        return FactoredEstimates(tuple(layer.first(n_guesses) for layer in self.layers), self.noise)

    def arrays(self) -> Sums:
        return tuple(array for layer in self.layers for array in layer.arrays())

    def like(self, snapshot: Snapshot) -> list[tuple[str, Tensor]]:
        pairs = zip(snapshot.weights, self.layers, strict=True)
        return [(layer.name, like) for layer, guesses in pairs for like in guesses.like(layer.weight)]

    def precision(self) -> float:
        return max([float(torch.finfo(array.dtype).eps) for array in self.arrays()], default=2.0**-52)

    def numbers_per_guess(self) -> int:
        return self.noise + sum(array[0].numel() for array in self.arrays())

    def total(self) -> Sums:
        return tuple(layer.total() for layer in self.layers)

    def inner_products(self, snapshot: Snapshot) -> tuple[Tensor, Tensor]:
        pairs = zip(self.layers, snapshot.weight_gradients, strict=True)
        products, squares = zip(*(layer.inner_products(gradient) for layer, gradient in pairs), strict=True)
        return only_weights(torch.stack(products)), only_weights(torch.stack(squares))

    def error_grams(self, snapshot: Snapshot, means: Sequence[Sums]) -> Tensor:
        return only_weights(torch.stack([_gram(means, i, g) for i, g in enumerate(snapshot.weight_gradients)]))

    def dense(self, snapshot: Snapshot) -> tuple[Tensor | None, Tensor]:
        return None, torch.cat([layer.written().flatten(1) for layer in self.layers], dim=1)

    def weight_gradients(self, snapshot: Snapshot) -> list[Tensor]:
        return [total / len(self) for total in self.total()]


def _gram(means: Sequence[Sums], index: int, gradient: Tensor) -> Tensor:
    """Inner products between the errors of several means of one layer, (mean, mean), in double precision."""
    gram = no_gram(means, gradient)
    for rows in slices_of(gradient.shape[0], len(means) * gradient.shape[1]):
        gram += gram_of(errors_of_means([mean[index][rows] for mean in means], gradient[rows]))
    return gram
