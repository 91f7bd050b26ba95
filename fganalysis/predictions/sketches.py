"""Closed forms of guesses at the weights from sketched, sampled and projected rows of a layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.weight_maps.convolution import Convolution
from fganalysis.estimators.sketches.layers import Rows, SketchedLayer, sketched_layers
from fganalysis.predictions.arrays import Array, NoClosedForm, double
from fganalysis.predictions.guess import Guess, WeightMoments
from fganalysis.predictions.protocol import ClosedForm
from fganalysis.predictions.sketched_progress import (
    Covariance,
    of_input_sketch,
    of_random_projection,
    of_row_sampling,
    of_row_sketch,
    second_moment_of,
)
from theory import gradient_projection, input_sketch, row_sampling, row_sketch
from theory.images import ImagedMoment

MOST_PAIRS = 2**28  # Pairs of rows of examples whose products a row sketch within examples takes.


def _unbiased(variance: Callable[[Any, SketchedLayer], float], covariance: Covariance) -> ClosedForm:
    """Of a guess that is the gradient with an error of each sketched layer's weights."""

    def guess(snapshot: Snapshot, estimator: Any) -> Guess:
        found = [0.0 if layer is None else variance(estimator, layer) for layer in sketched_layers(snapshot)]
        return _at_weights(double(snapshot.weight_gradients), found)

    def second_moment(snapshot: Snapshot, estimator: Any) -> ImagedMoment:
        return second_moment_of(covariance, snapshot, estimator, double(snapshot.weight_gradients))

    return ClosedForm(guess, at_weights=second_moment)


def _at_weights(means: Sequence[Array], variances: Sequence[float], *, certain: bool = False) -> Guess:
    return Guess(weights=WeightMoments(means, np.array(variances), np.zeros(len(means))), certain=certain)


def _row_sketch(estimator: estimators.RowSketch, layer: SketchedLayer) -> float:
    return sum(_of_rows(estimator, rows) for rows in layer.taps)  # Each tap draws its own probes.


def _of_rows(estimator: estimators.RowSketch, rows: Rows) -> float:
    owners = estimator.together(rows)
    kept = double([rows.kept[None] if owners is None else owners.by_example(rows.kept)])[0]
    law = estimator.noise.fourth(kept.shape[1]), estimator.noise.pair(kept.shape[1])
    if owners is not None and (owners.n_examples * kept.shape[1]) ** 2 > MOST_PAIRS:
        raise NoClosedForm(
            f"the variance of a row sketch within examples takes products of {owners.n_rows} rows with each other, "
            "which is too many: use a smaller batch, or within='batch'"
        )
    found = 0.0
    for gradients in _at_kept_rows(rows):
        g = double([gradients[None] if owners is None else owners.by_example(gradients)])[0]
        found += row_sketch.variance_by_example(g, kept, estimator.probes, *law)
    return found


def _at_kept_rows(rows: Rows) -> Iterator[Tensor]:
    """The gradients at the rows that are kept, (row, unit): of a convolution once for each place of its kernel.

    There the gradient of an output place stands at the place of the input that it reads. Where it reads the padding,
    nothing is kept.
    """
    if rows.convolution is None:
        yield rows.gradients
        return
    read = _places_read(rows.convolution).to(rows.gradients.device)
    images = rows.gradients.unflatten(0, (len(rows.convolution.arriving), -1))
    size = rows.convolution.arriving[0, 0].numel()
    for places in read.unbind(1):
        shifted = images.new_zeros(len(images), size + 1, images.shape[2]).index_add_(1, places, images)
        yield shifted[:, 1:].flatten(0, 1)


def _places_read(convolution: Convolution) -> Tensor:
    """The place of the input that an output place reads, (output place, place of the kernel), from 1; 0 is padding."""
    shape = convolution.arriving.shape[2:]
    numbered = torch.arange(1, math.prod(shape) + 1).view(shape)
    for axis, padding in enumerate(convolution.padding):
        edge = numbered.new_zeros([padding if i == axis else size for i, size in enumerate(numbered.shape)])
        numbered = torch.cat([edge, numbered, edge], dim=axis)
    axes = len(shape)
    for axis in range(axes):
        span = (convolution.kernel[1 + axis] - 1) * convolution.dilation[axis] + 1
        numbered = numbered.unfold(axis, span, convolution.stride[axis])
    for axis, dilation in enumerate(convolution.dilation):
        numbered = numbered[(slice(None),) * (axes + axis) + (slice(None, None, dilation),)]
    return numbered.reshape(math.prod(convolution.places), -1)


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


def _random_projection_second_moment(snapshot: Snapshot, estimator: estimators.RandomProjection) -> ImagedMoment:
    weights = _random_projection(snapshot, estimator).weights
    assert weights is not None
    return second_moment_of(of_random_projection, snapshot, estimator, weights.means)


ROW_SKETCH = _unbiased(_row_sketch, of_row_sketch)
INPUT_SKETCH = _unbiased(_input_sketch, of_input_sketch)
ROW_SAMPLING = _unbiased(_row_sampling, of_row_sampling)
GRADIENT_PROJECTION = ClosedForm(_gradient_projection)
RANDOM_PROJECTION = ClosedForm(_random_projection, at_weights=_random_projection_second_moment)
