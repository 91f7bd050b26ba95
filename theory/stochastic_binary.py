"""Mean and variance of guesses for networks of stochastic binary units, by summing over states of neighbouring layers.

    P(x^l_j = 1 | x^(l−1)) = σ(a^l_j),  a^l = W^l x^(l−1) + b^l,  η = w·x^L + b,  f = ln(1 + exp(−y η)),  y = ±1

weights: (unit, input + 1) for each hidden layer and (1, unit + 1) for the output, biases last. inputs: (example,
input). targets: (example,). A guess is the mean over examples of δ [x^(l−1), 1]ᵀ, with other noise for every example.
The variance of an entry is the sum of its variances over examples, over their number squared. With E(· | s) the mean
over what comes after the state s of layer l − 1:

    score function     δ_j = (f − c)(x_j − p_j)            E(δ_j² | s) = ∑_x P(x|s) (x_j − p_j)² E((f − c)² | x)
    ARM                δ_j = (f(b₁) − f(b₂))(U_j − ½)      by the three intervals of U_j on which b₁ and b₂ are fixed
    along the path     δ_j = p_j(1 − p_j) h_j, h^l = A(x^l) h^(l+1)
                       E(h | x^l) = A ∑_x' P(x'|x) E(h' | x'),  E(hhᵀ | x^l) = A (∑_x' P(x'|x) E(h'h'ᵀ | x')) Aᵀ

For straight-through A_ji = W_ij p_i(1 − p_i) and the last h_j is w_j ∂f/∂η. For the path sample-analytic guess A_ji is
σ at x_j = 1 less σ at x_j = 0 of a_i, and the last h_j is f at x_j = 1 less f at x_j = 0.

Source: docs/mathematics.md#stochastic-binary-networks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CLASSES = (-1.0, 1.0)


@dataclass(frozen=True)
class Moments:
    """Of the entries of a guess, an array for each layer's weights, the output's last."""

    mean: list[Array]
    variance: list[Array]


@dataclass(frozen=True)
class Chain:
    """The states and their probabilities.

    states: (state, unit) of each hidden layer. transitions: (state before, state) of the hidden layers after the first,
    and (example, state) of the first. reached: P(state), (example, state). losses, slopes: f and ∂f/∂η in both classes,
    (class, state). of_class: the index of an example's class.
    """

    weights: list[Array]
    inputs: Array
    of_class: NDArray[np.int64]
    states: list[Array]
    transitions: list[Array]
    reached: list[Array]
    losses: Array
    slopes: Array

    @classmethod
    def of(cls, weights: Sequence[Array], inputs: Array, targets: Array) -> Chain:
        states = [np.array(list(itertools.product((0.0, 1.0), repeat=len(weight)))) for weight in weights[:-1]]
        before = [inputs, *states[:-1]]
        transitions = [
            np.prod(np.where(after[None] == 1, p[:, None], 1 - p[:, None]), axis=-1)
            for after, p in ((s, _sigmoid(_reaching(w, b))) for s, w, b in zip(states, weights, before, strict=False))
        ]
        reached = [transitions[0]]
        for matrix in transitions[1:]:
            reached.append(reached[-1] @ matrix)
        outputs = _reaching(weights[-1], states[-1])[:, 0]
        margins = np.array(CLASSES)[:, None] * outputs
        slopes = -np.array(CLASSES)[:, None] * _sigmoid(-margins)
        of_class = (np.asarray(targets) > 0).astype(np.int64)
        return cls(list(weights), inputs, of_class, states, transitions, reached, np.logaddexp(0, -margins), slopes)

    def before(self, layer: int) -> Array:
        """What reaches a layer: (example, input) or (state, unit)."""
        return self.states[layer - 1] if layer else self.inputs

    def probabilities(self, layer: int) -> Array:
        """p of the units of a layer, after each of what reaches it."""
        return _sigmoid(_reaching(self.weights[layer], self.before(layer)))

    def later(self, function: Array) -> list[Array]:
        """E(function of the last state | state) of every hidden layer, (class, state)."""
        values = [function]
        for matrix in reversed(self.transitions[1:]):
            values.insert(0, values[0] @ matrix.T)
        return values

    def expected_losses(self) -> Array:
        """E f of every example."""
        return np.sum(self.reached[-1] * self.losses[self.of_class], axis=1)

    def moments(self, of_units: Sequence[tuple[Array, Array]]) -> Moments:
        """From first and second moments of the δ of every hidden layer, (example, what reaches it, unit)."""
        *hidden, _ = self.weights
        rows = [np.hstack([self.before(layer), np.ones((len(self.before(layer)), 1))]) for layer in range(len(hidden))]
        means: list[Array] = []
        seconds: list[Array] = []
        for layer, (first, second) in enumerate(of_units):
            reached = self.reached[layer - 1] if layer else np.eye(len(self.inputs))
            for found, moment, power in ((means, first, 1), (seconds, second, 2)):
                found.append(np.einsum("ns,nsj,si->nji", reached, moment, rows[layer] ** power, optimize=True))
        last = np.hstack([self.states[-1], np.ones((len(self.states[-1]), 1))])
        slopes = self.slopes[self.of_class]
        for found, power in ((means, 1), (seconds, 2)):
            found.append(np.einsum("nx,nx,xi->ni", self.reached[-1], slopes**power, last**power)[:, None])
        n_examples = len(self.of_class)
        return Moments(
            [mean.mean(0) for mean in means],
            [(second - mean**2).sum(0) / n_examples**2 for mean, second in zip(means, seconds, strict=True)],
        )


def score_function(weights: Sequence[Array], inputs: Array, targets: Array, baseline: bool = False) -> Moments:
    """(f − c)(x_j − p_j), with c = 0 or E f of each example."""
    chain = Chain.of(weights, inputs, targets)
    first, second = chain.later(chain.losses), chain.later(chain.losses**2)
    constant = chain.expected_losses()[:, None] if baseline else 0.0
    of_units = []
    for layer, states in enumerate(chain.states):
        deviations = states[None] - chain.probabilities(layer)[:, None]
        value = first[layer][chain.of_class]
        square = second[layer][chain.of_class] - 2 * constant * value + constant**2
        joint = chain.transitions[layer]
        of_units.append(
            (
                np.einsum("sx,nx,sxj->nsj", joint, value - constant, deviations, optimize=True),
                np.einsum("sx,nx,sxj->nsj", joint, square, deviations**2, optimize=True),
            )
        )
    return chain.moments(of_units)


def straight_through(weights: Sequence[Array], inputs: Array, targets: Array) -> Moments:
    """p(1 − p) h by the chain rule along the path."""
    chain = Chain.of(weights, inputs, targets)
    last = chain.slopes[..., None] * weights[-1][0, :-1]

    def derivative(layer: int) -> Array:
        p = chain.probabilities(layer)
        return weights[layer][:, :-1].T[None] * (p * (1 - p))[:, None]

    return _along_the_path(chain, last, derivative)


def path_sample_analytic(weights: Sequence[Array], inputs: Array, targets: Array) -> Moments:
    """p(1 − p) h by changes of f and of probabilities where a unit goes from 0 to 1."""
    chain = Chain.of(weights, inputs, targets)
    classes = np.array(CLASSES)[:, None, None]
    off, on = (np.logaddexp(0, -classes * _reaching(weights[-1], s)[..., 0]) for s in _both(chain.states[-1]))

    def change(layer: int) -> Array:
        zero, one = (_sigmoid(_reaching(weights[layer], states)) for states in _both(chain.before(layer)))
        return one - zero

    return _along_the_path(chain, on - off, change)


def arm(weights: Sequence[Array], inputs: Array, targets: Array) -> Moments:
    """(f(b₁) − f(b₂))(U_j − ½), b₁ = [U > 1 − p], b₂ = [U < p]; f is 0 apart where b₁ = b₂, else drawn independently.

    With m = min(p, 1 − p): U < m gives (b₁, b₂) = (0, 1), U > 1 − m gives (1, 0), and both are [p > ½] between.
    """
    chain = Chain.of(weights, inputs, targets)
    first, second = chain.later(chain.losses), chain.later(chain.losses**2)
    of_units = []
    for layer, states in enumerate(chain.states):
        p = chain.probabilities(layer)
        smaller = np.minimum(p, 1 - p)
        tail = ((smaller - 0.5) ** 3 + 0.125) / 3  # ∫ (u − ½)² over the interval of an end.
        # Integrals of 1, u − ½ and (u − ½)² over the three intervals, (interval, power, what reaches, unit).
        integrals = np.array(
            [
                [smaller, -smaller * (1 - smaller) / 2, tail],
                [1 - 2 * smaller, np.zeros_like(p), 1 / 12 - 2 * tail],
                [smaller, smaller * (1 - smaller) / 2, tail],
            ]
        )
        units = states.shape[1]
        places = 2 ** np.arange(units)[::-1]  # Of a state in the list of states.
        means, squares = (np.zeros((len(CLASSES), *p.shape)) for _ in range(2))
        for intervals in itertools.product(range(3), repeat=units):
            chosen = np.array(intervals)
            middle = p > 0.5
            b1, b2 = (np.where(chosen == 1, middle, chosen == end) @ places for end in (2, 0))
            value = first[layer][:, b1] - first[layer][:, b2]
            square = second[layer][:, b1] + second[layer][:, b2] - 2 * first[layer][:, b1] * first[layer][:, b2]
            square = np.where(b1 == b2, 0.0, square)
            own = integrals[chosen, :, :, np.arange(units)]  # (unit, power, what reaches)
            for unit in range(units):
                others = np.prod(np.delete(own[:, 0], unit, axis=0), axis=0)
                means[..., unit] += value * others * own[unit, 1]
                squares[..., unit] += square * others * own[unit, 2]
        of_units.append((means[chain.of_class], squares[chain.of_class]))
    return chain.moments(of_units)


def _along_the_path(chain: Chain, last: Array, matrix: Callable[[int], Array]) -> Moments:
    """matrix: of a layer, (what reaches it, unit before, unit), from h to that of the layer before."""
    mean, second = last, last[..., :, None] * last[..., None, :]
    of_units: list[tuple[Array, Array]] = []
    for layer in range(len(chain.states) - 1, -1, -1):
        p = chain.probabilities(layer)
        own = chain.transitions[layer]
        mean, second = np.einsum("sx,cxj->csj", own, mean), np.einsum("sx,cxjk->csjk", own, second)
        derivative = p * (1 - p)
        squares = np.einsum("csjj->csj", second)
        of_units.insert(0, ((derivative * mean)[chain.of_class], (derivative**2 * squares)[chain.of_class]))
        if layer:
            turned = matrix(layer)
            mean = np.einsum("sji,csi->csj", turned, mean)
            second = np.einsum("sji,csik,slk->csjl", turned, second, turned)
    return chain.moments(of_units)


def _both(states: Array) -> list[Array]:
    """States with each unit at 0, and with each at 1: (state, unit set, unit)."""
    found = []
    for value in (0.0, 1.0):
        wide = np.repeat(states[:, None], states.shape[1], axis=1)
        wide[:, np.arange(states.shape[1]), np.arange(states.shape[1])] = value
        found.append(wide)
    return found


def _reaching(weight: Array, states: Array) -> Array:
    return states @ weight[:, :-1].T + weight[:, -1]


def _sigmoid(a: Array) -> Array:
    return np.exp(-np.logaddexp(0, -a))
