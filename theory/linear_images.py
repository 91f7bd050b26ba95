"""Cov ĝ of a linear guess, all layers and examples together, as images of numbers (`theory.images`).

    ĝ = Σ_s (σ_s·ε) M_s ε

ε is all noise of a guess, s its slopes, and M_s the directions of what slope s scales: M_sj is the image of entry j of
the noise. In a joint pass each example has a slope, or the batch has one; in separate passes each layer has its slopes.
With the moments fourth and pair of `theory.linear_guess` within a noise vector v, and pair = 1 between two of them,

    Cov ĝ = Γ + Σ_v (pair − 1) (Γ_v + ḡ_v ḡ_vᵀ) + (fourth − 3 pair) Σ_j d_j d_jᵀ           d_j = Σ_s σ_sj M_sj
    Γ = Σ_st (σ_s·σ_t) Σ_j M_sj M_tjᵀ + Σ_st (M_s σ_t)(M_t σ_s)ᵀ                           ḡ = Σ_j d_j

Γ_v and ḡ_v are those of the noise vector v alone.

**Noise of single examples, or the slope of the batch** (`_apart`). An entry j of the noise is in the directions of one
slope s, so that the first sum is over entries. With m_s = M_s σ_s, and m_v of a noise vector alone,

    Cov ĝ = Σ_j c_j M_j M_jᵀ + Σ_s m_s m_sᵀ + 2 Σ_v (pair − 1) m_v m_vᵀ
    c_j = ‖σ_s‖² + (pair − 1) ‖σ_s,v‖² + (fourth − 3 pair) σ_sj²

Noise that all examples share, with the slope of the batch, is noise of one example with the directions Σ_b M_b.

**Shared noise with a slope for each example** (`_shared`). With R Rᵀ the Gram matrix σ_s·σ_t, the first sum is over the
images Σ_s R_sr M_sj. The second is no sum of squares, but the difference of two: with random signs ρ_st,

    Σ_st (M_s σ_t)(M_t σ_s)ᵀ = E u uᵀ − E w wᵀ          u, w = Σ_st (ρ_st ± ρ_ts)/2 · M_s σ_t

Rows that serve all examples have noise and a slope of the batch, in which those of examples meet; `between` has what
they add in a joint pass.

A mean of r independent guesses, such as the probes of a sketch (`of_one_vector`), has Cov ĝ/r.

Derived here, and enumerated in the tests. docs/mathematics.md#progress-of-a-step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from theory.factors import Array, Factor, gram
from theory.images import ByPlace, Images
from theory.linear_guess import Law, Layers, Slope, noise_vectors, of_others

Push = Callable[[Array], Array]


def of_layers(
    places: Sequence[int],
    factors: Sequence[Factor],
    pulled: Sequence[Array],
    laws: Sequence[Law],
    beside: Array,
    *,
    shared: bool,
    slope: Slope,
    layers: Layers,
) -> list[Images]:
    """Cov ĝ as images of these layers, {place: (probe, example, unit)}.

    pulled: a_b = A_bᵀ g_b, (example, noise) a layer. beside: covariances of what is in two examples' slopes from
    elsewhere, as `theory.linear_guess.from_outside` gives them.
    """
    if shared and slope == "example":
        return _shared(places, factors, pulled, laws, beside, layers)
    if shared:
        pulled, beside = [noise.sum(0, keepdims=True) for noise in pulled], beside[:1, :1]
    return _apart(places, factors, pulled, laws, np.diagonal(beside), slope, layers)


def _apart(
    places: Sequence[int],
    factors: Sequence[Factor],
    pulled: Sequence[Array],
    laws: Sequence[Law],
    beside: Array,
    slope: Slope,
    layers: Layers,
) -> list[Images]:
    strengths = np.stack([np.sum(noise**2, axis=1) for noise in pulled])
    whole = of_others(strengths, slope, layers) + beside + strengths  # ‖σ‖², (layer, example)
    found = []
    for place, factor, noise, law, strength in zip(places, factors, pulled, laws, whole, strict=True):
        factors_of_entries = strength[:, None] + law.excess * noise**2
        if law.pair != 1.0:
            by_vector = noise.reshape(len(noise), law.vectors, -1)
            lengths = np.broadcast_to(np.sum(by_vector**2, axis=2, keepdims=True), by_vector.shape)
            factors_of_entries = factors_of_entries + (law.pair - 1.0) * lengths.reshape(noise.shape)
            vectors = np.full(len(noise) * law.vectors, 2.0 * (law.pair - 1.0))
            found.append(Images(vectors, partial(_vectors, place, factor.push, noise, law.vectors)))
        found.append(Images(factors_of_entries.ravel(), partial(_entries, place, factor.push, noise.shape)))
    means = {place: factor.push(noise) for place, factor, noise in zip(places, factors, pulled, strict=True)}
    n_slopes = strengths.shape[1] if slope == "example" else 1
    passes = [means] if layers == "joint" else [{place: mean} for place, mean in means.items()]
    return found + [Images(np.ones(n_slopes), partial(spread, of_pass)) for of_pass in passes]


def _entries(place: int, push: Push, shape: tuple[int, ...], numbers: Array) -> ByPlace:
    return {place: push(numbers.reshape(-1, *shape))}


def _vectors(place: int, push: Push, noise: Array, vectors: int, numbers: Array) -> ByPlace:
    by_vector = noise.reshape(len(noise), vectors, -1)
    scaled = numbers.reshape(-1, len(noise), vectors, 1) * by_vector
    return {place: push(scaled.reshape(-1, *noise.shape))}


def spread(arrays: Mapping[int, Array], numbers: Array) -> ByPlace:
    """Each example's vector times its number, or all times one. arrays: (example, unit). numbers: (probe, example)."""
    return {place: numbers[:, :, None] * array for place, array in arrays.items()}


def summed(array: Array, numbers: Array) -> Array:
    """The sum of examples' vectors times their numbers, (probe, 1, unit). array: (example, unit)."""
    return (numbers @ array)[:, None]


def between(first: Callable[[Array], ByPlace], second: Callable[[Array], ByPlace], count: int) -> list[Images]:
    """Σ_i (x_i y_iᵀ + y_i x_iᵀ) = ½ Σ_i [(x_i + y_i)(x_i + y_i)ᵀ − (x_i − y_i)(x_i − y_i)ᵀ] of so many pairs of images.

    In a joint pass rows that serve all examples, with directions M and a slope of the batch, share x_b = M_b σ and
    y_b = M c_b with example b: σ is the noise of examples in the slope of the batch, and c_b the noise of these rows in
    the slope of the example. With the slope of the batch everywhere there is one pair, the two means.
    """

    def with_sign(sign: float, numbers: Array) -> ByPlace:
        return first(numbers) | {place: sign * array for place, array in second(numbers).items()}

    return [Images(np.full(count, sign / 2), partial(with_sign, sign)) for sign in (1.0, -1.0)]


def _shared(
    places: Sequence[int],
    factors: Sequence[Factor],
    slopes: Sequence[Array],
    laws: Sequence[Law],
    beside: Array,
    layers: Layers,
) -> list[Images]:
    found = []
    together = list(zip(places, factors, slopes, strict=True))
    for of_pass in [together] if layers == "joint" else [[one] for one in together]:
        found += slopes_of_same_noise(
            {place: slope for place, _, slope in of_pass}, {place: f.push for place, f, _ in of_pass}, beside
        )
    for place, factor, slope, law in zip(places, factors, slopes, laws, strict=True):
        found += beyond_gaussian(place, slope, law, factor.push, factor)
    return found


def slopes_of_same_noise(slopes: Mapping[int, Array], push: Mapping[int, Push], beside: Array | float) -> list[Images]:
    """Γ where all slopes have the same noise. slopes: σ_s, (slope, noise) a place. beside: added to σ_s·σ_t.

    push: (probe, slope, noise) → Σ over its noise of M_s, a place each.
    """
    products = sum((gram(slope) for slope in slopes.values()), np.zeros(1)) + beside
    values, vectors = np.linalg.eigh(products)
    kept = values > np.finfo(float).eps * max(float(values[-1]), 0.0)
    root = vectors[:, kept] * np.sqrt(values[kept])
    found = [
        Images(np.ones(root.shape[1] * slope.shape[1]), partial(_columns, place, push[place], root))
        for place, slope in slopes.items()
    ]
    count = len(products) ** 2
    return found + [Images(np.full(count, sign), partial(_swapped, slopes, push, sign)) for sign in (1.0, -1.0)]


def _columns(place: int, push: Push, root: Array, numbers: Array) -> ByPlace:
    return {place: push(root @ numbers.reshape(len(numbers), root.shape[1], -1))}


def _swapped(slopes: Mapping[int, Array], push: Mapping[int, Push], sign: float, numbers: Array) -> ByPlace:
    side = round(numbers.shape[1] ** 0.5)
    square = numbers.reshape(-1, side, side)
    half = (square + sign * square.transpose(0, 2, 1)) / 2
    return {place: push[place](half @ slope) for place, slope in slopes.items()}


def beyond_gaussian(place: int, slope: Array, law: Law, push: Push, factor: Factor) -> Iterator[Images]:
    """What fourth moments other than the Gaussian ones add to `slopes_of_same_noise`."""
    for weight, part, own, _ in noise_vectors(factor, slope, law, beyond_one=True):
        yield Images(np.full(1, weight), partial(spread, {place: part.push(own)}))
        for images in slopes_of_same_noise({place: own}, {place: part.push}, 0.0):
            yield images.scaled(weight)
    if law.excess:
        yield Images(np.full(slope.shape[1], law.excess), partial(_alone, place, push, slope))


def of_one_vector(place: int, slope: Array, law: Law, push: Push) -> list[Images]:
    """Cov ĝ of slopes (slope, noise) that have a single noise vector in common: pair Γ + (pair − 1) ḡ ḡᵀ + … ."""
    found = [images.scaled(law.pair) for images in slopes_of_same_noise({place: slope}, {place: push}, 0.0)]
    if law.pair != 1.0:
        found.append(Images(np.full(1, law.pair - 1.0), partial(_mean, place, push, slope)))
    if law.excess:
        found.append(Images(np.full(slope.shape[1], law.excess), partial(_alone, place, push, slope)))
    return found


def _mean(place: int, push: Push, slope: Array, numbers: Array) -> ByPlace:
    """ḡ times numbers: what every entry of the noise gives, together."""
    return _alone(place, push, slope, np.repeat(numbers, slope.shape[1], axis=1))


def _alone(place: int, push: Push, slope: Array, numbers: Array) -> ByPlace:
    return {place: push(numbers[:, None, :] * slope)}
