"""A block of gradient estimates in factored form: its scalars and its sum, never a dense weight matrix per guess.

A guess of a weight gradient made at the activations is Ĝ = Aᵀĝ, linear in ĝ (`fganalysis.capturing.weight_maps`). Of a
Linear module it is Σ_r ĝ_r x_rᵀ over rows, so with K = X Xᵀ = FᵀF

    ⟨Ĝ, G⟩ = ⟨ĝ, A G⟩ = ⟨ĝ, K g⟩        ‖Ĝ‖² = ⟨ĝ, K ĝ⟩ = ‖F ĝ‖²

and the mean over guesses of Ĝ is the mean of ĝ. Both kinds of estimates answer the same questions; shapes are
(guess, row, unit) a tap at the activations and (guess, unit, input) a layer at the weights.

Single precision has no squares below 1e-38 or above 1e38, and gradients of a deep network or a scaled loss do. So a sum
of squares or products is taken in single precision only where all its lengths lie between `SHORTEST` and `LONGEST`, and
again in double precision where one does not; what is returned is in double precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.arguments import described
from fganalysis.capturing.precision import LONGEST, SHORTEST
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layer, Tap
from fganalysis.capturing.weight_maps.matrix import MatrixMap

Sums = tuple[Tensor, ...]
NUMBERS_PER_SLICE = 2**21  # Of the errors of group means, in double precision: 16 MiB at a time.


@dataclass(frozen=True)
class Compared:
    """An exact gradient in one space. names: of its taps or layers. gradients: (row, column) each."""

    names: tuple[str, ...]
    gradients: Sums


@runtime_checkable
class Estimates(Protocol):
    """What the sampler asks of a block of guesses.

    reference: what the guesses are compared with (`fganalysis.capturing.reference.Reference`), of the kind that their
    estimator was called with. made_at: the space in which the guesses are made.
    """

    made_at: ClassVar[str]

    def __len__(self) -> int:
        """Number of guesses."""

    def first(self, n_guesses: int) -> Estimates:
        """The first guesses of the block."""

    def numbers_per_guess(self) -> int:
        """How many numbers one guess is made of, in all."""

    def total(self) -> Sums:
        """Sum over guesses, a tensor a tap at the activations, a layer at the weights."""

    def arrays(self) -> Sums:
        """What has the shape of the gradient behind the dimension of guesses, a tensor a tap or layer."""

    def precision(self) -> float:
        """That of the data type of the guesses, relative."""

    def like(self, reference: Any) -> list[tuple[str, Tensor]]:
        """For each of the `arrays` the name of its tap or layer, and a tensor like a single guess."""

    def known(self, reference: Any) -> NDArray[np.bool_]:
        """In which spaces and layers there are guesses, (space, layer)."""

    def inner_products(self, reference: Any) -> tuple[Tensor, Tensor]:
        """⟨ĝ, g⟩ and ‖ĝ‖², each (space, layer, guess) in double precision; NaN in a space without guesses."""

    def error_grams(self, reference: Any, means: Sequence[Sums]) -> Tensor:
        """Inner products between the errors (mean − gradient) of several means, (space, layer, mean, mean), in double
        precision."""

    def exact(self, reference: Any) -> dict[str, Compared]:
        """What sums of guesses are compared with in each space."""

    def by_space(self, reference: Any, total: Sums) -> dict[str, Sums]:
        """A sum of guesses in each space, in the order of `exact`."""

    def not_looked_at(self, reference: Any) -> tuple[str, ...]:
        """The trainable parameters for which there is no guess."""

    def dense(self, reference: Any) -> tuple[Tensor | None, Tensor]:
        """Guesses written out, (guess, number), at the activations (None without any there) and weights: for tests."""

    def weight_gradients(self, reference: Any) -> list[Tensor]:
        """Mean over the guesses as weight gradients, (unit, input) a layer: what an optimiser consumes."""


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
            elif not _by_tap_alone(snapshot, layer):
                inner[0, number], squares[0, number] = (numbers[0, taps].sum(0) for numbers in at_taps)
                inner[1, number], squares[1, number] = self._written_out(snapshot, number)
        return inner, squares

    def _written_out(self, snapshot: Snapshot, number: int) -> tuple[Tensor, Tensor]:
        """Inner products and squared norms at the weights of a layer, (guess,), with every guess written out there.

        Of several taps the guesses at the weights add up, and a module without a kernel has no other way.
        """
        layer, exact = snapshot.weights[number], snapshot.weight_gradients[number].double().flatten()
        products, norms = [], []
        for guesses in _slices(len(self), layer.weight.numel()):
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
        factors = _factors(snapshot)
        inner: tuple[list[Tensor], list[Tensor]] = ([], [])
        lengths: tuple[list[Tensor], list[Tensor]] = ([], [])
        for guess, tap, gradient, mixed in zip(
            self.guesses, snapshot.taps, snapshot.gradients, factors.mixed_gradients, strict=True
        ):
            flat = guess.flatten(1)
            inner[0].append(flat @ gradient.flatten())
            lengths[0].append(_length(guess))
            if _by_tap_alone(snapshot, snapshot.weights[tap.layer]):
                inner[1].append(flat @ mixed.to(flat.dtype).flatten())
                lengths[1].append(_length_in_weights(guess, tap))
            else:
                inner[1].append(torch.zeros_like(inner[0][-1]))
                lengths[1].append(torch.ones_like(inner[0][-1]))

        def in_double(index: int, one: int) -> tuple[Tensor, Tensor]:
            tap, single = snapshot.taps[index], self.guesses[index][one].double()
            products, squares = [(single * snapshot.gradients[index].double()).sum()], [single.square().sum()]
            if not _by_tap_alone(snapshot, snapshot.weights[tap.layer]):
                return torch.stack([*products, torch.zeros_like(products[0])]), torch.stack([*squares, *squares])
            products.append((single * factors.mixed_gradients[index].double()).sum())
            squares.append(tap.weights.image(single.unsqueeze(0)).square().sum())
            return torch.stack(products), torch.stack(squares)

        products, norms = (torch.stack(one + other).unflatten(0, (2, -1)) for one, other in (inner, lengths))
        return _in_double_precision(products, norms, factors.doubtful, in_double)

    def error_grams(self, snapshot: Snapshot, means: Sequence[Sums]) -> Tensor:
        layers = []
        for number, layer in enumerate(snapshot.weights):
            at_taps, at_weights = _no_gram(means, snapshot.like), _no_gram(means, snapshot.like)
            for index in layer.taps:
                tap, gradient = snapshot.taps[index], snapshot.gradients[index]
                matrix = isinstance(tap.weights, MatrixMap) and len(layer.taps) == 1
                for units in _slices(tap.units, len(means) * len(gradient)):
                    errors = _errors([mean[index][:, units] for mean in means], gradient[:, units])
                    at_taps += _gram(errors)
                    if matrix:  # Whose image is made unit by unit.
                        at_weights += _gram(tap.weights.image(errors))
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
                weights.image(_errors([mean[index] for mean in means[some]], gradient))
                for some in _slices(len(means), gradient.numel())
            ]
            return _gram(torch.cat(images))
        written = []
        for mean in means:
            parts = [
                layer.from_tap(snapshot.taps[i], snapshot.taps[i].weights.gradients(mean[i].double().unsqueeze(0)))[0]
                for i in layer.taps
            ]
            written.append(sum(parts[1:], parts[0]))
        return _gram(_errors(written, exact))

    def dense(self, snapshot: Snapshot) -> tuple[Tensor | None, Tensor]:
        weights = snapshot.at_weights(self.guesses)
        if len(self) == 1:
            weights = tuple(weight.unsqueeze(0) for weight in weights)
        return _flat(self.guesses), _flat([weight.expand(len(self), *weight.shape[-2:]) for weight in weights])

    def weight_gradients(self, snapshot: Snapshot) -> list[Tensor]:
        return list(snapshot.at_weights([guess.mean(0, keepdim=True) for guess in self.guesses]))


@dataclass(frozen=True)
class WeightEstimates:
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

    def known(self, snapshot: Snapshot) -> NDArray[np.bool_]:
        return np.array([[space == "weight"] * len(snapshot.layers) for space in snapshot.spaces])

    def exact(self, snapshot: Snapshot) -> dict[str, Compared]:
        return {"weight": Compared(snapshot.layers, snapshot.weight_gradients)}

    def by_space(self, snapshot: Snapshot, total: Sums) -> dict[str, Sums]:
        return {"weight": total}

    def not_looked_at(self, snapshot: Snapshot) -> tuple[str, ...]:
        return ()

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
            lengths.append(_length(direction))

        def in_double(layer: int, one: int) -> tuple[Tensor, Tensor]:
            single = self.directions[layer][one].double()
            product = (single * snapshot.weight_gradients[layer].double()).sum()
            return product[None], single.square().sum()[None]

        doubtful = snapshot.remember("doubtful weight gradients", partial(_doubtful, snapshot.weight_gradients))
        (products,), (squares,) = _in_double_precision(
            torch.stack(inner)[None], torch.stack(lengths)[None], doubtful[None], in_double
        )
        coefficients = self.coefficients.T.double()
        return _only_weights(coefficients * products), _only_weights(coefficients.square() * squares)

    def error_grams(self, snapshot: Snapshot, means: Sequence[Sums]) -> Tensor:
        layers = []
        for index, gradient in enumerate(snapshot.weight_gradients):
            gram = _no_gram(means, gradient)
            for rows in _slices(gradient.shape[0], len(means) * gradient.shape[1]):
                gram += _gram(_errors([mean[index][rows] for mean in means], gradient[rows]))
            layers.append(gram)
        return _only_weights(torch.stack(layers))

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


@dataclass(frozen=True)
class _Factors:
    """What inner products of activation guesses are taken with.

    mixed_gradients: K_l g_l a tap, in double precision where single precision cannot hold it. doubtful: (2, layer),
    where products with g_l or K_l g_l may be too small or too large for single precision.
    """

    mixed_gradients: Sums
    doubtful: Tensor


def _by_tap_alone(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether the scalars of a layer are those of its only tap, without guesses at the weights written out."""
    return len(layer.taps) == 1 and snapshot.taps[layer.taps[0]].weights.cheap


def _factors(snapshot: Snapshot) -> _Factors:
    def make() -> _Factors:
        exact, mixed, lost = [], [], []
        for tap, gradient in zip(snapshot.taps, snapshot.gradients, strict=True):
            if not _by_tap_alone(snapshot, snapshot.weights[tap.layer]):
                exact.append(torch.zeros_like(gradient).double())
                mixed.append(exact[-1])
                lost.append(False)
                continue
            double = tap.weights.along(tap.weights.gradients(gradient.double().unsqueeze(0)))[0]
            single = snapshot.mixed_gradients_of(tap)
            exact.append(double)
            # Products of inputs may be lost although what they are multiplied with makes up for it.
            lost.append(not bool((single - double).norm() <= 1e-3 * double.norm()))
            mixed.append(double if lost[-1] else single)
        doubtful = torch.stack([_doubtful(snapshot.gradients), _doubtful(exact)])
        doubtful[1] |= torch.tensor(lost, device=doubtful.device)
        return _Factors(tuple(mixed), doubtful)

    found: _Factors = snapshot.remember("factors of inner products", make)
    return found


def _doubtful(gradients: Sequence[Tensor]) -> Tensor:
    """Which gradients are beyond single precision, (layer,). One of zero is not: it has no terms to lose."""
    squares = torch.stack([gradient.double().square().sum() for gradient in gradients])
    return _beyond_single(squares) & (squares != 0)


def _in_double_precision(
    inner: Tensor, lengths: Tensor, doubtful: Tensor, in_double: Callable[[int, int], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Inner products and squared norms, (space, tap, guess), those that single precision cannot sum computed again.

    lengths: norms of the guesses. doubtful: (space, tap), of what they are multiplied with. in_double: tap and guess →
    both numbers, (space,) each.
    """
    inner, squares = inner.double(), lengths.double().square()
    if lengths.dtype != torch.float64:
        # A guess of zero is among them: it may be one whose squares were lost.
        beyond = (_beyond_single(squares) | doubtful[:, :, None]).any(0)
        if bool(beyond.any()):  # Where there is a GPU, all that the host waits for in a block.
            for tap, guess in beyond.nonzero().tolist():
                inner[:, tap, guess], squares[:, tap, guess] = in_double(tap, guess)
    return inner, squares


def _beyond_single(squares: Tensor) -> Tensor:
    """Where squared lengths are outside what single precision sums without loss, or NaN."""
    return ~((squares >= SHORTEST**2) & (squares <= LONGEST**2))


def _length(guess: Tensor) -> Tensor:
    return torch.linalg.vector_norm(guess, dim=(1, 2))


def _length_in_weights(guess: Tensor, tap: Tap) -> Tensor:
    """‖Ĝ‖ of every guess; a square root F of K is upper triangular, so its lower rows need the later rows alone."""
    weights = tap.weights
    if not isinstance(weights, MatrixMap) or weights.shape[1] < weights.shape[0]:
        return _length(weights.image(guess))
    root = weights.kernel_root
    half = len(root) // 2
    later = _length(torch.matmul(root[half:, half:], guess[:, half:]))
    return torch.hypot(later, _length(torch.matmul(root[:half], guess))) if half else later


def _slices(length: int, numbers_each: int) -> Iterator[slice]:
    """Parts of a dimension, each of `NUMBERS_PER_SLICE` numbers at most unless a single entry has more."""
    step = max(1, NUMBERS_PER_SLICE // max(numbers_each, 1))
    return (slice(start, start + step) for start in range(0, length, step))


def _errors(means: list[Tensor], gradient: Tensor) -> Tensor:
    """Means less the gradient, in double precision.

    Where guesses are much shorter than the gradient, as projections on few tangents are, the error is nearly the
    gradient, and all that is known of the mean is in its last digits.
    """
    return torch.stack(means).double().sub_(gradient)


def _gram(rows: Tensor) -> Tensor:
    flat = rows.flatten(1)
    return flat @ flat.T


def _no_gram(means: Sequence[Sums], gradient: Tensor) -> Tensor:
    return torch.zeros(len(means), len(means), dtype=torch.float64, device=gradient.device)


def _only_weights(weights: Tensor) -> Tensor:
    return torch.stack([torch.full_like(weights, torch.nan), weights])
