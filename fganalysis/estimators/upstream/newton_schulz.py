"""Newton–Schulz upstream guess (W̃⊥-NS): the orthogonal upstream guess without an SVD, by an odd matrix polynomial.

    y_l,b = p^N(J_l,b / ‖J_l,b‖₂)ᵀ ε,  p odd of degree 7, composed N times, fitted to a step at σ_k;   ĝ = t y

Singular values above σ_k are mapped to about 1 and those below to about 0. The Jacobian of each example is divided by
its spectral norm. Each example gets the polynomial whose threshold (0.1 … 0.9) is nearest to its σ_k/σ_1.

A unit with φ' = 0 is a column of zeros in J and in p^N(J). Such columns are left out of the products, and examples with
similar numbers of live units are multiplied together.

Random: ε. Biased: the mean is p^N(J)ᵀp^N(J) g. Sources: docs/mathematics.md#newton-schulz-upstream-guess; Wang, Markou,
Campbell 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.arguments import check_whole
from fganalysis.capturing.jacobian import Jacobian
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.capturing.upstream import UpstreamJacobian
from fganalysis.estimators.checks import check_rank, guessing
from fganalysis.estimators.directional import (
    Factor,
    Slope,
    check_switches,
    decomposed,
    factors_of_decomposed,
    guess_along,
    passes_along,
    per_example,
)
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.upstream.newton_schulz_polynomials import apply, nearest

EXAMPLES_AT_ONCE = 16  # whose products fit a cache at 512 units


@dataclass(frozen=True)
class NewtonSchulzUpstream:
    """ĝ = t p^N(J/‖J‖₂)ᵀ ε, the step at the ``k``-th singular value.

    The other fields are the switches of docs/notation.md#the-three-switches.

    Raises ValueError for k that is no whole number of at least 1; at a call, when no tap and example has k directions.
    """

    k: int = 10
    noise: Noise = GAUSSIAN
    shared: bool = False
    slope: Slope = "example"
    layers: Layers = "joint"

    def __post_init__(self) -> None:
        check_whole("k", self.k)
        check_switches(self)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        factors = factors_of_decomposed(
            snapshot, snapshot.remember(("newton_schulz", self.k), lambda: self._factors(snapshot))
        )
        return guess_along(self, snapshot, factors, n_guesses, generator)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        return passes_along(self, snapshot, n_guesses, beside=["polynomial of every example's upstream Jacobian"])

    def _factors(self, snapshot: Snapshot) -> list[Factor]:
        jacobians = [jacobian for jacobian in decomposed(snapshot) if jacobian is not None]
        leading = [jacobian.singular_vectors(min(self.k, *jacobian.shape))[1] for jacobian in jacobians]
        check_rank(self.k, max((int((values > 0).sum(1).max()) for values in leading), default=0))
        steps = [
            self._step(jacobian.kernel, values)
            if jacobian.is_plain and jacobian.kernel is not None
            else self._written_step(jacobian, values)
            for jacobian, values in zip(jacobians, leading, strict=True)
        ]
        return [per_example(jacobian, step) for jacobian, step in zip(jacobians, steps, strict=True)]

    def _written_step(self, jacobian: Jacobian, values: Tensor) -> Tensor:
        """As `_step`, of Jacobians that are no kernel and are written out."""
        norms = torch.where(values[:, :1] > 0, values[:, :1], 1.0)
        coefficients = nearest((values[:, -1:] / norms)[:, 0])
        matrices = jacobian.dense() / norms[:, :, None]
        parts = zip(coefficients.split(EXAMPLES_AT_ONCE), matrices.split(EXAMPLES_AT_ONCE), strict=True)
        return torch.cat([apply(polynomials, part) for polynomials, part in parts])

    def _step(self, jacobian: UpstreamJacobian, values: Tensor) -> Tensor:
        """p^N(J/‖J‖₂) of every example, (example, next_unit, unit); zero where the Jacobian is zero.

        values: (example, mode), the singular values from the first to the k-th.
        """
        norms = values[:, :1]
        coefficients = nearest((values[:, -1:] / torch.where(norms > 0, norms, 1.0))[:, 0])
        derivative = jacobian.derivative / torch.where(norms > 0, norms, 1.0)
        step = jacobian.weight.new_zeros(len(derivative), *jacobian.weight.shape)
        n_live = derivative.count_nonzero(1)
        for rows in n_live.argsort().split(EXAMPLES_AT_ONCE):
            size = max(1, int(n_live[rows].max()))
            live = (derivative[rows] != 0).to(torch.uint8).topk(size, dim=1).indices
            columns = jacobian.weight.T[live].mT * derivative[rows].gather(1, live)[:, None, :]
            step[rows[:, None], :, live] = apply(coefficients[rows], columns).mT
        return step
