"""Closed forms of all guesses along y = A ε, from the factors A alone, whatever the family.

At a tap, an example is one vector of the numbers of all its rows, and A maps the noise of all its rows to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.noise import Gaussian, is_isotropic
from fganalysis.predictions.arrays import Array, NoClosedForm, Prediction, double
from fganalysis.predictions.examples import (
    examples_of,
    gradients_of,
    gradients_of_examples,
    is_plain,
    layer_is_plain,
)
from fganalysis.predictions.guess import Guess, GuessOnRows
from fganalysis.predictions.protocol import ClosedForm
from fganalysis.predictions.weight_maps import at_weights_of, check_images, check_size, mixed_gradients, weight_map
from theory import batch_cosine, descent, linear_guess, linear_images, weight_space
from theory.factors import Diagonal, Factor, gram
from theory.images import ImagedMoment, Images, together
from theory.linear_guess import Law, Moments
from theory.linear_images import spread
from theory.spectrum import spectrum
from theory.weight_maps import WeightMap


@dataclass(frozen=True, eq=False)
class AlongNoise:
    """A of one tap. noise_units: entries of a noise vector. vectors: how many of them make an example's noise."""

    factor: Factor
    noise_units: int
    vectors: int

    def law(self, noise: Any) -> Law:
        return Law(noise.fourth(self.noise_units), noise.pair(self.noise_units), self.vectors)


def along_noise_at(snapshot: Snapshot, factor: Factor, index: int) -> AlongNoise:
    """A of a tap whose noise is drawn in the rows of tap ``index``, one vector for each row."""
    return AlongNoise(factor, snapshot.taps[index].units, examples_of(snapshot).rows_each(index))


def identity(snapshot: Snapshot, index: int) -> AlongNoise:
    """A = I, which every family has at an output tap; zeros for rows that an example does not have."""
    there = examples_of(snapshot).vectors(index, np.ones(snapshot.taps[index].outputs.shape))
    return along_noise_at(snapshot, Diagonal(there), index)


def check_covered(snapshot: Snapshot, estimator: Any) -> None:
    """Raises NoClosedForm for switches that the estimator or theory does not have on such a network."""
    examples = examples_of(snapshot)
    if not examples.apart and (estimator.slope == "example" or estimator.shared):
        raise NoClosedForm(f"{snapshot.interaction}: a closed form is known for slope='batch' and shared=False alone")
    if estimator.shared and not all(examples.even(index) for index in range(len(snapshot.taps))):
        raise NoClosedForm("examples have different numbers of rows at a tap, so they share no noise")


@dataclass(frozen=True, eq=False)
class System:
    """The taps at which every example has rows of its own, or those whose rows serve all examples.

    The latter are taps of one example, the batch, with the slope of the batch. gradients, factors, laws: a tap each.
    outside: Cov of what the other taps give to the slopes of two examples, (example, example).
    """

    taps: tuple[int, ...]
    gradients: list[Array]
    factors: list[Factor]
    laws: list[Law]
    outside: Array
    switches: Mapping[str, Any]


def _systems(snapshot: Snapshot, estimator: Any, along: Sequence[AlongNoise]) -> list[System]:
    """One system, or two where some taps' rows serve all examples."""
    examples, gradients = examples_of(snapshot), gradients_of(snapshot)
    switches = {"shared": estimator.shared, "slope": estimator.slope, "layers": estimator.layers}
    for_batch = switches | {"shared": False, "slope": "batch"}
    own, serving = examples.own, examples.serving
    from_serving, from_own = np.zeros((examples.n, examples.n)), np.zeros((1, 1))
    for index in serving:
        if estimator.slope == "batch":  # Whose sum over pairs of examples is all that counts.
            square = np.sum(along[index].factor.pull(gradients[index]) ** 2)
            from_serving += square / examples.n**2
        elif estimator.layers == "joint":
            from_serving += gram(along[index].factor.pull(gradients_of_examples(snapshot, index)))
    for index in own if serving else ():
        pulled = along[index].factor.pull(gradients[index])
        from_own += np.sum(pulled.sum(0) ** 2) if estimator.shared else np.sum(pulled**2)
    chosen = [(tuple(own), from_serving, switches), (serving, from_own, for_batch)]
    return [
        System(
            taps,
            [gradients[i] for i in taps],
            [along[i].factor for i in taps],
            [along[i].law(estimator.noise) for i in taps],
            outside,
            of_system,
        )
        for taps, outside, of_system in chosen
        if taps
    ]


def linear_guess_of(snapshot: Snapshot, estimator: Any, along: Sequence[AlongNoise]) -> Guess:
    """The guess along A ε, A given tap by tap.

    Raises:
        NoClosedForm: see `check_covered`.
    """
    check_covered(snapshot, estimator)
    factors = [of_tap.factor for of_tap in along]
    moments: dict[int, Moments] = {}
    parts: list[Array | None] = [None] * len(snapshot.weights)
    why = ""
    for system in _systems(snapshot, estimator, along):
        laws = system.laws
        of_system = linear_guess.moments(
            system.gradients,
            system.factors,
            [law.fourth for law in laws],
            [law.pair for law in laws],
            [law.vectors for law in laws],
            outside=system.outside,
            **system.switches,
        )
        moments |= dict(zip(system.taps, of_system, strict=True))
        for index in range(len(snapshot.weights)):
            try:
                found = _at_weights(snapshot, system, index)
            except NoClosedForm as reason:
                why = str(reason)
                continue
            parts[index] = found if parts[index] is None else parts[index]
    return Guess(
        [moments[index] for index in range(len(along))],
        more=partial(distributional, snapshot, estimator, factors),
        factors=factors,
        parts=parts,
        why=why,
    )


def second_moment_along(snapshot: Snapshot, estimator: Any, along: Sequence[AlongNoise]) -> ImagedMoment:
    """E ĝĝᵀ at the weights of the guess along A ε, A given tap by tap.

    Raises:
        NoClosedForm: see `check_covered`; too many images.
    """
    check_covered(snapshot, estimator)
    if estimator.shared and estimator.slope == "example":
        check_images(snapshot.n_examples**2)
    found: list[Images] = []
    means: dict[int, Array] = {}
    for system in _systems(snapshot, estimator, along):
        gradients, slope, shared = system.gradients, system.switches["slope"], system.switches["shared"]
        pulled = [factor.pull(g) for factor, g in zip(system.factors, gradients, strict=True)]
        beside = linear_guess.from_outside(len(gradients[0]), system.outside, slope, estimator.layers)
        found += linear_images.of_layers(system.taps, system.factors, pulled, system.laws, beside, **system.switches)
        if shared and slope == "batch":
            pulled = [noise.sum(0, keepdims=True) for noise in pulled]
        pushed = (factor.push(noise) for factor, noise in zip(system.factors, pulled, strict=True))
        means |= dict(zip(system.taps, pushed, strict=True))
    if examples_of(snapshot).serving and estimator.layers == "joint":
        found += _between_systems(snapshot, estimator, along, means)
    return at_weights_of(snapshot, together(found), [means[index] for index in range(len(along))])


def _between_systems(
    snapshot: Snapshot, estimator: Any, along: Sequence[AlongNoise], means: Mapping[int, Array]
) -> list[Images]:
    """What taps of single examples and taps whose rows serve all of them have in common in a joint pass."""
    examples = examples_of(snapshot)
    serving, own = examples.serving, examples.own
    if not own:
        return []
    first, second = ({place: means[place] for place in places} for places in (own, serving))
    if estimator.slope == "batch":
        return linear_images.between(partial(spread, first), partial(spread, second), 1)
    if estimator.shared:
        gradients = gradients_of(snapshot)
        summed = {i: along[i].factor.pull(gradients[i]).sum(0, keepdims=True) for i in own}
        first = {i: along[i].factor.push(noise) for i, noise in summed.items()}
    of_examples = {
        index: along[index].factor.push(along[index].factor.pull(gradients_of_examples(snapshot, index)))
        for index in serving
    }

    def of_serving(numbers: Array) -> dict[int, Array]:
        return {index: linear_images.summed(array, numbers) for index, array in of_examples.items()}

    return linear_images.between(partial(spread, first), of_serving, examples.n)


def linear_closed_form(along_of: Callable[[Snapshot, Any], Sequence[AlongNoise]]) -> ClosedForm:
    """The closed form of guesses along A ε, from A of every tap."""

    def guess(snapshot: Snapshot, estimator: Any) -> Guess:
        return linear_guess_of(snapshot, estimator, along_of(snapshot, estimator))

    def second_moment(snapshot: Snapshot, estimator: Any) -> ImagedMoment:
        return second_moment_along(snapshot, estimator, along_of(snapshot, estimator))

    return ClosedForm(guess, on_rows=partial(with_example_slopes, guess), at_weights=second_moment)


def _at_weights(snapshot: Snapshot, system: System, index: int) -> Array | None:
    """tr Cov of two examples' parts at the weights of a layer, (example, example).

    None for a layer without taps in the system, and for a plain one, where it follows from K.

    Raises:
        NoClosedForm: arrays that are too large to write out; a layer with taps of both kinds.
    """
    layer = snapshot.weights[index]
    places = [system.taps.index(tap) for tap in layer.taps if tap in system.taps]
    if not places or layer_is_plain(snapshot, index):
        return None
    if len(places) < len(layer.taps):
        raise NoClosedForm(f"layer {layer.name!r} has rows of single examples and rows that serve all of them")
    maps: list[WeightMap | None] = [None] * len(system.taps)
    for place in places:
        maps[place] = weight_map(snapshot, system.taps[place])
    if system.switches["shared"]:
        noise = sum(system.factors[place].pull(system.gradients[place]).size for place in places)
        check_size(f"W A of layer {layer.name!r}", layer.weight.numel() * noise)
    (covariances,) = weight_space.covariances(
        system.gradients, system.factors, maps, [places], system.laws, outside=system.outside, **system.switches
    )
    return covariances


def with_example_slopes(
    guess: Callable[[Snapshot, Any], Guess], snapshot: Snapshot, estimator: Any, size: int
) -> GuessOnRows:
    """The guess on random rows, unless examples share both noise and slope: then second moments sum over four rows."""
    if estimator.shared and estimator.slope == "batch":
        return GuessOnRows()
    return on_rows(guess, snapshot, estimator, replace(estimator, slope="example"), size)


def with_the_same_slopes(
    guess: Callable[[Snapshot, Any], Guess], snapshot: Snapshot, estimator: Any, size: int
) -> GuessOnRows:
    """Of an estimator whose guess on some rows is that part of its guess on the batch."""
    return on_rows(guess, snapshot, estimator, estimator, size)


def on_rows(
    guess: Callable[[Snapshot, Any], Guess], snapshot: Snapshot, estimator: Any, by_example: Any, size: int
) -> GuessOnRows:
    """From the guess on the batch and the guess of ``by_example``, the same with a slope for each example.

    Raises:
        NoClosedForm: examples that interact, or rows that serve all of them.
    """
    check_apart(snapshot)
    if examples_of(snapshot).serving:
        raise NoClosedForm("a tap has rows that serve all examples, so it has no part of them")
    whole, alone = guess(snapshot, estimator), guess(snapshot, by_example)
    if whole.activations is None or alone.activations is None:
        return GuessOnRows()
    return GuessOnRows(whole, alone, size=size)


def check_apart(snapshot: Snapshot) -> None:
    """Raises NoClosedForm where there is no part of the batch."""
    if not examples_of(snapshot).apart:
        raise NoClosedForm(snapshot.interaction)


def distributional(snapshot: Snapshot, estimator: Any, factors: Sequence[Factor]) -> Prediction:
    """The quantities that need more than two moments: the descent probability and the mean cosine.

    The cosine has a closed form for independent noise and example slopes, in activation space only, because in weight
    space one norm contains the directions of all examples. For a batch of one example with a row at each tap it is
    known in both spaces, and of the switches only ``layers`` matters. Noise on the sphere differs from Gaussian noise
    in its length only. This does not change the cosine of a single example and layer in a separate pass, nor that t² is
    not negative.
    """
    if not is_isotropic(estimator.noise):
        return {}
    gradients, layers = gradients_of(snapshot), estimator.layers
    alone, plain, serving = examples_of(snapshot).n == 1, is_plain(snapshot), examples_of(snapshot).serving
    tapped = [index for index, layer in enumerate(snapshot.weights) if layer.taps]
    groups = [snapshot.weights[index].taps for index in tapped]
    known = [*tapped, -1]
    shape = (2, len(snapshot.weights) + 1)
    cosines, descents = np.full(shape, np.nan), np.full(shape, np.nan)
    squares = [float((gradient**2).sum()) for gradient in gradients]
    # In a joint pass rows that serve all examples make the slopes of these depend on each other.
    one_by_one = not estimator.shared and estimator.slope == "example" and not (serving and layers == "joint")
    if alone or one_by_one:
        spectra = [spectrum(factor, gradient) for factor, gradient in zip(factors, gradients, strict=True)]
        cosines[0, known] = batch_cosine.activation_cosines(spectra, squares, layers=layers, groups=groups)
        if alone and plain:
            weights = [float((x**2).sum()) for x in double([tap.inputs for tap in snapshot.taps])]
            cosines[1] = batch_cosine.of_one_example(spectra, weights, squares, layers=layers)
    switches: dict[str, Any] = {"shared": estimator.shared, "slope": estimator.slope, "layers": layers}
    for space in range(2):
        try:
            mixed = mixed_gradients(snapshot) if space else gradients
        except NoClosedForm:
            continue
        if not serving:
            descents[space, known] = descent.descent_probability(
                gradients, factors, mixed=mixed, groups=groups, **switches
            )
            continue
        try:
            by_example = [
                gradients_of_examples(snapshot, index) if index in serving else gradient
                for index, gradient in enumerate(gradients)
            ]
        except NoClosedForm:
            continue
        slopes, inners = (
            [factor.pull(vectors) for factor, vectors in zip(factors, side, strict=True)]
            for side in (by_example, mixed)
        )
        descents[space, known] = descent.with_rows_for_all(slopes, inners, groups, serving, **switches)
    if type(estimator.noise) is not Gaussian:
        own_pass = layers == "separate"
        certain = np.zeros(shape, bool)
        # With a slope of each example, rows that serve all of them add products of different slopes.
        squares_alone = not serving or estimator.slope == "batch"
        certain[0, slice(None) if own_pass else -1] = own_pass or squares_alone
        certain[1] = alone and own_pass and plain
        descents[~certain] = np.nan
        cosines[:, slice(-1, None) if alone and own_pass and plain else slice(None)] = np.nan
    return {"cosine": cosines, "descent_probability": descents}
