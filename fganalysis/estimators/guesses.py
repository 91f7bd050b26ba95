"""A block of gradient estimates in factored form: its scalars and its sum, never a dense weight matrix per guess.

A guess of a weight gradient made at the activations is Ĝ = Aᵀĝ, linear in ĝ (`fganalysis.capturing.weight_maps`). Of a
Linear module it is Σ_r ĝ_r x_rᵀ over rows, so with K = X Xᵀ = FᵀF

    ⟨Ĝ, G⟩ = ⟨ĝ, A G⟩ = ⟨ĝ, K g⟩        ‖Ĝ‖² = ⟨ĝ, K ĝ⟩ = ‖F ĝ‖²

and the mean over guesses of Ĝ is the mean of ĝ. Both kinds of estimates answer the same questions; shapes are
(guess, row, unit) a tap at the activations and (guess, unit, input) a layer at the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.arguments import described
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Tap
from fganalysis.capturing.weight_maps.matrix import MatrixMap
from fganalysis.estimators.block_of_guesses import Compared as Compared
from fganalysis.estimators.block_of_guesses import Estimates as Estimates
from fganalysis.estimators.block_of_guesses import Sums as Sums
from fganalysis.estimators.guess_products import (
    by_tap_alone,
    doubtful_of,
    errors_of_means,
    factors_of,
    gram_of,
    in_double_precision,
    length_in_weights,
    lengths_of,
    no_gram,
    only_weights,
    slices_of,
)


@dataclass(frozen=True)
class ActivationEstimates:
    """Guesses of the activation gradients, ``guesses[tap]`` of shape (guess, row, unit), loss per activation.

    Raises:
        ValueError: no tensor, or tensors of another number of dimensions or with different numbers of guesses.
    """

    guesses: Sums
    made_at: ClassVar[str] = "activation"

    def __post_init__(self) -> None:
        _refuse_other_than_blocks("guesses", self.guesses, "(guess, row, unit)")

    def __len__(self) -> int:
        return self.guesses[0].shape[0]

    def first(self, n_guesses: int) -> ActivationEstimates:
        return ActivationEstimates(tuple(guess[:n_guesses] for guess in self.guesses))

    def arrays(self) -> Sums:
        return self.guesses

    def precision(self) -> float:
        return float(torch.finfo(self.guesses[0].dtype).eps)

    def like(self, snapshot: Snapshot) -> list[tuple[str, Tensor]]:
        return [(tap.name, tap.outputs) for tap in snapshot.taps]

    def known(self, snapshot: Snapshot) -> NDArray[np.bool_]:
        return np.array([[bool(layer.taps) for layer in snapshot.weights]] * len(snapshot.spaces))

    def exact(self, snapshot: Snapshot) -> dict[str, Compared]:
        tapped = tuple(layer.name for layer in snapshot.weights if layer.taps)
        at_weights = _of_tapped(snapshot, snapshot.weight_gradients)
        return {
            "activation": Compared(_names(snapshot.taps), snapshot.gradients),
            "weight": Compared(tapped, at_weights),
        }

    def by_space(self, snapshot: Snapshot, total: Sums) -> dict[str, Sums]:
        at_weights = snapshot.at_weights([part.unsqueeze(0) for part in total])
        return {"activation": total, "weight": _of_tapped(snapshot, at_weights)}

    def not_looked_at(self, snapshot: Snapshot) -> tuple[str, ...]:
        return snapshot.untapped_parameters

    def numbers_per_guess(self) -> int:
        return sum(guess[0].numel() for guess in self.guesses)

    def total(self) -> Sums:
        # A large network has a guess a block, of which the sum would be a copy.
        return tuple(guess[0] if len(guess) == 1 else guess.sum(0) for guess in self.guesses)

    def inner_products(self, snapshot: Snapshot) -> tuple[Tensor, Tensor]:
        at_taps = self._at_taps(snapshot)
        first = [layer.taps[0] if layer.taps else 0 for layer in snapshot.weights]
        inner, squares = (numbers[:, first] for numbers in at_taps)
        for number, layer in enumerate(snapshot.weights):
            taps = list(layer.taps)
            if not taps:
                inner[:, number] = squares[:, number] = torch.nan
            elif not by_tap_alone(snapshot, layer):
                inner[0, number], squares[0, number] = (numbers[0, taps].sum(0) for numbers in at_taps)
                inner[1, number], squares[1, number] = self._written_out(snapshot, number)
        return inner, squares

    def _written_out(self, snapshot: Snapshot, number: int) -> tuple[Tensor, Tensor]:
        """Inner products and squared norms at the weights of a layer, (guess,), with every guess written out there.

        Of several taps the guesses at the weights add up, and a module without a kernel has no other way.
        """
        layer, exact = snapshot.weights[number], snapshot.weight_gradients[number].double().flatten()
        products, norms = [], []
        for guesses in slices_of(len(self), layer.weight.numel()):
            written = [
                layer.from_tap(snapshot.taps[i], snapshot.taps[i].weights.gradients(self.guesses[i][guesses]))
                for i in layer.taps
            ]
            total = sum(written[1:], written[0]).double().flatten(1)
            products.append(total @ exact)
            norms.append(total.square().sum(1))
        return torch.cat(products), torch.cat(norms)

    def _at_taps(self, snapshot: Snapshot) -> tuple[Tensor, Tensor]:
        """Inner products and squared norms, (space, tap, guess); zeros and ones where guesses are to be written out."""
        factors = factors_of(snapshot)
        inner: tuple[list[Tensor], list[Tensor]] = ([], [])
        lengths: tuple[list[Tensor], list[Tensor]] = ([], [])
        for guess, tap, gradient, mixed in zip(
            self.guesses, snapshot.taps, snapshot.gradients, factors.mixed_gradients, strict=True
        ):
            flat = guess.flatten(1)
            inner[0].append(flat @ gradient.flatten())
            lengths[0].append(lengths_of(guess))
            if by_tap_alone(snapshot, snapshot.weights[tap.layer]):
                inner[1].append(flat @ mixed.to(flat.dtype).flatten())
                lengths[1].append(length_in_weights(guess, tap))
            else:
                inner[1].append(torch.zeros_like(inner[0][-1]))
                lengths[1].append(torch.ones_like(inner[0][-1]))

        def in_double(index: int, one: int) -> tuple[Tensor, Tensor]:
            tap, single = snapshot.taps[index], self.guesses[index][one].double()
            products, squares = [(single * snapshot.gradients[index].double()).sum()], [single.square().sum()]
            if not by_tap_alone(snapshot, snapshot.weights[tap.layer]):
                return torch.stack([*products, torch.zeros_like(products[0])]), torch.stack([*squares, *squares])
            products.append((single * factors.mixed_gradients[index].double()).sum())
            squares.append(tap.weights.image(single.unsqueeze(0)).square().sum())
            return torch.stack(products), torch.stack(squares)

        products, norms = (torch.stack(one + other).unflatten(0, (2, -1)) for one, other in (inner, lengths))
        return in_double_precision(products, norms, factors.doubtful, in_double)

    def error_grams(self, snapshot: Snapshot, means: Sequence[Sums]) -> Tensor:
        layers = []
        for number, layer in enumerate(snapshot.weights):
            at_taps, at_weights = no_gram(means, snapshot.like), no_gram(means, snapshot.like)
            for index in layer.taps:
                tap, gradient = snapshot.taps[index], snapshot.gradients[index]
                matrix = isinstance(tap.weights, MatrixMap) and len(layer.taps) == 1
                for units in slices_of(tap.units, len(means) * len(gradient)):
                    errors = errors_of_means([mean[index][:, units] for mean in means], gradient[:, units])
                    at_taps += gram_of(errors)
                    if matrix:  # Whose image is made unit by unit.
                        at_weights += gram_of(tap.weights.image(errors))
            if not layer.taps:
                at_taps, at_weights = at_taps.fill_(torch.nan), at_weights.fill_(torch.nan)
            elif not (len(layer.taps) == 1 and isinstance(snapshot.taps[layer.taps[0]].weights, MatrixMap)):
                at_weights = self._written_gram(snapshot, number, means)
            layers.append(torch.stack([at_taps, at_weights]))
        return torch.stack(layers, dim=1)

    def _written_gram(self, snapshot: Snapshot, number: int, means: Sequence[Sums]) -> Tensor:
        """Inner products between errors at the weights of one layer, with every mean written out there."""
        layer, exact = snapshot.weights[number], snapshot.weight_gradients[number]
        if len(layer.taps) == 1 and snapshot.taps[layer.taps[0]].weights.cheap:
            index = layer.taps[0]
            weights, gradient = snapshot.taps[index].weights, snapshot.gradients[index]
            images = [
                weights.image(errors_of_means([mean[index] for mean in means[some]], gradient))
                for some in slices_of(len(means), gradient.numel())
            ]
            return gram_of(torch.cat(images))
        written = []
        for mean in means:
            parts = [
                layer.from_tap(snapshot.taps[i], snapshot.taps[i].weights.gradients(mean[i].double().unsqueeze(0)))[0]
                for i in layer.taps
            ]
            written.append(sum(parts[1:], parts[0]))
        return gram_of(errors_of_means(written, exact))

    def dense(self, snapshot: Snapshot) -> tuple[Tensor | None, Tensor]:
        weights = snapshot.at_weights(self.guesses)
        if len(self) == 1:
            weights = tuple(weight.unsqueeze(0) for weight in weights)
        return _flat(self.guesses), _flat([weight.expand(len(self), *weight.shape[-2:]) for weight in weights])

    def weight_gradients(self, snapshot: Snapshot) -> list[Tensor]:
        return list(snapshot.at_weights([guess.mean(0, keepdim=True) for guess in self.guesses]))


class AtWeights:
    """What all guesses of weight gradients have in common, in whatever form they are held."""

    def known(self, snapshot: Snapshot) -> NDArray[np.bool_]:
        return np.array([[space == "weight"] * len(snapshot.layers) for space in snapshot.spaces])

    def exact(self, snapshot: Snapshot) -> dict[str, Compared]:
        return {"weight": Compared(snapshot.layers, snapshot.weight_gradients)}

    def by_space(self, snapshot: Snapshot, total: Sums) -> dict[str, Sums]:
        return {"weight": total}

    def not_looked_at(self, snapshot: Snapshot) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True)
class WeightEstimates(AtWeights):
    """Guesses c_l V_l of weight gradients: ``directions[layer]`` (guess, unit, input), ``coefficients`` (guess, layer).

    There is no guess of the activation gradients in them, so that space is NaN.

    Raises:
        ValueError: no direction, directions of another number of dimensions or with different numbers of guesses, or
            coefficients that are not one for each guess and layer, in the same data type.
    """

    coefficients: Tensor
    directions: Sums
    made_at: ClassVar[str] = "weight"

    def __post_init__(self) -> None:
        _refuse_other_than_blocks("directions", self.directions, "(guess, unit, input)")
        shape, dtype = (len(self.directions[0]), len(self.directions)), self.directions[0].dtype
        given = self.coefficients
        if not isinstance(given, Tensor) or given.shape != shape or given.dtype != dtype:
            expected = f"a tensor of shape (guess, layer), here {shape}, of the directions' data type"
            raise ValueError(f"coefficients must be {expected}, got {described(given)}")

    def __len__(self) -> int:
        return self.directions[0].shape[0]

    def first(self, n_guesses: int) -> WeightEstimates:
        return WeightEstimates(self.coefficients[:n_guesses], tuple(d[:n_guesses] for d in self.directions))

    def arrays(self) -> Sums:
        return self.directions

    def precision(self) -> float:
        return float(torch.finfo(self.directions[0].dtype).eps)

    def like(self, snapshot: Snapshot) -> list[tuple[str, Tensor]]:
        return [(layer.name, layer.weight) for layer in snapshot.weights]

    def numbers_per_guess(self) -> int:
        return sum(direction[0].numel() for direction in self.directions)

    def total(self) -> Sums:
        return tuple(
            (coefficient @ direction.flatten(1)).view(direction.shape[1:])
            for coefficient, direction in zip(self.coefficients.T, self.directions, strict=True)
        )

    def inner_products(self, snapshot: Snapshot) -> tuple[Tensor, Tensor]:
        inner, lengths = [], []
        for gradient, direction in zip(snapshot.weight_gradients, self.directions, strict=True):
            inner.append(direction.flatten(1) @ gradient.flatten())
            lengths.append(lengths_of(direction))

        def in_double(layer: int, one: int) -> tuple[Tensor, Tensor]:
            single = self.directions[layer][one].double()
            product = (single * snapshot.weight_gradients[layer].double()).sum()
            return product[None], single.square().sum()[None]

        doubtful = snapshot.remember("doubtful weight gradients", partial(doubtful_of, snapshot.weight_gradients))
        (products,), (squares,) = in_double_precision(
            torch.stack(inner)[None], torch.stack(lengths)[None], doubtful[None], in_double
        )
        coefficients = self.coefficients.T.double()
        return only_weights(coefficients * products), only_weights(coefficients.square() * squares)

    def error_grams(self, snapshot: Snapshot, means: Sequence[Sums]) -> Tensor:
        layers = []
        for index, gradient in enumerate(snapshot.weight_gradients):
            gram = no_gram(means, gradient)
            for rows in slices_of(gradient.shape[0], len(means) * gradient.shape[1]):
                gram += gram_of(errors_of_means([mean[index][rows] for mean in means], gradient[rows]))
            layers.append(gram)
        return only_weights(torch.stack(layers))

    def dense(self, snapshot: Snapshot) -> tuple[Tensor | None, Tensor]:
        pairs = zip(self.coefficients.T, self.directions, strict=True)
        return None, _flat([coefficient[:, None, None] * direction for coefficient, direction in pairs])

    def weight_gradients(self, snapshot: Snapshot) -> list[Tensor]:
        return [total / len(self) for total in self.total()]


def _of_tapped(snapshot: Snapshot, of_layers: Sequence[Tensor]) -> Sums:
    """What belongs to the layers that have taps."""
    return tuple(tensor for layer, tensor in zip(snapshot.weights, of_layers, strict=True) if layer.taps)


def _names(taps: Sequence[Tap]) -> tuple[str, ...]:
    """The taps' names; a module that is called again, or returns several tensors, has a number for each."""
    names = [tap.name for tap in taps]
    return tuple(
        name if names.count(name) == 1 else f"{name}, output {names[:index].count(name) + 1}"
        for index, name in enumerate(names)
    )


def _flat(guesses: Sequence[Tensor]) -> Tensor:
    return torch.cat([guess.flatten(1) for guess in guesses], dim=1)


def _refuse_other_than_blocks(name: str, tensors: object, shape: str) -> None:
    """A tensor a tap, each with three dimensions, the first of the same length."""
    blocks = list(tensors) if isinstance(tensors, tuple | list) else []
    if not blocks or any(not isinstance(block, Tensor) or block.ndim != 3 for block in blocks):
        wrong = next((block for block in blocks if not isinstance(block, Tensor) or block.ndim != 3), tensors)
        raise ValueError(f"{name} must be a tuple of tensors of shape {shape}, one a tap, got {described(wrong)}")
    lengths = [len(block) for block in blocks]
    if len(set(lengths)) > 1:
        raise ValueError(f"{name} must hold the same number of guesses for every tap, got {described(lengths)}")
