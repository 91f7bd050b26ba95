"""Closed forms of the upstream family: directions A ε, A made of the upstream Jacobians.

Where elementwise functions alone stand before a Linear module with a row an example, J = W diag(φ'). Elsewhere the
Jacobians of every example, from all its numbers at a tap to all its numbers at the next one, are written out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from fganalysis import estimators
from fganalysis.capturing.jacobian import DECOMPOSED, Jacobian
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.upstream import OVERSAMPLING
from fganalysis.estimators.checks import check_rank
from fganalysis.estimators.directional import decomposed
from fganalysis.estimators.noise import Gaussian, is_isotropic
from fganalysis.estimators.upstream.newton_schulz_polynomials import COMPOSITIONS, nearest
from fganalysis.predictions.arrays import Array, NoClosedForm, double
from fganalysis.predictions.examples import examples_of, gradients_of, is_plain
from fganalysis.predictions.guess import Guess
from fganalysis.predictions.linear import (
    AlongNoise,
    along_noise_at,
    check_covered,
    identity,
    linear_closed_form,
    linear_guess_of,
    second_moment_along,
    with_example_slopes,
)
from fganalysis.predictions.protocol import ClosedForm
from theory import normalised_upstream, upstream
from theory.factors import Dense, Factor, LowRank
from theory.images import ImagedMoment

UNDETERMINED = "the upstream Jacobians do not determine the k directions"
NEGLIGIBLE_SHARE = 0.01  # of a layer's squared gradient: what examples with undetermined directions may have


@dataclass(frozen=True, eq=False)
class Upstream:
    """J of one tap. kernel: W (next_unit, unit) and φ' (example, unit), or None where J is written out."""

    index: int
    jacobian: Jacobian
    kernel: tuple[Array, Array] | None

    @property
    def sides(self) -> tuple[int, int]:
        """Numbers of an example at the next tap and at this one."""
        return self.jacobian.shape

    @cached_property
    def written(self) -> Array:
        """(example, number at the next tap, number)."""
        return double([self.jacobian.dense()])[0]

    @cached_property
    def triplets(self) -> tuple[Array, Array, Array]:
        return upstream.triplets_of(self.written) if self.kernel is None else upstream.singular_triplets(*self.kernel)


def _upstreams(snapshot: Snapshot) -> list[Upstream | None]:
    """J of every tap; None at an output tap, and where a tap's rows serve all examples.

    Raises:
        NoClosedForm: Jacobians that are unknown, or too large to write out.
    """
    try:
        jacobians = decomposed(snapshot)
    except ValueError as error:
        raise NoClosedForm(str(error)) from error
    try:
        shapes = [(0, 0) if one is None else one.shape for one in jacobians]
    except ValueError as error:
        raise NoClosedForm("the Jacobian of each example is written out, but examples have no rows alike") from error
    found: list[Upstream | None] = []
    for index, (jacobian, (n_next, n)) in enumerate(zip(jacobians, shapes, strict=True)):
        if jacobian is None:
            found.append(None)
        elif jacobian.is_plain and jacobian.kernel is not None:
            weight, derivative = double([jacobian.kernel.weight, jacobian.kernel.derivative])
            found.append(Upstream(index, jacobian, (weight, derivative)))
        else:
            _check_numbers(jacobian.tap.name, snapshot.n_examples * n_next * n)
            found.append(Upstream(index, jacobian, None))
    return found


def _check_numbers(name: str, numbers: int) -> None:
    if numbers > DECOMPOSED:
        raise NoClosedForm(
            f"the prediction writes out the upstream Jacobians of tap {name!r}, {numbers} numbers, which is too many "
            f"(at most {DECOMPOSED}): use a smaller batch or network"
        )


def _along(
    snapshot: Snapshot,
    estimator: Any,
    factor_of: Callable[[Upstream], Factor],
    serving: Callable[[int], AlongNoise] | None = None,
) -> list[AlongNoise]:
    """A of every tap, where the noise of a tap is drawn in the rows of the next tap.

    serving: A of a tap whose rows serve all examples, the identity by default.
    """
    check_covered(snapshot, estimator)
    along = [
        identity(snapshot, index)
        if of_tap is None
        else along_noise_at(snapshot, factor_of(of_tap), snapshot.taps.index(of_tap.jacobian.following))
        for index, of_tap in enumerate(_upstreams(snapshot))
    ]
    if serving is not None:
        for index in examples_of(snapshot).serving:
            along[index] = serving(index)
    return along


def _upstream(snapshot: Snapshot, estimator: estimators.Upstream) -> Guess:
    if estimator.normalise:
        return _normalised(snapshot, estimator)
    return linear_guess_of(snapshot, estimator, _upstream_along(snapshot, estimator))


def _upstream_second_moment(snapshot: Snapshot, estimator: estimators.Upstream) -> ImagedMoment:
    if estimator.normalise:
        raise NoClosedForm("rescaled directions are no linear image of noise, and their products are unknown")
    return second_moment_along(snapshot, estimator, _upstream_along(snapshot, estimator))


def _upstream_along(snapshot: Snapshot, estimator: estimators.Upstream) -> list[AlongNoise]:
    of_all = partial(_transposed_of_all, snapshot, estimator)
    if not examples_of(snapshot).apart:
        check_covered(snapshot, estimator)
        return [of_all(index) for index in range(len(snapshot.taps))]
    return _along(snapshot, estimator, _transposed, of_all)


def _transposed_of_all(snapshot: Snapshot, estimator: estimators.Upstream, index: int) -> AlongNoise:
    """Jᵀ from the rows of all examples at the next tap to rows that serve all of them, or whose examples interact."""
    try:
        jacobian = snapshot.jacobians[index]
    except ValueError as error:
        raise NoClosedForm(str(error)) from error
    if jacobian is None:
        return identity(snapshot, index)
    tap, following, examples = jacobian.tap, snapshot.taps.index(jacobian.following), examples_of(snapshot)
    numbers = jacobian.following.outputs.numel()
    _check_numbers(tap.name, numbers * tap.outputs.numel())
    basis = torch.eye(numbers, dtype=snapshot.dtype, device=snapshot.device)
    vectors = basis.view(-1, *jacobian.following.outputs.shape)
    pulled = double([jacobian.transposed_product(vectors).flatten(1)])[0]
    by_row = pulled.reshape(*jacobian.following.outputs.shape, -1)
    by_example = examples.at(following, by_row)
    n_rows = len(by_row)
    if estimator.shared:
        by_example, n_rows = by_example.sum(0, keepdims=True), examples.rows_each(following)
    matrix = by_example.reshape(1, -1, pulled.shape[1]).transpose(0, 2, 1)
    return AlongNoise(Dense(np.ascontiguousarray(matrix)), jacobian.following.units, n_rows)


def _transposed(of_tap: Upstream) -> Factor:
    if of_tap.kernel is not None:
        return upstream.upstream(*of_tap.kernel)
    return Dense(np.ascontiguousarray(of_tap.written.transpose(0, 2, 1)))


def _normalised(snapshot: Snapshot, estimator: estimators.Upstream) -> Guess:
    """Not known for shared noise with the batch's slope, nor for a law that is not rotation-invariant.

    Several noise vectors of an example are together rotation-invariant if they are Gaussian.
    """
    check_covered(snapshot, estimator)
    if examples_of(snapshot).serving:
        raise NoClosedForm("a tap has rows that serve all examples, and no direction of each example to rescale")
    mixes = estimator.shared and estimator.slope == "batch" and snapshot.n_examples > 1
    one_vector = is_plain(snapshot) and all(
        (tap.following is None) == (tap is snapshot.taps[-1]) for tap in snapshot.taps
    )
    if mixes or not is_isotropic(estimator.noise) or not (one_vector or type(estimator.noise) is Gaussian):
        return Guess()
    units = snapshot.taps[-1].units
    spectra: list[tuple[Array, Array] | None] = []
    for of_tap in _upstreams(snapshot):
        if of_tap is None:
            spectra.append(None)
            continue
        _, values, vectors = of_tap.triplets
        zero = values <= max(of_tap.sides) * upstream.DOUBLE * values[:, :1]
        spectra.append((np.where(zero, 0.0, values), vectors))
    moments = normalised_upstream.moments_of(
        gradients_of(snapshot),
        spectra,
        fourth=estimator.noise.fourth(units),
        pair=estimator.noise.pair(units),
        shared=estimator.shared,
        slope=estimator.slope,
        layers=estimator.layers,
    )
    if is_plain(snapshot):
        return Guess(moments)
    return Guess(moments, why="products of the rows of a rescaled direction, which weight space takes, are unknown")


def _orthogonal(snapshot: Snapshot, estimator: estimators.OrthogonalUpstream) -> Guess:
    """Where a library chose the directions, another library chooses others: only the factors are known, up to that."""
    along, taken, determined = _orthogonal_along(snapshot, estimator)
    guess = linear_guess_of(snapshot, estimator, along)
    if not determined:
        return Guess(factors=guess.factors, why=UNDETERMINED)
    return replace(guess, directions=[taken[i].left if i in taken else None for i in range(len(snapshot.taps))])


def _orthogonal_second_moment(snapshot: Snapshot, estimator: estimators.OrthogonalUpstream) -> ImagedMoment:
    along, _, determined = _orthogonal_along(snapshot, estimator)
    if not determined:
        raise NoClosedForm(UNDETERMINED)
    return second_moment_along(snapshot, estimator, along)


def _orthogonal_along(
    snapshot: Snapshot, estimator: estimators.OrthogonalUpstream
) -> tuple[list[AlongNoise], dict[int, LowRank], bool]:
    """A of every tap, those of upstream Jacobians by tap, and whether the Jacobians determine all of them."""
    taken: dict[int, LowRank] = {}
    determined: list[bool] = []
    gradients = gradients_of(snapshot)

    def factor_of(of_tap: Upstream) -> Factor:
        factor, tied = _leading(snapshot, estimator, of_tap)
        squares = (gradients[of_tap.index] ** 2).sum(1)
        # Of many examples' singular values two come this close by chance, which their few shares do not show.
        determined.append(bool(squares[tied].sum() <= NEGLIGIBLE_SHARE * squares.sum()))
        taken[of_tap.index] = factor
        return factor

    along = _along(snapshot, estimator, factor_of)
    check_rank(estimator.k, max((int(factor.left.any(axis=1).sum(1).max()) for factor in taken.values()), default=0))
    return along, taken, all(determined)


def _leading(
    snapshot: Snapshot, estimator: estimators.OrthogonalUpstream, of_tap: Upstream
) -> tuple[LowRank, np.ndarray]:
    """V_k U_kᵀ, and for which examples J does not determine it: no k takes some of several equal singular values."""
    # What counts as a zero singular value depends on the precision that the network computes in.
    precision = torch.finfo(snapshot.dtype).eps
    k, which, iterations = estimator.k, estimator.which, estimator.iterations
    tied = upstream.undetermined(of_tap.triplets[1], of_tap.sides, k, which, precision)
    if iterations is None or k == "rank":
        return upstream.orthogonal_of(of_tap.triplets, of_tap.sides, k, which, precision), tied
    if of_tap.kernel is None:
        raise NoClosedForm(f"what iterations={iterations} find is known where the network is a chain of Linear modules")
    weight, derivative = of_tap.kernel
    start = np.asarray(np.linalg.svd(weight, compute_uv=False), np.float64)[None]
    tied = tied | upstream.undetermined(start, weight.shape, k + OVERSAMPLING, "top", precision)
    return upstream.iterated(weight, derivative, k, iterations, OVERSAMPLING), tied


def _newton_schulz(snapshot: Snapshot, estimator: estimators.NewtonSchulzUpstream) -> list[AlongNoise]:
    precision, ranks = torch.finfo(snapshot.dtype).eps, [0]

    def factor_of(of_tap: Upstream) -> Factor:
        values = of_tap.triplets[1]
        ranks.append(int((values > max(of_tap.sides) * precision * values[:, :1]).sum(1).max()))
        norms = np.where(values[:, 0] > 0, values[:, 0], 1.0)
        relative = values[:, min(estimator.k, values.shape[1]) - 1] / norms
        coefficients = nearest(torch.from_numpy(relative)).numpy()
        return upstream.newton_schulz_of(of_tap.triplets, np.repeat(coefficients[:, None, :], COMPOSITIONS, axis=1))

    along = _along(snapshot, estimator, factor_of)
    check_rank(estimator.k, max(ranks))
    return along


def _preconditioned(snapshot: Snapshot, estimator: estimators.PreconditionedUpstream) -> list[AlongNoise]:
    precision = torch.finfo(snapshot.dtype).eps

    def factor_of(of_tap: Upstream) -> Factor:
        # The estimator takes a kernel for exact, and Jacobians that are written out for those of its precision.
        epsilon = upstream.DOUBLE if of_tap.kernel is not None else precision
        return upstream.orthogonal_of(of_tap.triplets, of_tap.sides, "rank", epsilon=epsilon)

    return _along(snapshot, estimator, factor_of)


UPSTREAM, ORTHOGONAL = (
    ClosedForm(guess, on_rows=partial(with_example_slopes, guess), at_weights=second_moment)
    for guess, second_moment in ((_upstream, _upstream_second_moment), (_orthogonal, _orthogonal_second_moment))
)
NEWTON_SCHULZ, PRECONDITIONED = (linear_closed_form(along) for along in (_newton_schulz, _preconditioned))
