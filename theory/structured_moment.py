"""E ĝĝᵀ of a guess along directions with a structure, and the curvature along it: a diagonal and outer products.

    E ĝĝᵀ = diag(w) + Σ_j c_j v_j v_jᵀ        E ĝᵀHĝ = Σ_i w_i H_ii + Σ_j c_j v_jᵀHv_j

Of independent blocks (`theory.parameter_blocks`) two of one pass have E Ĝ_b Ĝ_b'ᵀ = 2 m_b m_b'ᵀ, as t_b and t_b' are
both in t², and two of different passes m_b m_b'ᵀ. So with m = Σ_b m_b the whole mean and m_l that of a layer,

    joint      2 m mᵀ + Σ_b (what a block has of its own − 2 m_b m_bᵀ)
    separate   m mᵀ + Σ_l m_l m_lᵀ + Σ_b (the same)

Derived here, and enumerated in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from theory.factors import Array
from theory.images import Images, OfImages
from theory.linear_guess import Layers, check_switches

NUMBERS_AT_ONCE = 2**20  # Of the vectors whose forms are taken together, unless a single one has more.
Vectors = Callable[[], Iterator[tuple[float, Sequence[Array]]]]


@dataclass(frozen=True, eq=False)
class StructuredMoment:
    """E ĝĝᵀ and E ĝ; see the module's text.

    Attributes:
        weights: w, (unit, input) a layer. vectors: gives (c, v), v (unit, input) a layer. mean: (unit, input) a layer.
        images: further outer products, whose images are (probe, weight). n_averaged: independent guesses of which this
            is the mean.
    """

    weights: Sequence[Array]
    vectors: Vectors
    mean: Sequence[Array]
    images: Images | None = None
    n_averaged: float = 1.0

    def curvature(
        self,
        diagonal: Callable[[Sequence[Array]], Array],
        forms: Callable[[Sequence[Sequence[Array]]], Array],
        of_images: OfImages,
    ) -> Array:
        """E ĝᵀHĝ, (…). diagonal: w → Σ_i w_i H_ii, (…). forms: several v → vᵀHv, (vector,)."""
        single, vectors = diagonal(self.weights), self.vectors()
        at_once = max(1, NUMBERS_AT_ONCE // sum(mean.size for mean in self.mean))
        while some := list(islice(vectors, at_once)):
            factors, these = zip(*some, strict=True)
            single = single + np.asarray(factors) @ forms(these)
        if self.images is not None:
            single = single + of_images(self.images.factors, self.images.image)
        share = 1.0 / self.n_averaged
        found: Array = share * single + (1 - share) * forms([self.mean])[0]
        return found

    def slope(self, gradients: Sequence[Array]) -> float:
        """⟨ḡ, g⟩."""
        return sum(float(np.sum(m * g)) for m, g in zip(self.mean, gradients, strict=True))

    def of_mean(self, n_averaged: float) -> StructuredMoment:
        """Of the mean of so many independent guesses."""
        return replace(self, n_averaged=self.n_averaged * n_averaged)


def between_blocks(means: Sequence[Array], layers: Layers) -> Iterator[tuple[float, Sequence[Array]]]:
    """(c, v) of what blocks have together, the first terms of the module's text. means: E Ĝ_l, (unit, input)."""
    check_switches("batch", layers)
    yield (2.0 if layers == "joint" else 1.0), means
    if layers == "separate":
        for layer, mean in enumerate(means):
            yield 1.0, [mean if index == layer else np.zeros_like(other) for index, other in enumerate(means)]
