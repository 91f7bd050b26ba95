"""Overlaps and angles of random subspaces and ranks of random matrices, with which measured ones must be compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fganalysis.arguments import check_number, check_whole, described
from fganalysis.measuring.sound_arrays import same_batch

LARGEST_UNIT = 2**53  # all whole numbers up to this one are doubles
ANGLES = 2**14  # of the quadrature of a smooth periodic function, whose error is that of rounding


@dataclass(frozen=True)
class RandomValue:
    """Mean and standard deviation of a quantity when a subspace is drawn uniformly at random."""

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]


def random_overlap(k: int | NDArray[np.int64], unit: int) -> RandomValue:
    """o_k² of a fixed gradient and a random k-dimensional subspace of R^unit: o² ~ Beta(k/2, (unit−k)/2).

    The mean is k/unit, the variance 2k(unit−k)/(unit²(unit+2)). k: one number or an array. Raises ValueError for k
    outside 0 … unit.
    """
    return random_alignment(k, 1, unit)


def random_alignment(k: int | NDArray[np.int64], other_k: int | NDArray[np.int64], unit: int) -> RandomValue:
    """Mean squared cosine of the principal angles between a k- and an m-dimensional subspace of R^d, one random.

    With projectors P and Q it is tr(PQ)/min(k, m). A random rotation prefers no direction in the irreducible space of
    traceless symmetric matrices, which has (d−1)(d+2)/2 dimensions, and the traceless parts of P and Q have squared
    norms k(d−k)/d and m(d−m)/d. So

        E tr(PQ) = km/d        Var tr(PQ) = 2km(d−k)(d−m) / (d²(d−1)(d+2))

    Single ordered angles have no such elementary form. k, other_k (m): whole numbers, or NumPy arrays of whole numbers
    that broadcast. Raises ValueError for numbers outside 0 … unit (d) or not whole, and for empty arrays.

    Source: docs/mathematics.md#random-subspaces.
    """
    check_whole("unit", unit, 1, LARGEST_UNIT)
    first, second = _dimensions("k", k, unit), _dimensions("other_k", other_k, unit)
    same_batch(first.shape, second.shape)
    n_angles = np.maximum(np.minimum(first, second), 1)
    size = float(unit)
    variance = 2 * first * second * (size - first) * (size - second) / (size**2 * max(size - 1, 1) * (size + 2))
    return RandomValue(first * second / size / n_angles, np.sqrt(variance) / n_angles)


def random_srank(example: int, unit: int, delta: float = 0.01) -> float:
    """`srank` of an (example, unit) matrix of independent entries of mean zero and equal variance, to within one mode.

    With m = min(example, unit), n = max(example, unit) and q = m/n the squared singular values over n·variance follow
    the law of Marchenko and Pastur, x = 1 + q + 2√q cos θ with density 2 sin²θ/(π x) in θ from 0 to π. The rank is m
    times the probability of the angles up to the one at which ∫ √x reaches 1 − δ of its whole. This is the limit of
    large matrices. Raises ValueError for sizes that are not whole numbers of at least 1 and a delta outside [0, 1).

    Source: docs/mathematics.md#effective-ranks.
    """
    check_whole("example", example, 1, LARGEST_UNIT)
    check_whole("unit", unit, 1, LARGEST_UNIT)
    check_number("delta", delta, least=0, below=1)
    smaller, larger = sorted((int(example), int(unit)))
    angles = (np.arange(ANGLES) + 0.5) * np.pi / ANGLES
    square = 1 + smaller / larger + 2 * np.sqrt(smaller / larger) * np.cos(angles)
    probability = np.cumsum(np.sin(angles) ** 2 / square)
    held = np.cumsum(np.sin(angles) ** 2 / np.sqrt(square))
    share = np.interp((1 - delta) * held[-1], held, probability) / probability[-1]
    return float(smaller * share)


def _dimensions(name: str, value: int | NDArray[np.int64], unit: int) -> NDArray[np.float64]:
    if not isinstance(value, np.ndarray):
        check_whole(name, value, 0, unit)
        return np.asarray(value, dtype=np.float64)
    whole = value.dtype.kind in "iuf" and not isinstance(value, np.ma.MaskedArray) and value.size > 0
    if not whole or not bool((value == np.floor(value)).all()):
        raise ValueError(f"{name} must be a whole number or an array of whole numbers, got {described(value)}")
    if value.min() < 0 or value.max() > unit:
        raise ValueError(f"{name} must lie between 0 and unit = {unit}, got {value.min()} to {value.max()}")
    return np.asarray(value, dtype=np.float64)
