"""E ĝĝᵀ of guesses from sketched, sampled and projected rows of a layer, for the curvature along them.

Layers have noise of their own, so that Cov ĝ is a sum over layers. Biases and layers that are no matrix are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from fganalysis import estimators
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.sketches.layers import SketchedLayer, sketched_layers
from fganalysis.predictions.arrays import Array, NoClosedForm, double
from fganalysis.predictions.weight_maps import check_images
from theory import gradient_projection, input_sketch, row_sampling, row_sketch
from theory.images import ByPlace, ImagedMoment, Images, together

Covariance = Callable[[Any, SketchedLayer, int], list[Images]]


def second_moment_of(
    covariance: Covariance, snapshot: Snapshot, estimator: Any, means: Sequence[Array]
) -> ImagedMoment:
    """From Cov of each sketched layer, images {layer: (probe, unit, input)} without the bias.

    Raises:
        NoClosedForm: layers of which it is not known, or with too many images.
    """
    found: list[Images] = []
    for index, layer in enumerate(sketched_layers(snapshot)):
        if layer is not None:
            check_images(len(layer.gradient) ** 2)
            found += covariance(estimator, layer, index)
    images = together(found)
    check_images(len(images.factors))
    return ImagedMoment(Images(images.factors, partial(_written, snapshot, images)), means)


def _written(snapshot: Snapshot, images: Images, numbers: Array) -> Array:
    """(probe, weight) of all layers."""
    parts: ByPlace = images.image(numbers)
    whole = [np.zeros((len(numbers), *layer.weight.shape)) for layer in snapshot.weights]
    for index, of_weights in parts.items():
        whole[index][:, :, : of_weights.shape[2]] = of_weights
    return np.concatenate([array.reshape(len(numbers), -1) for array in whole], axis=1)


def of_row_sketch(estimator: estimators.RowSketch, layer: SketchedLayer, place: int) -> list[Images]:
    found = []
    for rows in layer.taps:
        if estimator.mode != "dense" or rows.convolution is not None or estimator.together(rows) is not None:
            raise NoClosedForm(
                "the covariance of a row sketch is known for rows of Linear modules that are sketched together, and "
                "channels that share the probes"
            )
        gradients, inputs = double([rows.gradients, rows.inputs])
        law = estimator.noise.fourth(len(inputs)), estimator.noise.pair(len(inputs))
        found += row_sketch.images(place, gradients, inputs, int(estimator.probes), *law)
    return found


def of_input_sketch(estimator: estimators.InputSketch, layer: SketchedLayer, place: int) -> list[Images]:
    law = estimator.noise.fourth(layer.n_inputs), estimator.noise.pair(layer.n_inputs)
    columns = int(estimator.columns)
    if estimator.shared:
        return input_sketch.images(place, double([layer.of_weights])[0], columns, *law)
    found = []
    for rows in layer.taps:
        gradients, inputs = double([rows.gradients, rows.inputs])
        found += input_sketch.images_by_row(place, gradients, inputs, columns, *law)
    return found


def of_row_sampling(estimator: estimators.RowSampling, layer: SketchedLayer, place: int) -> list[Images]:
    g, x = (np.concatenate(double(parts)) for parts in zip(*((t.gradients, t.inputs) for t in layer.taps), strict=True))
    sizes = row_sampling.sizes(g, x)
    others = np.argsort(-sizes, kind="stable")[estimator.keep :]
    weights = sizes[others] if estimator.by == "norm" else np.ones(len(others))
    if not weights.any():  # Of nothing, or of rows without a gradient.
        return []
    return row_sampling.images(place, g[others], x[others], weights / weights.sum(), int(estimator.count))


def of_random_projection(estimator: estimators.RandomProjection, layer: SketchedLayer, place: int) -> list[Images]:
    return gradient_projection.images_of_random(place, double([layer.of_weights])[0], int(estimator.k))
