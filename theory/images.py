"""A second moment at the weights as outer products of the images of numbers, and the curvature along it.

    E ĝĝᵀ = ḡ ḡᵀ + Σ_i c_i v_i v_iᵀ          E ĝᵀHĝ = ḡᵀHḡ + Σ_i c_i v_iᵀHv_i

v_i is the image of the i-th axis under a linear map, so that any Σ_i z_i v_i is made without the others. With as many
products with H as there are v_i the sum is exact. With independent signs z it is the mean of u₊ᵀHu₊ − u₋ᵀHu₋,
u± = Σ_i z_i √max(±c_i, 0) v_i (Hutchinson 1990), as E z_i z_j = δ_ij.

Derivation: docs/mathematics.md#progress-of-a-step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from theory.factors import Array


@dataclass(frozen=True, eq=False)
class Images:
    """Σ_i c_i v_i v_iᵀ.

    Attributes:
        factors: c, (number,). image: Σ_i z_i v_i of numbers z (probe, number), in any form that adds up.
    """

    factors: Array
    image: Callable[[Array], Any]

    def scaled(self, share: float) -> Images:
        return replace(self, factors=share * self.factors)


ByPlace = dict[int, Array]
OfImages = Callable[[Array, Callable[[Array], Array]], Array]  # Σ_i c_i v_iᵀHv_i, (…), of c and the image.


def together(images: Sequence[Images]) -> Images:
    """The sum of several, whose images are arrays by place, zero where there is none."""
    ends = np.cumsum([len(one.factors) for one in images])

    def image(numbers: Array) -> ByPlace:
        found: ByPlace = {}
        for one, some in zip(images, np.split(numbers, ends[:-1], axis=1), strict=True):
            if some.any():
                for place, array in one.image(some).items():
                    found[place] = found[place] + array if place in found else array
        return found

    return Images(np.concatenate([np.zeros(0), *(one.factors for one in images)]), image)


@dataclass(frozen=True, eq=False)
class ImagedMoment:
    """E ĝĝᵀ and E ĝ; see the module's text.

    Attributes:
        images: Cov ĝ, of which an image is (probe, weight), layer after layer. mean: E Ĝ_l, (unit, input) a layer.
    """

    images: Images
    mean: Sequence[Array]

    def curvature(self, of_images: OfImages, of_mean: float) -> Array:
        """E ĝᵀHĝ, (…). of_mean: ḡᵀHḡ."""
        return of_images(self.images.factors, self.images.image) + of_mean

    def slope(self, gradients: Sequence[Array]) -> float:
        """⟨ḡ, g⟩."""
        return sum(float(np.sum(m * g)) for m, g in zip(self.mean, gradients, strict=True))

    def of_mean(self, n_averaged: float) -> ImagedMoment:
        """Of the mean of so many independent guesses, whose covariance is that of one over their number."""
        return replace(self, images=self.images.scaled(1.0 / n_averaged))
