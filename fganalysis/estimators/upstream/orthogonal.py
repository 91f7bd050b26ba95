"""Orthogonal upstream guess (W̃⊥_k): noise along the k leading right singular vectors of the upstream Jacobian.

    J_l,b = U S Vᵀ;   y_l,b = V_k U_kᵀ ε,  ε ∈ R^{out_{l+1}};  y = ε at the output tap;  ĝ = t y

Random: ε. The mean is V_k V_kᵀ g. As g lies in the row space of J, the guess is unbiased at k = "rank", and truncation
is its only bias. ``which="bottom"`` takes the k smallest nonzero singular values, the control of Wang et al.

A Jacobian of lower rank than k contributes all its directions. Where k takes only some of several equal singular values
(those of an orthogonal weight are all equal), J does not determine V_k. The directions then depend on method, machine
and order of the units, and the prediction is NaN. Sources: docs/mathematics.md#orthogonal-upstream-guess; Wang, Markou,
Campbell 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from fganalysis.arguments import check_choice, check_flag, check_whole, described
from fganalysis.capturing.jacobian import Jacobian, by_example, from_examples
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.estimators.checks import check_rank, guessing
from fganalysis.estimators.directional import (
    Factor,
    Slope,
    check_switches,
    decomposed,
    factors_of_decomposed,
    guess_along,
    passes_along,
)
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise
from fganalysis.estimators.passes import Passes


@dataclass(frozen=True)
class OrthogonalUpstream:
    """ĝ = t V_k U_kᵀ ε.

    Fields:
        k: the number of directions, or "rank" for all of them.
        which: "top" or "bottom", the end of the spectrum.
        exact: LAPACK's SVD of every example in place of the randomised range finder. k = "rank" and "bottom" always
            use it.
        iterations: the number of subspace iterations in place of the range finder, an approximation for training.
            `UpstreamJacobian.singular_vectors` says how good it is.
        noise, shared, slope, layers: the switches of docs/notation.md#the-three-switches, and the law of ε.

    Raises:
        ValueError: a wrong field, or ``iterations`` together with "rank", "bottom" or ``exact``; at a call, a k above
            the rank of every Jacobian.
    """

    k: int | Literal["rank"] = 10
    which: Literal["top", "bottom"] = "top"
    exact: bool = False
    iterations: int | None = None
    noise: Noise = GAUSSIAN
    shared: bool = False
    slope: Slope = "example"
    layers: Layers = "joint"

    def __post_init__(self) -> None:
        if not isinstance(self.k, str) or self.k != "rank":
            whole = isinstance(self.k, Integral) and not isinstance(self.k, bool)
            if not whole or self.k < 1:
                raise ValueError(f"k must be a whole number of at least 1 or 'rank', got {described(self.k)}")
        check_choice("which", self.which, ("top", "bottom"))
        check_flag("exact", self.exact)
        check_switches(self)
        if self.iterations is None:
            return
        check_whole("iterations", self.iterations, 0)
        if self.exact or self.k == "rank" or self.which == "bottom":
            raise ValueError(
                "iterations go with the top k directions and exact=False, "
                f"got k={self.k!r}, which={self.which!r}, exact={self.exact}"
            )

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        key = ("orthogonal", self.k, self.which, self.exact, self.iterations)
        factors = factors_of_decomposed(snapshot, snapshot.remember(key, lambda: self._projectors(snapshot)))
        return guess_along(self, snapshot, factors, n_guesses, generator)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        return passes_along(self, snapshot, n_guesses, beside=["singular vectors of every example's upstream Jacobian"])

    def _projectors(self, snapshot: Snapshot) -> list[Factor]:
        projectors, most = [], 0
        for jacobian in decomposed(snapshot):
            if jacobian is None:
                continue
            k = self.k if self.k == "rank" else min(self.k, *jacobian.shape)
            left, values, right = jacobian.singular_vectors(
                k, which=self.which, exact=self.exact, iterations=self.iterations
            )
            most = max(most, int((values > 0).sum(1).max()))
            projectors.append(_projector(jacobian, left, right))
        check_rank(self.k, most)
        return projectors


def _projector(jacobian: Jacobian, left: Tensor, right: Tensor) -> Factor:
    def apply(noise: Tensor) -> Tensor:
        # (guess, example, number) → for each example, a matrix product with a row for each guess.
        numbers = by_example(jacobian.following, noise).transpose(0, 1)
        along = torch.bmm(torch.bmm(numbers, left), right.transpose(1, 2)).transpose(0, 1)
        return from_examples(jacobian.tap, along)

    return Factor(jacobian.following.units, apply, jacobian.following)
