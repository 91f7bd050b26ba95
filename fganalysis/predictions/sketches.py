"""Closed forms of guesses at the weights from sketched, sampled and projected rows of a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.sketches.layers import Rows, SketchedLayer, sketched_layers
from fganalysis.predictions.arrays import Array, NoClosedForm, double
from fganalysis.predictions.guess import Guess, WeightMoments
from fganalysis.predictions.protocol import ClosedForm
from theory import gradient_projection, input_sketch, row_sampling, row_sketch

MOST_PAIRS = 2**28  # Pairs of rows of examples whose products a row sketch within examples takes.


def _unbiased(variance: Callable[[Any, SketchedLayer], float]) -> ClosedForm:
    """Of a guess that is the gradient with an error of each sketched layer's weights."""

    def guess(snapshot: Snapshot, estimator: Any) -> Guess:
        found = [0.0 if layer is None else variance(estimator, layer) for layer in sketched_layers(snapshot)]
        return _at_weights(double(snapshot.weight_gradients), found)

    return ClosedForm(guess)


def _at_weights(means: Sequence[Array], variances: Sequence[float], *, certain: bool = False) -> Guess:
    return Guess(weights=WeightMoments(means, np.array(variances), np.zeros(len(means))), certain=certain)


def _row_sketch(estimator: estimators.RowSketch, layer: SketchedLayer) -> float:
    return sum(_of_rows(estimator, rows) for rows in layer.taps)  # Each tap draws its own probes.


def _of_rows(estimator: estimators.RowSketch, rows: Rows) -> float:
    g, x = double([rows.gradients, rows.inputs])
    if estimator.within == "batch" or rows.owners is None:
        law = estimator.noise.fourth(len(g)), estimator.noise.pair(len(g))
        return row_sketch.variance(g, x, estimator.probes, *law)
    if len(g) ** 2 > MOST_PAIRS:
        raise NoClosedForm(
            f"the variance of a row sketch within examples takes products of {len(g)} rows with each other, which is "
            "too many: use a smaller batch, or within='batch'"
        )
    g, x = double([rows.owners.by_example(rows.gradients), rows.owners.by_example(rows.inputs)])
    law = estimator.noise.fourth(g.shape[1]), estimator.noise.pair(g.shape[1])
    return row_sketch.variance_by_example(g, x, estimator.probes, *law)


def _input_sketch(estimator: estimators.InputSketch, layer: SketchedLayer) -> float:
    law = estimator.noise.fourth(layer.n_inputs), estimator.noise.pair(layer.n_inputs)
    if estimator.shared:
        return input_sketch.variance(double([layer.of_weights])[0], estimator.columns, *law)
    by_tap = [double([rows.gradients, rows.inputs]) for rows in layer.taps]
    return sum(input_sketch.variance_by_row(g, x, estimator.columns, *law) for g, x in by_tap)


def _row_sampling(estimator: estimators.RowSampling, layer: SketchedLayer) -> float:
    g, x = (np.concatenate(double(parts)) for parts in zip(*((t.gradients, t.inputs) for t in layer.taps), strict=True))
    sizes = row_sampling.sizes(g, x)
    others = np.argsort(-sizes, kind="stable")[estimator.keep :]
    if len(others) == 0:
        return 0.0
    if estimator.by == "norm":
        return row_sampling.least_variance(g[others], x[others], estimator.count)
    return row_sampling.variance(g[others], x[others], np.full(len(others), 1 / len(others)), estimator.count)


def _gradient_projection(snapshot: Snapshot, estimator: estimators.GradientProjection) -> Guess:
    means, directions = double(snapshot.weight_gradients), estimator.directions(snapshot)
    for index, layer in enumerate(sketched_layers(snapshot)):
        if layer is not None:
            basis = double([directions[snapshot.layers[index]]])[0]
            projected = gradient_projection.projected(means[index][:, : layer.n_inputs], basis)
            means[index] = np.concatenate([projected, means[index][:, layer.n_inputs :]], axis=1)
    return _at_weights(means, [0.0] * len(means), certain=True)


def _random_projection(snapshot: Snapshot, estimator: estimators.RandomProjection) -> Guess:
    means, variances = double(snapshot.weight_gradients), np.zeros(len(snapshot.weights))
    for index, layer in enumerate(sketched_layers(snapshot)):
        if layer is not None:
            share, spread = gradient_projection.of_random(layer.n_inputs, estimator.k)
            of_weights = means[index][:, : layer.n_inputs]
            variances[index] = spread * float(np.sum(of_weights**2))
            means[index] = np.concatenate([share * of_weights, means[index][:, layer.n_inputs :]], axis=1)
    return _at_weights(means, variances.tolist())


ROW_SKETCH = _unbiased(_row_sketch)
INPUT_SKETCH = _unbiased(_input_sketch)
ROW_SAMPLING = _unbiased(_row_sampling)
GRADIENT_PROJECTION = ClosedForm(_gradient_projection)
RANDOM_PROJECTION = ClosedForm(_random_projection)
