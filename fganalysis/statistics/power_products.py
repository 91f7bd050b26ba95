"""The interval of a product of powers of positive estimates, from the intervals of each.

    value = factor · Π x_i^{p_i}        log bounds: the half-widths p_i log(x_i/bound_i) added in squares

On a logarithmic scale the product is a sum, whose interval follows from those of independent terms with their different
sides kept apart (method of variance estimates recovery, Zou & Donner 2008).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fganalysis.statistics.intervals import Estimate


def power_product(factor: float, terms: Sequence[tuple[Estimate, float]]) -> Estimate:
    """The product with its interval; ``terms``: estimates, independent of each other, with their powers.

    The bounds are 0 and infinite where those of an estimate are not positive and finite. There is no standard error.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.asarray(factor * np.prod([term.value**power for term, power in terms], axis=0))
        sides = []
        for side in (-1, 1):  # Towards the lower bound of the product, then towards the upper.
            squares = np.zeros_like(value)
            for term, power in terms:
                bound = term.low if side * power < 0 else term.high
                half = np.abs(power * np.log(np.maximum(bound, 0.0) / term.value))
                squares = squares + np.where(term.value == bound, 0.0, half) ** 2
            sides.append(value * np.exp(side * np.sqrt(squares)))
    wide = np.any([np.asarray(term.wide) for term, _ in terms], axis=0)
    return Estimate(value, np.full_like(value, np.nan), sides[0], sides[1], wide)
