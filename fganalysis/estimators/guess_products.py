"""Inner products, norms and Gram matrices of guesses, in single precision where it can hold them, else in double.

Single precision has no squares below 1e-38 or above 1e38, and gradients of a deep network or a scaled loss do. So a sum
of squares or products is taken in single precision only where all its lengths lie between `SHORTEST` and `LONGEST`, and
again in double precision where one does not; what is returned is in double precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.capturing.precision import LONGEST, SHORTEST
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layer, Tap
from fganalysis.capturing.weight_maps.matrix import MatrixMap
from fganalysis.estimators.block_of_guesses import Sums

NUMBERS_PER_SLICE = 2**21  # Of the errors of group means, in double precision: 16 MiB at a time.


@dataclass(frozen=True)
class Factors:
    """What inner products of activation guesses are taken with.

    mixed_gradients: K_l g_l a tap, in double precision where single precision cannot hold it. doubtful: (2, layer),
    where products with g_l or K_l g_l may be too small or too large for single precision.
    """

    mixed_gradients: Sums
    doubtful: Tensor


def by_tap_alone(snapshot: Snapshot, layer: Layer) -> bool:
    """Whether the scalars of a layer are those of its only tap, without guesses at the weights written out."""
    return len(layer.taps) == 1 and snapshot.taps[layer.taps[0]].weights.cheap


def factors_of(snapshot: Snapshot) -> Factors:
    def make() -> Factors:
        exact, mixed, lost = [], [], []
        for tap, gradient in zip(snapshot.taps, snapshot.gradients, strict=True):
            if not by_tap_alone(snapshot, snapshot.weights[tap.layer]):
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
        doubtful = torch.stack([doubtful_of(snapshot.gradients), doubtful_of(exact)])
        doubtful[1] |= torch.tensor(lost, device=doubtful.device)
        return Factors(tuple(mixed), doubtful)

    found: Factors = snapshot.remember("factors of inner products", make)
    return found


def doubtful_of(gradients: Sequence[Tensor]) -> Tensor:
    """Which gradients are beyond single precision, (layer,). One of zero is not: it has no terms to lose."""
    squares = torch.stack([gradient.double().square().sum() for gradient in gradients])
    return _beyond_single(squares) & (squares != 0)


def in_double_precision(
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


def lengths_of(guess: Tensor) -> Tensor:
    return torch.linalg.vector_norm(guess, dim=(1, 2))


def length_in_weights(guess: Tensor, tap: Tap) -> Tensor:
    """‖Ĝ‖ of every guess; a square root F of K is upper triangular, so its lower rows need the later rows alone."""
    weights = tap.weights
    if not isinstance(weights, MatrixMap) or weights.shape[1] < weights.shape[0]:
        return lengths_of(weights.image(guess))
    root = weights.kernel_root
    half = len(root) // 2
    later = lengths_of(torch.matmul(root[half:, half:], guess[:, half:]))
    return torch.hypot(later, lengths_of(torch.matmul(root[:half], guess))) if half else later


def slices_of(length: int, numbers_each: int) -> Iterator[slice]:
    """Parts of a dimension, each of `NUMBERS_PER_SLICE` numbers at most unless a single entry has more."""
    step = max(1, NUMBERS_PER_SLICE // max(numbers_each, 1))
    return (slice(start, start + step) for start in range(0, length, step))


def errors_of_means(means: list[Tensor], gradient: Tensor) -> Tensor:
    """Means less the gradient, in double precision.

    Where guesses are much shorter than the gradient, as projections on few tangents are, the error is nearly the
    gradient, and all that is known of the mean is in its last digits.
    """
    return torch.stack(means).double().sub_(gradient)


def gram_of(rows: Tensor) -> Tensor:
    flat = rows.flatten(1)
    return flat @ flat.T


def no_gram(means: Sequence[Sums], gradient: Tensor) -> Tensor:
    return torch.zeros(len(means), len(means), dtype=torch.float64, device=gradient.device)


def only_weights(weights: Tensor) -> Tensor:
    return torch.stack([torch.full_like(weights, torch.nan), weights])
