"""Closed forms of the upstream family: directions A ε, A made of the upstream Jacobians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.upstream import OVERSAMPLING
from fganalysis.estimators.checks import check_rank
from fganalysis.estimators.noise import is_isotropic
from fganalysis.estimators.upstream.newton_schulz_polynomials import COMPOSITIONS, nearest
from fganalysis.predictions.arrays import double, jacobians_of
from fganalysis.predictions.guess import Guess
from fganalysis.predictions.linear import identity, linear_guess_of, with_example_slopes
from fganalysis.predictions.protocol import ClosedForm, upstream_jacobians
from theory import normalised_upstream, upstream
from theory.factors import Factor, LowRank

NEGLIGIBLE_SHARE = 0.01  # of a layer's squared gradient: what examples with undetermined directions may have


def _along(snapshot: Snapshot, estimator: Any, hidden: Sequence[Factor]) -> Guess:
    """The guess along A ε, where the noise of a tap has an entry for each unit of the next tap."""
    units = [tap.units for tap in snapshot.taps]
    return linear_guess_of(snapshot, estimator, [*hidden, identity(snapshot)], [*units[1:], units[-1]])


def _upstream(snapshot: Snapshot, estimator: estimators.Upstream) -> Guess:
    if estimator.normalise:
        return _normalised(snapshot, estimator)
    return _along(snapshot, estimator, [upstream.upstream(*jacobian) for jacobian in jacobians_of(snapshot)])


def _normalised(snapshot: Snapshot, estimator: estimators.Upstream) -> Guess:
    """Not known for shared noise with the batch's slope, nor for a law that is not rotation-invariant."""
    units = snapshot.taps[-1].units
    mixes = estimator.shared and estimator.slope == "batch" and snapshot.n_examples > 1
    if mixes or not is_isotropic(estimator.noise):
        return Guess()
    pairs = jacobians_of(snapshot)
    return Guess(
        normalised_upstream.moments(
            double(snapshot.gradients),
            [weight for weight, _ in pairs],
            [derivative for _, derivative in pairs],
            fourth=estimator.noise.fourth(units),
            pair=estimator.noise.pair(units),
            shared=estimator.shared,
            slope=estimator.slope,
            layers=estimator.layers,
        )
    )


def _orthogonal(snapshot: Snapshot, estimator: estimators.OrthogonalUpstream) -> Guess:
    """Where a library chose the directions, another library chooses others: only the factors are known, up to that."""
    hidden, determined = _orthogonal_factors(snapshot, estimator)
    if not determined:
        return Guess(factors=[*hidden, identity(snapshot)])
    return replace(_along(snapshot, estimator, hidden), directions=[factor.left for factor in hidden])


def _orthogonal_factors(snapshot: Snapshot, estimator: estimators.OrthogonalUpstream) -> tuple[list[LowRank], bool]:
    """The factors, and whether the Jacobians determine them: no k takes some of several equal singular values."""
    # What counts as a zero singular value depends on the precision that the network computes in.
    precision = torch.finfo(snapshot.dtype).eps
    k, which, iterations = estimator.k, estimator.which, estimator.iterations
    factors, determined = [], True
    for gradient, (weight, derivative) in zip(double(snapshot.gradients), jacobians_of(snapshot), strict=False):
        triplets = upstream.singular_triplets(weight, derivative)
        tied = upstream.undetermined(triplets[1], weight.shape, k, which, precision)
        if iterations is None or k == "rank":
            factors.append(upstream.orthogonal(weight, derivative, k, which, precision, triplets))
        else:
            start = np.asarray(np.linalg.svd(weight, compute_uv=False), np.float64)[None]
            tied |= upstream.undetermined(start, weight.shape, k + OVERSAMPLING, "top", precision)
            factors.append(upstream.iterated(weight, derivative, k, iterations, OVERSAMPLING))
        squares = (gradient**2).sum(1)
        # Of many examples' singular values two come this close by chance, which their few shares do not show.
        determined &= bool(squares[tied].sum() <= NEGLIGIBLE_SHARE * squares.sum())
    check_rank(estimator.k, max((int(factor.left.any(axis=1).sum(1).max()) for factor in factors), default=0))
    return factors, determined


def _newton_schulz(snapshot: Snapshot, estimator: estimators.NewtonSchulzUpstream) -> Guess:
    factors: list[Factor] = []
    precision, ranks = torch.finfo(snapshot.dtype).eps, [0]
    for jacobian in jacobians_of(snapshot):
        values = upstream.singular_triplets(*jacobian)[1]
        ranks.append(int((values > max(jacobian[0].shape) * precision * values[:, :1]).sum(1).max()))
        norms = np.where(values[:, 0] > 0, values[:, 0], 1.0)
        relative = values[:, min(estimator.k, values.shape[1]) - 1] / norms
        coefficients = nearest(torch.from_numpy(relative)).numpy()
        factors.append(upstream.newton_schulz(*jacobian, np.repeat(coefficients[:, None, :], COMPOSITIONS, axis=1)))
    check_rank(estimator.k, max(ranks))
    return _along(snapshot, estimator, factors)


def _preconditioned(snapshot: Snapshot, estimator: estimators.PreconditionedUpstream) -> Guess:
    jacobians = jacobians_of(snapshot)
    return _along(snapshot, estimator, [upstream.preconditioned(*one, estimator.sigma) for one in jacobians])


UPSTREAM, ORTHOGONAL, NEWTON_SCHULZ, PRECONDITIONED = (
    ClosedForm(guess, on_rows=partial(with_example_slopes, guess), needs=upstream_jacobians)
    for guess in (_upstream, _orthogonal, _newton_schulz, _preconditioned)
)
