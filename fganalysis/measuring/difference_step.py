"""difference_step(): which ε suits a difference of losses, in which precision, and what the perturbation leaves.

    central    (L(θ+εz) − L(θ−εz))/2ε   errs by (ε²/6) T zzz, and by rounding r/(√2 ε);  ε* = (9 r²/E (T zzz)²)^(1/6)
    one-sided  (L(θ+εz) − L(θ))/ε       errs by (ε/2) zᵀHz, and by rounding √2 r/ε;      ε* = (8 r²/E (zᵀHz)²)^(1/4)

zᵀHz and T zzz are exact derivatives in double precision along the estimator's directions. r is the standard deviation
of the rounding error of a loss in a precision, that of the moved weights included: the loss against that in double
precision at weights that are moved exactly. The rest follows by theory (`theory.finite_difference`,
`theory.rounding`): docs/mathematics.md#finite-differences.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from fganalysis.arguments import check_kind, check_names, check_number, check_seed, check_whole, described
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label, resolve
from fganalysis.estimators.perturbation.finite_difference import FiniteDifference
from fganalysis.measuring.difference_errors import Directions, OfScheme, TwoPrecisions, measured_near_best
from fganalysis.measuring.loss_along import LossAlong
from fganalysis.predictions import differences
from fganalysis.results import schema
from fganalysis.statistics import intervals
from fganalysis.statistics.intervals import Estimate
from fganalysis.statistics.power_products import power_product

Array = NDArray[np.float64]
NamedArrays = dict[str, tuple[tuple[str, ...], Any]]  # Dimensions and values.
SCHEMES = {"one-sided": False, "central": True}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EPSILONS = tuple(2.0**exponent for exponent in range(-20, 1))


def difference_step(
    snapshot: Snapshot,
    estimator: str | Estimator = "finite_difference",
    n_guesses: int = 256,
    seed: int = 0,
    *,
    precisions: Sequence[str] = tuple(PRECISIONS),
    epsilons: Sequence[float] = EPSILONS,
) -> xr.Dataset:
    """Errors of finite differences over ε, the best ε, and the drift of the weights, in several precisions.

    Errors are root mean squares over z of the slope's error, over ‖G‖, the root mean square of the slope itself for
    noise of unit variance. At an error e the guess has 1 + e² times the mean square, and so 1/(1 + e²) of the
    efficiency, of a guess by the exact slope.

    Args:
        snapshot: of a network in single or double precision, which is then taken in the others.
        estimator: a `FiniteDifference`, whose directions are drawn; its ``epsilon`` and ``central`` do not matter.
        n_guesses: directions; an interval takes at least 32. Each costs a third derivative, and for every precision
            about three losses in it and three in double precision for either difference.
        precisions: in which the network runs: "float32", "bfloat16", "float16". A loss function that computes in
            a higher precision does so here. epsilons: steps of the curves.

    Returns:
        Dataset over (precision, scheme, epsilon), scheme "one-sided" or "central". With bounds (`_low`, `_high`) of
        95 % intervals, marked wide (`_wide`) where they may cover more:

        - ``second_derivative``, ``third_derivative``: root mean squares of zᵀHz and T zzz.
        - ``loss_rounding``: r, over (precision, scheme); of the one-sided difference with the same L(θ) each time.
        - ``best_epsilon``; ``least_slope_error``: predicted at that ε.
        - ``slope_error_there``: measured at ``epsilon_there``, a power of two near the best ε, as r was.
          ``truncation_ratio``: root mean square of the truncation error there, over what the derivatives give. Where it
          was above 2 at the best ε by derivatives, kinks as those of ReLU make the error, whose square grows like ε
          then: ``kinks`` is 1, and the best ε is by them.
        - ``mean_error``: ⟨E ĝ − g, g⟩/‖g‖² by truncation, over epsilon, the same for both differences if the law of z
          is symmetric.

        Without intervals, from the values of these: ``slope_truncation``, ``slope_rounding`` and ``slope_error``, their
        root sum of squares, over epsilon. Predicted for z ~ N(0, 1): ``drift``, the root mean square length of what
        adding εz, subtracting it twice and adding it in place leaves in the weights, over ‖θ‖, and ``unmoved``, the
        share of weights that adding εz leaves as they are, both over (precision, epsilon).

        The attribute ``not_measured`` has the reasons for NaN as a JSON object by precision.

    Raises:
        ValueError: wrong arguments, an estimator of another class, a network or a loss without a third derivative in
            forward mode; if no precision could be measured, the error of the first.
    """
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    instance = resolve(estimator)
    check_kind("estimator", instance, FiniteDifference, "a FiniteDifference or its key")
    assert isinstance(instance, FiniteDifference)
    check_whole("n_guesses", n_guesses, 2)
    check_seed("seed", seed)
    check_names("precisions", precisions, PRECISIONS)
    steps = _checked_steps(epsilons)
    directions = Directions(snapshot, instance, int(n_guesses), int(seed))
    along = directions.derivatives(LossAlong(snapshot, torch.float64))
    norm = float(sum(part.double().square().sum() for part in snapshot.weight_gradients)) ** 0.5
    orders = {"one-sided": 1, "central": 2}  # Of the derivative less one, that truncation starts with.
    squares = {scheme: intervals.of_sample(along[:, order] ** 2) for scheme, order in orders.items()}
    rows: dict[str, NamedArrays] = {}
    reasons: dict[str, str] = {}
    for precision in precisions:
        pair = TwoPrecisions(snapshot, PRECISIONS[precision])
        try:
            measured = {
                scheme: measured_near_best(pair, directions, along, central) for scheme, central in SCHEMES.items()
            }
        except ValueError as error:
            reasons[precision] = str(error)
        else:
            rows[precision] = _of_precision(pair, measured, squares, norm, steps)
    if not rows:
        raise ValueError(next(iter(reasons.values())))
    variables: NamedArrays = {}
    for name, scheme in zip(("second_derivative", "third_derivative"), SCHEMES, strict=True):
        variables |= _named(name, (), power_product(1.0, [(squares[scheme], 0.5)]))
    tilt = intervals.of_sample(along[:, 2] * along[:, 0])
    variables |= _named("mean_error", (schema.STEP_LENGTH,), tilt.scaled(steps**2 / (6 * norm**2)))
    for name, (dims, like) in next(iter(rows.values())).items():
        missing = np.full(np.shape(like), np.nan)
        of_all = [rows[precision][name][1] if precision in rows else missing for precision in precisions]
        variables[name] = ((schema.PRECISION, *dims), np.array(of_all))
    coordinates = {schema.PRECISION: list(precisions), schema.SCHEME: list(SCHEMES), schema.STEP_LENGTH: steps}
    dataset = schema.annotate(xr.Dataset(variables, coords=coordinates))
    dataset.attrs = {
        "estimator": label(instance),
        "n_guesses": n_guesses,
        "seed": seed,
        "step": snapshot.step,
        schema.NOT_MEASURED: json.dumps(reasons, ensure_ascii=False),
    }
    return dataset


def _of_precision(
    pair: TwoPrecisions, measured: dict[str, OfScheme], squares: dict[str, Estimate], norm: float, steps: Array
) -> NamedArrays:
    """Every variable of one precision."""
    of_schemes = [of_scheme(measured[scheme], squares[scheme], norm, steps) for scheme in SCHEMES]
    variables: NamedArrays = {
        name: ((schema.SCHEME, *dims), np.array([of_scheme[name][1] for of_scheme in of_schemes]))
        for name, (dims, _) in of_schemes[0].items()
    }
    weights = np.concatenate([weight.double().flatten().cpu().numpy() for weight in pair.rounded.weights.values()])
    lengths, still = differences.drift(weights, steps, differences.Precision.of(torch.finfo(pair.dtype)))
    variables["drift"] = ((schema.STEP_LENGTH,), lengths / np.linalg.norm(weights))
    variables["unmoved"] = ((schema.STEP_LENGTH,), still)
    return variables


def of_scheme(measured: OfScheme, square: Estimate, norm: float, steps: Array) -> NamedArrays:
    """Every variable of one precision and kind of difference. square: the mean square of the derivative."""
    central, r2 = measured.central, measured.squared_rounding
    r, kinks = float(r2.value) ** 0.5, float(measured.squared_truncation.value) / measured.epsilon
    truncation = differences.Truncation(float(square.value), kinks if measured.kinks else 0.0, central)
    # The best ε is a constant times a power of r² over the same power of what truncation is made of.
    made_of = measured.squared_truncation if measured.kinks else square
    power = 1 / 3 if measured.kinks else 1 / 6 if central else 1 / 4
    best, least = truncation.best_epsilon(r), truncation.least_error(r) / norm
    variables = _named("loss_rounding", (), power_product(1.0, [(r2, 0.5)]))
    variables |= _named("best_epsilon", (), _about(best, [(r2, power), (made_of, -power)]))
    # The rounding part of the error is r/ε times a constant, and the error at the best ε a constant times that.
    variables |= _named("least_slope_error", (), _about(least, [(r2, 0.5 - power), (made_of, power)]))
    variables |= _named("slope_error_there", (), power_product(1 / norm, [(measured.squared_error, 0.5)]))
    variables |= _named("truncation_ratio", (), measured.truncation_ratio)
    variables |= {"epsilon_there": ((), measured.epsilon), "kinks": ((), float(measured.kinks))}
    truncated, rounded = truncation.error(steps), differences.rounding_part(steps, r, central=central)
    curves = {"slope_truncation": truncated, "slope_rounding": rounded, "slope_error": np.hypot(truncated, rounded)}
    return variables | {name: ((schema.STEP_LENGTH,), curve / norm) for name, curve in curves.items()}


def _about(value: float, terms: Sequence[tuple[Estimate, float]]) -> Estimate:
    """A value that is a constant times a product of powers of estimates."""
    product = power_product(1.0, terms)
    regular = 0 < value < np.inf
    return product.scaled(np.array(value / product.value)) if regular else Estimate(*[np.array(value)] * 4)


def _named(name: str, dims: tuple[str, ...], estimate: Estimate) -> NamedArrays:
    wide = np.broadcast_to(np.asarray(estimate.wide, np.float64), np.shape(estimate.value))
    parts = {"": estimate.value, schema.LOW: estimate.low, schema.HIGH: estimate.high, schema.WIDE: wide}
    return {name + suffix: (dims, part) for suffix, part in parts.items()}


def _checked_steps(epsilons: object) -> Array:
    if not isinstance(epsilons, Sequence | np.ndarray) or isinstance(epsilons, str) or not len(epsilons):
        raise ValueError(f"epsilons must be a list of steps, at least one, got {described(epsilons)}")
    for epsilon in epsilons:
        check_number("every one of the epsilons", epsilon, above=0)
    return np.array([float(epsilon) for epsilon in epsilons])
