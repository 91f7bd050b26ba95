"""The Dataset of `fganalysis.progress`: estimates of slopes, curvatures and steps, predictions, and cautions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label
from fganalysis.measuring.curved_guesses import CurvedGuesses
from fganalysis.measuring.joining import in_a_sentence
from fganalysis.measuring.network_curvature import OfNetwork, averaged_over_probes
from fganalysis.predictions.arrays import NoClosedForm
from fganalysis.predictions.progress import (
    PredictedProgress,
    best_step,
    curved_efficiency,
    expected_decrease,
    predict_progress,
)
from fganalysis.results import schema
from fganalysis.statistics.intervals import Array, Estimate
from fganalysis.statistics.progress import Curved, at_step, estimates

MUCH_UNSEEN = 0.1  # Of the curvature, from which on a caution says what the curvature does not show.

Variables = dict[str, tuple[tuple[str, ...], Array]]


def averaged_numbers(n_guesses: int) -> list[int]:
    """1, 2, 4, … up to the number of guesses."""
    return [1 << power for power in range(int(n_guesses).bit_length())]


def network_dataset(snapshot: Snapshot, network: OfNetwork, kinks: bool | None) -> xr.Dataset:
    """What is so of the network, whatever the estimator, over (layer)."""
    squared, along, trace = network.squared_gradient, network.gradient_curvature, network.trace()
    positive = (along > 0) & (squared > 0)
    per_slope = np.divide(squared, along, out=np.full_like(squared, np.nan), where=positive)
    unit = np.where(positive, per_slope, 1.0)
    step = np.where(squared > 0, np.where(along > 0, per_slope, np.inf), np.nan)
    found = {"curvature_trace": trace, "effective_rank": trace.scaled(unit).where(positive)}
    variables: Variables = {}
    for name, estimate in found.items():
        variables |= named(name, estimate)
    variables |= {
        "squared_gradient": ((schema.LAYER,), squared),
        "gradient_curvature": ((schema.LAYER,), along),
        "gradient_step": ((schema.LAYER,), step),
        "gradient_decrease": ((schema.LAYER,), step * squared / 2),
        "loss": ((), np.asarray(float(snapshot.loss))),
        "has_kinks": ((), np.asarray(np.nan if kinks is None else float(kinks))),
    }
    coordinates = {schema.STEP: snapshot.step, schema.LAYER: [*snapshot.layers, schema.ALL_LAYERS]}
    return xr.Dataset(variables, coords=coordinates)


def estimator_dataset(
    snapshot: Snapshot, estimator: Estimator, guesses: CurvedGuesses, network: OfNetwork, precision: float
) -> xr.Dataset:
    """What is so of one estimator, over (averaged) and (guess); an attribute says why something is not predicted."""
    numbers = averaged_numbers(len(guesses.slope))
    squared, along = network.squared_gradient[-1], network.gradient_curvature[-1]
    raw = Curved(
        guesses.slope,
        guesses.curvature,
        guesses.with_others,
        guesses.with_halves,
        np.asarray(squared),
        np.asarray(along),
    )
    found = estimates(raw, numbers, precision) | _at_step(snapshot, guesses, precision)
    variables: Variables = {}
    for name, estimate in found.items():
        variables |= named(name, estimate)
    known = (found["slope_along"].low > 0) & (found["curvature_along"].low > 0)
    variables["step_known"] = ((schema.AVERAGED,), known.astype(float))
    variables |= {
        name: ((schema.GUESS,), values)
        for name, values in {
            "guess_slope": guesses.slope,
            "guess_curvature": guesses.curvature,
            "guess_curvature_with_others": guesses.with_others,
            "guess_decrease": guesses.decrease,
            "guess_curvature_at_step": guesses.second_difference,
        }.items()
    }
    of_theory, why = _predicted(snapshot, estimator, network, numbers)
    coordinates = {schema.STEP: snapshot.step, schema.ESTIMATOR: label(estimator), schema.AVERAGED: numbers}
    return xr.Dataset(variables | of_theory, coords=coordinates, attrs={schema.NOT_PREDICTED: why} if why else {})


def _at_step(snapshot: Snapshot, guesses: CurvedGuesses, precision: float) -> dict[str, Estimate]:
    """What losses say at the best step size."""
    names = ("decrease_at_step", "curvature_at_step", "unseen_curvature")
    if not np.isfinite(guesses.step):
        return {name: Estimate.missing(()) for name in names}
    loss, step = np.asarray(abs(float(snapshot.loss))), np.asarray(guesses.step)
    return at_step(guesses.decrease, guesses.second_difference, guesses.curvature, step, loss, precision)


def _predicted(
    snapshot: Snapshot, estimator: Estimator, network: OfNetwork, numbers: Sequence[int]
) -> tuple[Variables, str]:
    """Predictions and their errors; NaN where the second moment of the guess is not known, and why."""
    missing: dict[str, Array] = {
        name: np.full((len(numbers),) if schema.PROGRESS[name].dims else (), np.nan)
        for name in schema.PROGRESS_PREDICTED
    }
    why = ""
    try:
        values, errors = _known(predict_progress(snapshot, estimator, network.curvature), network, numbers)
    except NoClosedForm as reason:
        values, errors, why = missing, missing, str(reason)
    except Warning:
        raise
    except Exception as error:  # Closed forms may be the user's and raise anything: what was measured must stay.
        values, errors, why = missing, missing, in_a_sentence(error)
    parts = {schema.PREDICTED: values, schema.PREDICTED + schema.SE: errors}
    found: Variables = {
        name + suffix: (schema.PROGRESS[name].dims, array)
        for suffix, arrays in parts.items()
        for name, array in arrays.items()
    }
    return found, why


def _known(
    theory: PredictedProgress, network: OfNetwork, numbers: Sequence[int]
) -> tuple[dict[str, Array], dict[str, Array]]:
    squared, along = float(network.squared_gradient[-1]), float(network.gradient_curvature[-1])
    parts = [averaged_over_probes(theory.averaged(number), len(theory.curvature) == 1) for number in numbers]
    curvature, error = np.array([part.value for part in parts]), np.array([part.se for part in parts])
    relative = np.divide(error, np.abs(curvature), out=np.zeros_like(error), where=curvature != 0)
    values = {
        "slope_along": np.asarray(theory.slope),
        "mean_curvature": np.asarray(theory.mean_curvature),
        "curvature_along": curvature,
        "best_step": best_step(theory.slope, curvature),
        "expected_decrease": expected_decrease(theory.slope, curvature),
        "curved_efficiency": curved_efficiency(theory.slope, curvature, squared, along),
    }
    errors = {
        name: np.where(np.isfinite(value), np.abs(value), np.nan) * relative
        for name, value in values.items()
        if np.ndim(value)
    }
    exact = {name: np.zeros(()) for name in ("slope_along", "mean_curvature")}
    return values, exact | errors | {"curvature_along": error}


def named(quantity: str, estimate: Estimate) -> Variables:
    """The parts of an estimate by their names in a result; flags are 1 or 0, and NaN where there is no interval."""
    missing = np.isnan(estimate.low)
    parts = {"": estimate.value, schema.SE: estimate.se, schema.LOW: estimate.low, schema.HIGH: estimate.high}
    for suffix, flag in ((schema.WIDE, estimate.wide), (schema.SHORT, estimate.short)):
        parts[suffix] = np.where(missing, np.nan, flag)
    dims = schema.PROGRESS[quantity].dims
    return {quantity + suffix: (dims, np.asarray(part, dtype=float)) for suffix, part in parts.items()}


def cautions(dataset: xr.Dataset) -> list[str]:
    """Why no best step is known, or what it leaves out, of one estimator at one step: a sentence each."""
    found = []
    slope, slope_low = (float(dataset["slope_along" + part]) for part in ("", schema.LOW))
    single = dataset.sel({schema.AVERAGED: 1})
    bend, bend_low = (float(single["curvature_along" + part]) for part in ("", schema.LOW))
    if slope <= 0:
        found.append("the mean guess does not point downhill, so no step size is known to decrease the loss")
    elif slope_low <= 0:
        found.append("the interval of the slope holds zero, so no step size is known to decrease the loss")
    if bend <= 0:
        found.append("the expected curvature along a guess is not positive, so the quadratic model has no best step")
    elif bend_low <= 0:
        found.append("the interval of the curvature holds zero, so the best step has no upper bound")
    unseen, low, high = (float(dataset["unseen_curvature" + part]) for part in ("", schema.LOW, schema.HIGH))
    if max(low, -high) > MUCH_UNSEEN:
        side = "above" if unseen > 0 else "below"
        found.append(f"over the best step the second difference of the loss is {abs(unseen):.0%} {side} the curvature")
    return found


def network_cautions(dataset: xr.Dataset) -> list[str]:
    """The same of the network."""
    found = []
    whole = dataset.sel({schema.LAYER: schema.ALL_LAYERS})
    if float(whole["gradient_curvature"]) <= 0:
        found.append(
            "the curvature along the gradient is not positive, so the gradient has no best step, and no curved "
            "efficiency and effective rank are known"
        )
    if float(whole["curvature_trace" + schema.LOW]) <= 0 <= float(whole["curvature_trace" + schema.HIGH]):
        found.append("the interval of the trace of the curvature holds zero")
    if float(dataset["has_kinks"]) == 1:
        found.append("the loss has kinks, whose curvature only unseen_curvature and decrease_at_step show")
    return found


def said(reasons: Mapping[str, Sequence[str]]) -> str:
    """The attribute ``cautions``."""
    return json.dumps({name: list(sentences) for name, sentences in reasons.items() if sentences}, ensure_ascii=False)
