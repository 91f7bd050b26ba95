"""Sampling m of B rows without replacement: the minibatch gradient and any linear guess made on a part of the batch.

A row is in the sample with probability f = m/B, a pair of rows with f₂ = m(m−1)/(B(B−1)). On the sample S the loss is
the mean over m rows, so gradients carry B/m: ĝ_b = (B/m) g_b 1[b ∈ S]. With a kernel K between rows,

    E‖ĝ‖²_K = Σ_b K_bb‖g_b‖²/f + (f₂/f²) Σ_{b≠c} K_bc g_b·g_c
    tr Cov  = (1−f)/f · (B Σ_b K_bb‖g_b‖² − Σ_bc K_bc g_b·g_c)/(B−1),

the second by (f₂/f² − 1) = −(1−f)/(f(B−1)): the finite population correction.

A guess on S has, given S, second moments that are sums over pairs of rows of S for every linear guess whose examples do
not share both noise and slope. Their expectation takes f for a row and f₂ for a pair; what a row contributes by itself
(its own slope and direction) is told apart from what it takes from other rows' slopes.

    tr Cov ĝ = [E‖ĝ‖² − E_S‖E(ĝ|S)‖²]  +  [E_S‖E(ĝ|S)‖² − ‖E ĝ‖²]     within, the guess + between, the minibatch

Weight perturbation with one direction for the whole batch, or the mean of several, is covered as well: given S, its
second moments are linear in the squared norms of the sample's weight gradients, of expectation ‖G_l‖² + `variance`.

Source: Cochran 1977, Sampling Techniques, ch. 2; the split is derived here, and enumerated over all subsets in tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from theory.factors import Array, gram
from theory.linear_guess import Moments


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


def second_products(products: Array, own: Array, size: int) -> Array:
    """E of the products of guesses on a sample, zero off it, (example, example).

    products: E ⟨ĝ_b, ĝ_c⟩ on the whole batch. own: (example,) that part of E‖ĝ_b‖² which is the row's own, with other
    rows' slopes left out; for fixed rows and example slopes the diagonal itself.
    """
    row, pair = inclusion(len(products), size)
    expected = products * (pair / row**2)
    np.fill_diagonal(expected, own / row + (np.diagonal(products) - own) * (pair / row**2))
    return expected


def gradient_moments(gradient: Array, size: int) -> Moments:
    """The minibatch gradient itself, good for every kernel. gradient: (example, unit)."""
    row, _ = inclusion(len(gradient), size)
    products = gram(gradient)
    return Moments(gradient, gradient**2 / row, second_products(products, np.diagonal(products), size))


def subsampled_moments(whole: Moments, by_example: Moments, size: int) -> Moments:
    """A linear guess on a part of the batch.

    whole: the guess on the whole batch. by_example: the same guess with ``slope="example"``, which for example slopes
    is ``whole``. Noise shared by the examples is covered for example slopes only: with the batch's slope as well,
    second moments are sums over four rows. So is no direction that mixes examples.
    """
    row, pair = inclusion(len(whole.mean), size)
    squares = by_example.squares / row + (whole.squares - by_example.squares) * (pair / row**2)
    return Moments(whole.mean, squares, second_products(whole.products, np.diagonal(by_example.products), size))


def parts(subsampled: Moments, size: int, kernel: Array | None = None) -> Parts:
    """The split of a subsampled guess's variance; without a kernel in activation space. Its mean given S must be the
    whole batch's mean restricted to S, as it is for every guess that `subsampled_moments` covers."""
    products = gram(subsampled.mean) * (np.eye(len(subsampled.mean)) if kernel is None else kernel)
    between = variance(products, size)
    return Parts(subsampled.second_moment(kernel) - float(products.sum()) - between, between)
