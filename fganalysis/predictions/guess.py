"""The closed form of one guess on one snapshot: two moments, and the quantities that need more than two moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.predictions.arrays import Array, NoClosedForm, Prediction, double, with_squared_bias
from fganalysis.predictions.arrays import at_weights as only_at_weights
from fganalysis.predictions.examples import gradients_of
from fganalysis.predictions.weight_maps import at_weights, by_moments, products, weight_gradients
from theory import averaging, minibatch, quantities
from theory.factors import Factor
from theory.linear_guess import Moments


def _nothing() -> Prediction:
    return {}


@dataclass(frozen=True, eq=False)
class WeightMoments:
    """Moments of a guess made at the weights: E Ĝ_l (unit, input) a layer, and the parts of tr Cov Ĝ_l, (layer,).

    ``between`` is the variance over the examples of a subsampled guess, zero on the whole batch.
    """

    means: Sequence[Array]
    within: Array
    between: Array


@dataclass(frozen=True, eq=False)
class Guess:
    """What is known of one guess; everything is unknown by default.

    At a tap, an example's numbers are those of all its rows: with a row an example, (example, number) is
    (example, unit).

    Attributes:
        activations: for a guess made at the activations, `theory.linear_guess.Moments` over (example, number) for each
            tap.
        weights: for a guess made at the weights, its `WeightMoments`.
        certain: whether all guesses are equal, so that cosine and descent probability follow from the mean.
        more: gives the quantities that need more than two moments, by name: "cosine" and "descent_probability",
            (space, layer), NaN where unknown.
        factors: for a guess along A ε, A for each tap.
        directions: for a guess in the span of some directions of each example, these orthonormal directions,
            (example, number, mode) for each tap; None at a tap where the guess is not in such a span.
        parts: for a guess made at the activations, tr Cov of the parts of Ĝ_l that two examples give,
            (example, example) for each layer; None where it follows from ``activations`` or is unknown.
        why: the reason why something is unknown.
    """

    activations: Sequence[Moments] | None = None
    weights: WeightMoments | None = None
    certain: bool = False
    more: Callable[[], Prediction] = _nothing
    factors: Sequence[Factor] | None = None
    directions: Sequence[Array | None] | None = None
    parts: Sequence[Array | None] | None = None
    why: str = ""

    def averaged(self, n_averaged: int) -> Guess:
        """The mean of independent guesses, of which two moments are known."""
        if self.activations is not None:
            parts = None if self.parts is None else [None if p is None else p / n_averaged for p in self.parts]
            moments = [averaging.averaged_moments(moments, n_averaged) for moments in self.activations]
            return Guess(moments, certain=self.certain, parts=parts, why=self.why)
        if self.weights is None:
            return Guess(why=self.why)
        within, between = self.weights.within / n_averaged, self.weights.between / n_averaged
        return Guess(weights=WeightMoments(self.weights.means, within, between), certain=self.certain)

    def quantities(self, snapshot: Snapshot) -> Prediction:
        """Everything that follows, by name, (space, layer) with all layers together last."""
        found: Prediction = {}
        if self.activations is not None:
            found = self._of_activations(snapshot, self.activations)
        elif self.weights is not None:
            spread = self.weights.within + self.weights.between
            gradients = double(snapshot.weight_gradients)
            found = only_at_weights(quantities.quantities(gradients, self.weights.means, variances=spread))
        return found | (_of_certain(found) if self.certain and found else {}) | self.more()

    def _of_activations(self, snapshot: Snapshot, moments: Sequence[Moments]) -> Prediction:
        """A layer's numbers are those of all its taps; a layer without taps has none, and "all" is the others."""
        tapped = [index for index, layer in enumerate(snapshot.weights) if layer.taps]
        taps = [snapshot.weights[index].taps for index in tapped]
        means, gradients = [moment.mean for moment in moments], gradients_of(snapshot)
        plain = quantities.quantities(
            [_joined(gradients, of_layer) for of_layer in taps],
            [_joined(means, of_layer) for of_layer in taps],
            variances=[sum(moments[index].variance() for index in of_layer) for of_layer in taps],
        )
        exact, guessed = weight_gradients(snapshot), at_weights(snapshot, means)
        covariances = [self.part_at_weights(snapshot, index, moments) for index in tapped]
        mixed = quantities.quantities(
            [exact[index] for index in tapped],
            [guessed[index] for index in tapped],
            variances=[np.nan if part is None else part.sum() for part in covariances],
        )
        both = {name: np.stack([plain[name], mixed[name]]) for name in plain}
        untapped = [index for index, layer in enumerate(snapshot.weights) if not layer.taps]
        for index in untapped:
            both = {name: np.insert(values, index, np.nan, axis=1) for name, values in both.items()}
        return with_squared_bias(both)

    def part_at_weights(self, snapshot: Snapshot, layer: int, moments: Sequence[Moments]) -> Array | None:
        """tr Cov of two examples' parts at the weights of a layer, (example, example); None where it is unknown."""
        given = None if self.parts is None else self.parts[layer]
        return by_moments(snapshot, layer, moments) if given is None else given


@dataclass(frozen=True, eq=False)
class GuessOnRows:
    """What is known of one guess on ``size`` random examples of the batch; everything is unknown by default.

    Attributes:
        whole: the guess on the whole batch.
        alone: the same guess with example slopes.
        weights: moments of a guess made at the weights, on random examples.
        more: as in `Guess`.
    """

    whole: Guess | None = None
    alone: Guess | None = None
    weights: WeightMoments | None = None
    size: int = 1
    more: Callable[[], Prediction] = _nothing

    def averaged(self, n_averaged: int) -> GuessOnRows:
        """The mean of guesses that are independent given the examples, which are drawn once for all of them."""
        if self.whole is not None and self.alone is not None:
            return GuessOnRows(self.whole.averaged(n_averaged), self.alone.averaged(n_averaged), size=self.size)
        if self.weights is None:
            return GuessOnRows()
        within = self.weights.within / n_averaged
        return GuessOnRows(weights=WeightMoments(self.weights.means, within, self.weights.between), size=self.size)

    def guess(self, snapshot: Snapshot) -> Guess:
        """The guess over random examples and noise together."""
        if self._pairs is None:
            return Guess(weights=self.weights, more=self.more)
        parts = [None if split is None else split[0] + split[1] for split in self._at_weights(snapshot)]
        activations = [minibatch.subsampled_moments(*pair, self.size) for pair in self._pairs]
        return Guess(activations, more=self.more, parts=parts)

    def parts(self, snapshot: Snapshot) -> Array:
        """Variance within the examples and between them, (part, space, layer), all layers together last."""
        found = np.full((2, 2, len(snapshot.layers)), np.nan)
        if self._pairs is not None:
            splits = self._at_weights(snapshot)
            for index, layer in enumerate(snapshot.weights):
                if layer.taps:
                    of_taps = [minibatch.parts(*self._pairs[tap], self.size) for tap in layer.taps]
                    found[:, 0, index] = sum(p.within for p in of_taps), sum(p.between for p in of_taps)
                split = splits[index]
                if split is not None:
                    found[:, 1, index] = split[0].sum(), split[1].sum()
        elif self.weights is not None:
            found[:, 1] = self.weights.within, self.weights.between
        tapped = [index for index, layer in enumerate(snapshot.weights) if layer.taps or self._pairs is None]
        return np.concatenate([found, found[..., tapped].sum(-1, keepdims=True)], axis=-1)

    @property
    def _pairs(self) -> list[tuple[Moments, Moments]] | None:
        if self.whole is None or self.alone is None:
            return None
        if self.whole.activations is None or self.alone.activations is None:
            return None
        return list(zip(self.whole.activations, self.alone.activations, strict=True))

    def _at_weights(self, snapshot: Snapshot) -> list[tuple[Array, Array] | None]:
        """tr Cov of two examples' parts at the weights, within and between, for every layer; None where unknown."""
        assert self.whole is not None and self.alone is not None and self._pairs is not None
        means = [whole.mean for whole, _ in self._pairs]
        splits: list[tuple[Array, Array] | None] = []
        for index, layer in enumerate(snapshot.weights):
            if not layer.taps:
                splits.append(None)
                continue
            whole = self.whole.part_at_weights(snapshot, index, [pair[0] for pair in self._pairs])
            alone = self.alone.part_at_weights(snapshot, index, [pair[1] for pair in self._pairs])
            try:
                if whole is None or alone is None:
                    raise NoClosedForm("unknown on the whole batch")
                between = minibatch.between_rows(products(snapshot, index, means), self.size)
            except NoClosedForm:
                splits.append(None)
                continue
            splits.append((minibatch.given_rows(whole, alone, self.size), between))
        return splits


def _joined(vectors: Sequence[Array], taps: Sequence[int]) -> Array:
    """The numbers of several taps in one vector."""
    return np.concatenate([vectors[index].ravel() for index in taps])


def _of_certain(found: Prediction) -> Prediction:
    """Cosine and descent probability of a deterministic guess, from its shrinkage and efficiency."""
    along = found["shrinkage"]
    cosines = np.where(along == 0, 0.0, np.sign(along) * np.sqrt(found["efficiency"]))
    return {"cosine": cosines, "descent_probability": np.where(np.isnan(along), np.nan, along > 0)}
