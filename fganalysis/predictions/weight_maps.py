"""The maps W_e of every tap as theory takes them, and what guesses at the activations are in weight space.

Where a layer is a matrix that one tap with a row an example reads, all follows from K = X Xᵀ, and no map is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Tap
from fganalysis.capturing.weight_maps.diagonal import DiagonalMap
from fganalysis.capturing.weight_maps.lookup import LookupMap
from fganalysis.capturing.weight_maps.matrix import GroupedMap, MatrixMap
from fganalysis.predictions.arrays import Array, NoClosedForm, double
from fganalysis.predictions.examples import examples_of, layer_is_plain
from theory.factors import gram
from theory.images import ImagedMoment, Images
from theory.linear_guess import Moments
from theory.weight_maps import Places, RowInputs, WeightMap, WrittenOut, of_tap, placed

MOST_NUMBERS = 2**25  # of an array that a prediction writes out: 256 MiB
MOST_IMAGES = 2**23  # Whose sum is made anew for every random direction.
AT_ONCE = 2**22  # Numbers at the weights that are pulled back together.


def weight_map(snapshot: Snapshot, index: int) -> WeightMap:
    """W_e of one tap, in the coordinates of its layer.

    Raises:
        NoClosedForm: a map of more than `MOST_NUMBERS` numbers.
    """
    made: WeightMap = snapshot.remember(("weight map", index), lambda: _weight_map(snapshot, index))
    return made


def check_size(what: str, numbers: int) -> None:
    """Raises NoClosedForm for an array that is too large to write out."""
    if numbers > MOST_NUMBERS:
        raise NoClosedForm(
            f"the prediction in weight space writes out {what}, {numbers} numbers, which is too many (at most "
            f"{MOST_NUMBERS}): use a smaller batch or network"
        )


def check_images(number: int) -> None:
    """Raises NoClosedForm for so many images that every random direction takes minutes."""
    if number > MOST_IMAGES:
        raise NoClosedForm(
            f"the prediction of the curvature takes images of {number} numbers, which is too many (at most "
            f"{MOST_IMAGES}): use a smaller batch or network"
        )


def _weight_map(snapshot: Snapshot, index: int) -> WeightMap:
    tap, examples = snapshot.taps[index], examples_of(snapshot)
    layer = snapshot.weights[tap.layer]
    size, places = layer.weight.numel(), _places(snapshot, index)
    check_size(f"every example's weight gradient of layer {layer.name!r}", examples.n * size)
    inputs = _row_inputs(tap)
    if inputs is not None:
        return RowInputs(examples.at(index, inputs), tap.units // inputs.shape[1], size, places)
    n_weights, numbers = int(tap.weight.numel()), tap.outputs.numel()
    check_size(f"the derivatives of tap {tap.name!r} by its weights", n_weights * numbers)
    columns = []
    for chosen in torch.arange(numbers).split(max(1, AT_ONCE // max(n_weights, numbers))):
        basis = torch.nn.functional.one_hot(chosen, numbers).double().view(-1, *tap.outputs.shape)
        columns.append(double([tap.weights.gradients(basis.to(snapshot.device)).flatten(1)])[0])
    by_row = np.concatenate(columns).reshape(*tap.outputs.shape, n_weights)
    by_number = examples.at(index, by_row)
    by_number = by_number.reshape(len(by_number), -1, n_weights)
    return WrittenOut(by_number.transpose(0, 2, 1), size, places)


def _row_inputs(tap: Tap) -> Array | None:
    """What the weights of each group of units are multiplied with, (row, group, input); None for other maps."""
    weights = tap.weights
    if isinstance(weights, MatrixMap):
        return double([weights.inputs])[0][:, None, :]
    if isinstance(weights, GroupedMap):
        return double([weights.inputs])[0].transpose(1, 0, 2)
    if isinstance(weights, DiagonalMap):
        ones = np.ones(tuple(tap.outputs.shape))
        return np.stack([ones if column is None else double([column])[0] for column in weights.columns], axis=-1)
    if isinstance(weights, LookupMap):
        check_size(f"the one-hot inputs of tap {tap.name!r}", len(tap.outputs) * weights.n_columns)
        indices = weights.indices.cpu().numpy()
        hot = np.zeros((len(indices), 1, weights.n_columns))
        hot[np.arange(len(indices)), 0, indices] = 1.0 if weights.ignored is None else indices != weights.ignored
        return hot
    return None


def _places(snapshot: Snapshot, index: int) -> Places | None:
    """Where the weights of a tap are among those of its layer, (weight,); None where they are the same."""
    tap = snapshot.taps[index]
    layer = snapshot.weights[tap.layer]
    if tap.packing == layer.packing:
        return None
    numbers = torch.arange(layer.weight.numel()).view(layer.weight.shape)
    return layer.to_tap(tap, numbers).flatten().numpy()


def products(snapshot: Snapshot, layer: int, vectors: Sequence[Array]) -> Array:
    """⟨W_e v_e, W_f v_f⟩ of two examples' parts at the weights of a layer, (example, example).

    vectors: (example, number) for every tap of the snapshot, of as many examples at each of the layer's taps.

    Raises:
        NoClosedForm: maps that are too large to write out.
    """
    taps = snapshot.weights[layer].taps
    if layer_is_plain(snapshot, layer):
        return kernel(snapshot, layer) * gram(vectors[taps[0]])
    maps = [weight_map(snapshot, index) for index in taps]
    written = [placed(of, of.apply(vectors[index])) for of, index in zip(maps, taps, strict=True)]
    return gram(np.sum(written, axis=0))


def kernel(snapshot: Snapshot, layer: int) -> Array:
    """K = X Xᵀ of a plain layer, (example, example)."""
    return gram(double([snapshot.taps[snapshot.weights[layer].taps[0]].inputs])[0])


def by_moments(snapshot: Snapshot, layer: int, moments: Sequence[Moments]) -> Array | None:
    """tr Cov of two examples' parts at the weights, (example, example), where it follows from that at the activations.

    It does for a plain layer and for a guess that is always the same; None elsewhere. moments: for every tap.
    """
    taps = snapshot.weights[layer].taps
    if layer_is_plain(snapshot, layer):
        return kernel(snapshot, layer) * moments[taps[0]].covariances
    still = all(not moments[index].covariances.any() for index in taps)
    return np.zeros_like(moments[taps[0]].covariances) if still else None


def mixed_gradients(snapshot: Snapshot) -> list[Array]:
    """W_eᵀ G_l at every tap, (example, number): its inner product with a guess ĝ is ⟨Ĝ, G⟩.

    Raises:
        NoClosedForm: maps that are too large to write out.
    """
    examples, exact = examples_of(snapshot), weight_gradients(snapshot)
    mixed = []
    for index, tap in enumerate(snapshot.taps):
        if layer_is_plain(snapshot, tap.layer):
            gradient = examples.vectors(index, double([snapshot.gradients[index]])[0])
            mixed.append(kernel(snapshot, tap.layer) @ gradient)
            continue
        of = weight_map(snapshot, index)
        mixed.append(of.transposed(of_tap(of, exact[tap.layer].ravel())))
    return mixed


def weight_gradients(snapshot: Snapshot) -> list[Array]:
    """G of every layer from the gradients at its taps, (unit, input), in double precision; zero without any tap."""
    made: list[Array] = snapshot.remember(
        "weight gradients in double precision",
        lambda: double(snapshot.at_weights([gradient.double().unsqueeze(0) for gradient in snapshot.gradients])),
    )
    return made


def at_weights_of(snapshot: Snapshot, images: Images, means: Sequence[Array]) -> ImagedMoment:
    """The second moment at the weights from images {tap: (probe, example, number)} and the mean at every tap.

    Raises:
        NoClosedForm: too many images.
    """
    examples = examples_of(snapshot)
    check_images(len(images.factors))

    def image(numbers: Array) -> Array:
        parts, n_probes = images.image(numbers), len(numbers)
        rows = []
        for index, tap in enumerate(snapshot.taps):
            by_row = np.zeros((n_probes, *tap.outputs.shape))
            if index in parts:
                by_row = examples.rows(index, parts[index])
            rows.append(torch.from_numpy(np.ascontiguousarray(by_row)).to(snapshot.device))
        written = [
            array.reshape(-1, layer.weight.numel())
            for array, layer in zip(double(snapshot.at_weights(rows)), snapshot.weights, strict=True)
        ]
        # A layer without taps has no dimension of probes.
        return np.concatenate([np.broadcast_to(array, (n_probes, array.shape[1])) for array in written], axis=1)

    return ImagedMoment(Images(images.factors, image), at_weights(snapshot, means))


def at_weights(snapshot: Snapshot, vectors: Sequence[Array]) -> list[Array]:
    """Σ_e W_e v_e of every layer, (unit, input), of vectors (example, number) a tap; zero for a layer without taps."""
    examples = examples_of(snapshot)
    rows = [torch.from_numpy(examples.rows(index, v)).to(snapshot.device) for index, v in enumerate(vectors)]
    return double(snapshot.at_weights([tensor.unsqueeze(0) for tensor in rows]))
