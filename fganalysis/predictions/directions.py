"""Closed forms of the guesses along y = A ε, MATH.md §3: activity perturbation and the upstream family.

`FACTORS` says, for each class, how A is made; what follows from it is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.upstream import OVERSAMPLING
from fganalysis.estimators.checks import check_rank
from fganalysis.estimators.noise import Gaussian, is_isotropic
from fganalysis.estimators.upstream.newton_schulz_polynomials import COMPOSITIONS, nearest
from fganalysis.predictions.arrays import Array, Prediction, double, inputs_of, jacobians_of, quantities_of
from theory import batch_cosine, descent, linear_guess, upstream, wang2025
from theory.factors import Diagonal, Factor, LowRank
from theory.linear_guess import Moments
from theory.spectrum import spectrum

NEGLIGIBLE_SHARE = 0.01  # of a layer's squared gradient: what examples with undetermined directions may have


def linear(snapshot: Snapshot, estimator: Any) -> Prediction:
    factors = FACTORS[type(estimator)](snapshot, estimator)
    return {} if factors is None else _linear_along(snapshot, estimator, factors)


def _linear_along(snapshot: Snapshot, estimator: Any, factors: Sequence[Factor]) -> Prediction:
    """The general law of MATH.md §3 for directions A ε, A given tap by tap: most of the time goes into making it."""
    found = quantities_of(snapshot, linear_moments(snapshot, estimator, factors))
    norms = [wang2025.covariance_norm(factor) for factor in factors]
    found["wang2025_covariance_norm"] = np.array([*norms, np.nan])
    if is_isotropic(estimator.noise):
        found |= _distributional(snapshot, estimator, factors, double(snapshot.gradients))
    return found


def linear_moments(snapshot: Snapshot, estimator: Any, factors: Sequence[Factor]) -> list[Moments]:
    noise_units = _noise_units(snapshot, estimator)
    return linear_guess.moments(
        double(snapshot.gradients),
        factors,
        [estimator.noise.fourth(n) for n in noise_units],
        [estimator.noise.pair(n) for n in noise_units],
        shared=estimator.shared,
        slope=estimator.slope,
        layers=estimator.layers,
    )


def _noise_units(snapshot: Snapshot, estimator: Any) -> list[int]:
    """Entries of one noise vector, tap by tap: the tap's own units, or the next tap's for the upstream family."""
    units = [tap.units for tap in snapshot.taps]
    return units if isinstance(estimator, estimators.ActivityPerturbation) else [*units[1:], units[-1]]


def _distributional(
    snapshot: Snapshot, estimator: Any, factors: Sequence[Factor], gradients: list[Array]
) -> Prediction:
    """What needs more of the guess than two moments: the probability of descent, and the mean cosine.

    The cosine has a closed form for independent noise and example slopes, in activation space only: in weight space the
    examples' directions meet in one norm. A batch of one example has it in both, and no switch matters there but
    ``layers``. On the sphere instead of Gaussian noise only the length is another, which the cosine of one example's
    layer with a pass of its own does not feel; and that t² is not negative holds there as well.
    """
    inputs, layers = inputs_of(snapshot), estimator.layers
    alone = snapshot.n_examples == 1
    shape = (2, len(factors) + 1)
    cosines, descents = np.full(shape, np.nan), np.full(shape, np.nan)
    squares = [float((gradient**2).sum()) for gradient in gradients]
    if alone or (not estimator.shared and estimator.slope == "example"):
        spectra = [spectrum(factor, gradient) for factor, gradient in zip(factors, gradients, strict=True)]
        cosines[0] = batch_cosine.activation_cosines(spectra, squares, layers=layers)
        if alone:
            weights = [float((x**2).sum()) for x in inputs]
            cosines[1] = batch_cosine.of_one_example(spectra, weights, squares, layers=layers)
    for space, kernels in enumerate((None, [x @ x.T for x in inputs])):
        descents[space] = descent.descent_probability(
            gradients, factors, kernels, shared=estimator.shared, slope=estimator.slope, layers=layers
        )
    if type(estimator.noise) is not Gaussian:
        own_pass = layers == "separate"
        certain = np.zeros(shape, bool)
        certain[0, slice(None) if own_pass else -1] = True
        certain[1] = alone and own_pass
        descents[~certain] = np.nan
        cosines[:, slice(-1, None) if alone and own_pass else slice(None)] = np.nan
    return {"cosine": cosines, "descent_probability": descents}


def _identity(snapshot: Snapshot) -> Diagonal:
    return Diagonal(np.ones(snapshot.taps[-1].outputs.shape))


def _activity(snapshot: Snapshot, estimator: estimators.ActivityPerturbation) -> list[Factor]:
    scales = [np.ones(tap.outputs.shape) for tap in snapshot.taps]
    if estimator.active_only:
        scales[:-1] = [(derivative != 0).astype(float) for _, derivative in jacobians_of(snapshot)]
    return [Diagonal(scale) for scale in scales]


def _upstream(snapshot: Snapshot, estimator: estimators.Upstream) -> list[Factor]:
    return [*(upstream.upstream(*jacobian) for jacobian in jacobians_of(snapshot)), _identity(snapshot)]


def _orthogonal(snapshot: Snapshot, estimator: estimators.OrthogonalUpstream) -> Sequence[Factor] | None:
    factors, determined = _determined_orthogonal(snapshot, estimator)
    return factors if determined else None


def _determined_orthogonal(
    snapshot: Snapshot, estimator: estimators.OrthogonalUpstream
) -> tuple[list[LowRank | Diagonal], bool]:
    """The factors, and whether the Jacobians determine them: no k takes some of several equal singular values."""
    # What counts as a zero singular value depends on the precision that the network computes in.
    precision = torch.finfo(snapshot.outputs.dtype).eps
    k, which, iterations = estimator.k, estimator.which, estimator.iterations
    found, determined = [], True
    for gradient, (weight, derivative) in zip(double(snapshot.gradients), jacobians_of(snapshot), strict=False):
        triplets = upstream.singular_triplets(weight, derivative)
        tied = upstream.undetermined(triplets[1], weight.shape, k, which, precision)
        if iterations is None or k == "rank":
            found.append(upstream.orthogonal(weight, derivative, k, which, precision, triplets))
        else:
            start = np.asarray(np.linalg.svd(weight, compute_uv=False), np.float64)[None]
            tied |= upstream.undetermined(start, weight.shape, k + OVERSAMPLING, "top", precision)
            found.append(upstream.iterated(weight, derivative, k, iterations, OVERSAMPLING))
        squares = (gradient**2).sum(1)
        # Of many examples' singular values two come this close by chance, which their few shares do not show.
        determined &= bool(squares[tied].sum() <= NEGLIGIBLE_SHARE * squares.sum())
    check_rank(estimator.k, max((int(one.left.any(axis=1).sum(1).max()) for one in found), default=0))
    return [*found, _identity(snapshot)], determined


def orthogonal_guess(snapshot: Snapshot, estimator: estimators.OrthogonalUpstream) -> Prediction:
    """NaN but for `wang2025_covariance_norm` where a library chose the directions: another one chooses others."""
    factors, determined = _determined_orthogonal(snapshot, estimator)
    pairs = zip(double(snapshot.gradients), factors, strict=True)
    overlaps = [wang2025.overlap(g, f.left) if isinstance(f, LowRank) else (np.nan, np.nan) for g, f in pairs]
    plain, squared = np.array([*overlaps, (np.nan, np.nan)]).T
    found = _linear_along(snapshot, estimator, factors)
    found |= {"wang2025_overlap": plain, "wang2025_squared_overlap": squared}
    return found if determined else {name: found[name] for name in ("wang2025_covariance_norm",)}


def _newton_schulz(snapshot: Snapshot, estimator: estimators.NewtonSchulzUpstream) -> list[Factor]:
    factors: list[Factor] = []
    precision, ranks = torch.finfo(snapshot.outputs.dtype).eps, [0]
    for jacobian in jacobians_of(snapshot):
        values = upstream.singular_triplets(*jacobian)[1]
        ranks.append(int((values > max(jacobian[0].shape) * precision * values[:, :1]).sum(1).max()))
        norms = np.where(values[:, 0] > 0, values[:, 0], 1.0)
        relative = values[:, min(estimator.k, values.shape[1]) - 1] / norms
        coefficients = nearest(torch.from_numpy(relative)).numpy()
        factors.append(upstream.newton_schulz(*jacobian, np.repeat(coefficients[:, None, :], COMPOSITIONS, axis=1)))
    check_rank(estimator.k, max(ranks))
    return [*factors, _identity(snapshot)]


def _preconditioned(snapshot: Snapshot, estimator: estimators.PreconditionedUpstream) -> list[Factor]:
    jacobians = jacobians_of(snapshot)
    return [*(upstream.preconditioned(*jacobian, estimator.sigma) for jacobian in jacobians), _identity(snapshot)]


FACTORS: dict[type, Callable[[Snapshot, Any], Sequence[Factor] | None]] = {
    estimators.ActivityPerturbation: _activity,
    estimators.Upstream: _upstream,
    estimators.OrthogonalUpstream: _orthogonal,
    estimators.NewtonSchulzUpstream: _newton_schulz,
    estimators.PreconditionedUpstream: _preconditioned,
}
