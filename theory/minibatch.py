"""Sampling m of B rows without replacement: the minibatch gradient and any linear guess made on a part of the batch.

A row is in the sample with probability f = m/B, a pair of rows with f₂ = m(m−1)/(B(B−1)). On the sample S the loss is
the mean over m rows, so gradients carry B/m: ĝ_b = (B/m) g_b 1[b ∈ S]. With a kernel K between rows,

    E‖ĝ‖²_K = Σ_b K_bb‖g_b‖²/f + (f₂/f²) Σ_{b≠c} K_bc g_b·g_c
    tr Cov  = (1−f)/f · (B Σ_b K_bb‖g_b‖² − Σ_bc K_bc g_b·g_c)/(B−1),

where f₂/f² − 1 = −(1−f)/(f(B−1)) is the finite population correction.

For a linear guess whose examples do not share both noise and slope, the second moments given S are sums over pairs of
rows of S. In their expectation a row has the factor f and a pair of rows the factor f₂. So two contributions to the
moments of a row are kept apart: the one of its own slope, and the one of the slopes of other rows.

The cosine with the gradient and its sign do not follow from these moments. `cosines_and_descents` enumerates all
subsets, and gives NaN where there are more than `MOST_SUBSETS`. The total variance has two parts:

    tr Cov ĝ = [E‖ĝ‖² − E_S‖E(ĝ|S)‖²]  +  [E_S‖E(ĝ|S)‖² − ‖E ĝ‖²]     within, the guess + between, the minibatch

Weight perturbation with one direction for the whole batch, or the mean of several directions, is covered as well. Given
S, its second moments are linear in the squared norms of the weight gradients of S, which have the expectation
‖G_l‖² + `variance`.

Source: Cochran 1977, Sampling Techniques, ch. 2; the split is derived here, and enumerated over all subsets in tests.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from theory.factors import Array, gram
from theory.images import ByPlace, Images
from theory.linear_guess import Moments

MOST_SUBSETS = 20_000  # the largest number of subsets that is enumerated


@dataclass(frozen=True)
class Parts:
    """The two parts of tr Cov of a guess on a part of the batch."""

    within: float
    between: float


def inclusion(n_examples: int, size: int) -> tuple[float, float]:
    """Probabilities that a given row, and that a given pair of rows, are in the sample.

    Raises ValueError for a size that is not in 1 … n_examples.
    """
    if not 1 <= size <= n_examples:
        raise ValueError(f"size must be from 1 to {n_examples}, got {size}")
    row = size / n_examples
    return row, row * (size - 1) / (n_examples - 1) if n_examples > 1 else row


def variance(products: Array, size: int) -> float:
    """tr Cov of the minibatch mean of fixed rows. products: K_bc ⟨g_b, g_c⟩, (example, example)."""
    examples = len(products)
    row, _ = inclusion(examples, size)
    if size == examples:
        return 0.0
    return float((1 - row) / row * (examples * np.trace(products) - products.sum()) / (examples - 1))


def gradient_moments(gradient: Array, size: int) -> Moments:
    """The moments of the minibatch gradient, for every kernel. gradient: (example, unit)."""
    still = Moments(gradient, np.zeros_like(gradient), np.zeros((len(gradient), len(gradient))))
    return subsampled_moments(still, still, size)


def summed_moments(gradients: Array, size: int) -> Moments:
    """The moments of (B/m) Σ_{e ∈ S} g_e at rows that serve all examples, (1, unit). gradients: g_e (example, unit)."""
    examples = len(gradients)
    inclusion(examples, size)  # Checks them.
    total, squares = gradients.sum(0, keepdims=True), np.sum(gradients**2, axis=0, keepdims=True)
    spread = (examples - size) / size
    variances = np.maximum(spread * (squares - (total**2 - squares) / max(examples - 1, 1)), 0.0)
    return Moments(total, variances, variances.sum(1, keepdims=True))


def subsampled_moments(whole: Moments, by_example: Moments, size: int) -> Moments:
    """The moments of a linear guess on a part of the batch.

    whole: the guess on the whole batch. by_example: the same guess with ``slope="example"``, which for example slopes
    is ``whole``. Shared noise is covered for example slopes only: with the batch slope, second moments are sums over
    four rows. Directions that mix examples are not covered.
    """
    inside, outside = _given_rows(whole, by_example, size), _between_rows(whole.mean, size)
    return Moments(whole.mean, inside[0] + outside[0], inside[1] + outside[1])


def parts(whole: Moments, by_example: Moments, size: int, kernel: Array | None = None) -> Parts:
    """The parts of the variance of a subsampled guess, within and between; in activation space without a kernel.

    Given S, the mean guess is that of the whole batch restricted to S. So the part between is the variance of a
    minibatch of the means. Other arguments as in `subsampled_moments`.
    """
    both = [covariances for _, covariances in (_given_rows(whole, by_example, size), _between_rows(whole.mean, size))]
    return Parts(*(float(np.trace(part) if kernel is None else np.sum(kernel * part)) for part in both))


def given_rows(whole: Array, by_example: Array, size: int) -> Array:
    """E_S tr Cov(ĝ_b, ĝ_c | S), (example, example), zero off the sample, in any space, from that of the whole batch.

    The variance of a row from its own slope has the factor f. The variance from the slopes of other rows and the
    covariance of two rows have the factor f₂.
    """
    row, pair = inclusion(len(whole), size)
    covariances = whole * (pair / row**2)
    own = np.diagonal(by_example)
    np.fill_diagonal(covariances, own / row + (np.diagonal(whole) - own) * (pair / row**2))
    return covariances


def between_rows(products: Array, size: int) -> Array:
    """tr Cov E(ĝ | S) in the same form: of a minibatch of fixed rows, by f₂/f² − 1 = −(1 − f)/(f (B − 1)).

    products: inner products of the examples' means, (example, example), in any space.
    """
    examples = len(products)
    inclusion(examples, size)  # Checks them.
    spread = (examples - size) / size  # (1 − f)/f
    covariances = products * (-spread / max(examples - 1, 1))
    np.fill_diagonal(covariances, spread * np.diagonal(products))
    return covariances


def _given_rows(whole: Moments, by_example: Moments, size: int) -> tuple[Array, Array]:
    """E_S Cov(ĝ | S): variances (example, unit) and covariances (example, example)."""
    row, pair = inclusion(len(whole.mean), size)
    variances = by_example.variances / row + (whole.variances - by_example.variances) * (pair / row**2)
    covariances = given_rows(whole.covariances, by_example.covariances, size)
    np.fill_diagonal(covariances, variances.sum(1))
    return variances, covariances


def _between_rows(mean: Array, size: int) -> tuple[Array, Array]:
    """Cov E(ĝ | S) in the same form."""
    return (len(mean) - size) / size * mean**2, between_rows(gram(mean), size)


def images(of_examples: Callable[[Array], ByPlace], n_examples: int, size: int) -> Images:
    """Cov of the minibatch gradient: (1−f)/f · B/(B−1) Σ_b (G_b − Ḡ)(G_b − Ḡ)ᵀ, Ḡ the mean of the G_b.

    of_examples: Σ_b z_b G_b of numbers z (probe, example), G_b the part of example b in the gradient.
    """
    inclusion(n_examples, size)  # Checks them.
    spread = (n_examples - size) / size * n_examples / max(n_examples - 1, 1)

    def image(numbers: Array) -> ByPlace:
        return of_examples(numbers - numbers.mean(1, keepdims=True))

    return Images(np.full(n_examples, spread), image)


def cosines_and_descents(products: Sequence[Array], size: int) -> tuple[Array, Array]:
    """E cos of the minibatch gradient and P(⟨ĝ, g⟩ > 0) of every layer, (layer + 1,), all layers together last.

    products: K_bc g_b·g_c (example, example), one for each layer. A subset whose gradient is zero has cosine 0. NaN
    without a gradient. Where there are too many subsets the cosine is NaN, and so is the probability, unless all inner
    products between examples are zero, as in activation space. It is then that of drawing a row with a gradient.
    """
    whole = [*products, np.sum(products, axis=0)]
    pairs = np.array([_subsets(layer, size) for layer in whole])
    return pairs[:, 0], pairs[:, 1]


def _subsets(products: Array, size: int) -> tuple[float, float]:
    """E cos and P(inner > 0) of one layer."""
    examples = len(products)
    inclusion(examples, size)
    truth = float(products.sum())
    if not truth > 0:
        return math.nan, math.nan
    diagonal = np.diagonal(products)
    if math.comb(examples, size) > MOST_SUBSETS:
        apart = not np.any(products - np.diag(diagonal))
        empty = special.comb(int(np.sum(diagonal == 0)), size) / special.comb(examples, size)
        return math.nan, 1.0 - float(empty) if apart else math.nan
    rows, cosines, positive = products.sum(1), 0.0, 0
    subsets = np.array(list(itertools.combinations(range(examples), size)))
    for part in np.array_split(subsets, max(1, subsets.size * size // 2**20)):
        inner = rows[part].sum(1)
        square = products[part[:, :, None], part[:, None, :]].sum((1, 2))
        lengths = np.sqrt(np.maximum(square, 0.0) * truth)
        cosines += float(np.sum(np.divide(inner, lengths, out=np.zeros_like(inner), where=lengths > 0)))
        positive += int(np.sum(inner > 0))
    return cosines / len(subsets), positive / len(subsets)
