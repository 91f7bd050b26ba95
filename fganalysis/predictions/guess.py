"""The closed form of one guess on one snapshot: two moments, and the quantities that need more than two moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.predictions.arrays import Array, Prediction, at_weights, double, inputs_of, with_squared_bias
from theory import averaging, minibatch, quantities
from theory.factors import Factor
from theory.linear_guess import Moments


def _nothing() -> Prediction:
    return {}


@dataclass(frozen=True, eq=False)
class WeightMoments:
    """Moments of a guess made at the weights: E Ĝ_l (unit, input) a tap, and the parts of tr Cov Ĝ_l, (layer,).

    ``between`` is the variance over the rows of a subsampled guess, zero on the whole batch.
    """

    means: Sequence[Array]
    within: Array
    between: Array


@dataclass(frozen=True, eq=False)
class Guess:
    """What is known of one guess; everything is unknown by default.

    Attributes:
        activations: for a guess made at the activations, `theory.linear_guess.Moments` for each tap.
        weights: for a guess made at the weights, its `WeightMoments`.
        certain: whether all guesses are equal, so that cosine and descent probability follow from the mean.
        more: gives the quantities that need more than two moments, by name: "cosine" and "descent_probability",
            (space, layer), NaN where unknown.
        factors: for a guess along A ε, A for each tap.
        directions: for a guess in the span of some directions of each example, these orthonormal directions,
            (example, unit, mode) for each tap but the last.
    """

    activations: Sequence[Moments] | None = None
    weights: WeightMoments | None = None
    certain: bool = False
    more: Callable[[], Prediction] = _nothing
    factors: Sequence[Factor] | None = None
    directions: Sequence[Array] | None = None

    def averaged(self, n_averaged: int) -> Guess:
        """The mean of independent guesses, of which two moments are known."""
        if self.activations is not None:
            return Guess([averaging.averaged_moments(moments, n_averaged) for moments in self.activations])
        if self.weights is None:
            return Guess()
        within, between = self.weights.within / n_averaged, self.weights.between / n_averaged
        return Guess(weights=WeightMoments(self.weights.means, within, between))

    def quantities(self, snapshot: Snapshot) -> Prediction:
        """Everything that follows, by name, (space, layer) with all layers together last."""
        found: Prediction = {}
        if self.activations is not None:
            found = _of_activations(snapshot, self.activations)
        elif self.weights is not None:
            spread = self.weights.within + self.weights.between
            gradients = double(snapshot.weight_gradients)
            found = at_weights(quantities.quantities(gradients, self.weights.means, variances=spread))
        return found | (_of_certain(found) if self.certain and found else {}) | self.more()


@dataclass(frozen=True, eq=False)
class GuessOnRows:
    """What is known of one guess on ``size`` random rows of the batch; everything is unknown by default.

    Attributes:
        pairs: for each tap, the moments of the guess on the whole batch, and of the same guess with example slopes.
        weights: moments of a guess made at the weights, on random rows.
        more: as in `Guess`.
    """

    pairs: Sequence[tuple[Moments, Moments]] | None = None
    weights: WeightMoments | None = None
    size: int = 1
    more: Callable[[], Prediction] = _nothing

    def averaged(self, n_averaged: int) -> GuessOnRows:
        """The mean of guesses that are independent given the rows, which are drawn once for all of them."""
        if self.pairs is not None:
            pairs = [(_mean_of(whole, n_averaged), _mean_of(alone, n_averaged)) for whole, alone in self.pairs]
            return GuessOnRows(pairs, size=self.size)
        if self.weights is None:
            return GuessOnRows()
        within = self.weights.within / n_averaged
        return GuessOnRows(weights=WeightMoments(self.weights.means, within, self.weights.between), size=self.size)

    def guess(self) -> Guess:
        """The guess over random rows and noise together."""
        if self.pairs is None:
            return Guess(weights=self.weights, more=self.more)
        return Guess([minibatch.subsampled_moments(*pair, self.size) for pair in self.pairs], more=self.more)

    def parts(self, snapshot: Snapshot) -> Array:
        """Variance within the rows and between them, (part, space, layer), all layers together last."""
        found = np.full((2, 2, len(snapshot.layers) + 1), np.nan)
        if self.pairs is not None:
            for index, (pair, x) in enumerate(zip(self.pairs, inputs_of(snapshot), strict=True)):
                for space, kernel in enumerate((None, x @ x.T)):
                    parts = minibatch.parts(*pair, self.size, kernel)
                    found[:, space, index] = parts.within, parts.between
        elif self.weights is not None:
            found[:, 1, :-1] = self.weights.within, self.weights.between
        found[..., -1] = found[..., :-1].sum(-1)
        return found


def _mean_of(moments: Moments, n_averaged: int) -> Moments:
    return averaging.averaged_moments(moments, n_averaged)


def _of_activations(snapshot: Snapshot, moments: Sequence[Moments]) -> Prediction:
    gradients, inputs = double(snapshot.gradients), inputs_of(snapshot)
    kernels = [x @ x.T for x in inputs]
    means = [moment.mean for moment in moments]
    plain = [moment.variance() for moment in moments]
    mixed = [moment.variance(kernel) for moment, kernel in zip(moments, kernels, strict=True)]
    activation = quantities.quantities(gradients, means, variances=plain)
    weight = quantities.quantities(gradients, means, kernels=kernels, variances=mixed)
    return with_squared_bias({name: np.stack([activation[name], weight[name]]) for name in activation})


def _of_certain(found: Prediction) -> Prediction:
    """Cosine and descent probability of a deterministic guess, from its shrinkage and efficiency."""
    along = found["shrinkage"]
    cosines = np.where(along == 0, 0.0, np.sign(along) * np.sqrt(found["efficiency"]))
    return {"cosine": cosines, "descent_probability": np.where(np.isnan(along), np.nan, along > 0)}
