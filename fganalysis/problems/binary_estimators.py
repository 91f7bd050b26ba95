"""Estimators of the gradient of a network of stochastic binary units: each a class, called for many guesses at once.

A guess draws the noise of every example anew, and is the mean over the examples. p = σ(a) is the probability of a unit,
h the estimated derivative of E f by p. A hidden layer's guess is the mean over examples of δ [x^(l−1), 1]ᵀ. δ_j is:

    ScoreFunction           (f − c)(x_j − p_j), c = 0 or E f of the example: REINFORCE, Williams 1992. Unbiased.
    Arm                     (f(b₁) − f(b₂))(U_j − ½): Yin & Zhou 2019. Unbiased.
    StraightThrough         p_j(1 − p_j) h_j, h by the chain rule along the path: Bengio et al. 2013. Biased.
    GumbelStraightThrough   z_j(1 − z_j) h_j/τ, z = σ((a − logit U)/τ), units are z > ½: Jang et al. 2017. Biased.
    Concrete                the same where units are z itself: Maddison et al. 2017. Biased.
    PathSampleAnalytic      p_j(1 − p_j) h_j, h by changes for flips along the path: Shekhovtsov et al. 2020. Biased,
                            but unbiased at the last hidden layer, and so for one hidden layer.

Straight-through and the path sample-analytic guess are one recursion h^l_j = ∑_i D^(l+1)_ij h^(l+1)_i along a sampled
path. In the first, D is the derivative ∂p_i/∂x_j, in the second the change of p_i when x_j goes from 0 to 1. The last h
is ∂f/∂x_j in the first and the change of f in the second, which therefore has no bias from the curvature of σ and f.
Its bias comes from adding the changes of several units of the next layer, where a product of them changes.

The guess for the output's weights is ∂f/∂η [x^L, 1] along the same path, which is unbiased except in `Concrete`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.random import Generator
from scipy import special

from fganalysis.arguments import check_flag, check_kind, check_number, check_whole
from fganalysis.problems.stochastic_binary import Array, StochasticBinary, with_one


@runtime_checkable
class BinaryEstimator(Protocol):
    """What an estimator is, one of this module or of your code. name: that of its draws in results and seeds."""

    @property
    def name(self) -> str:
        """Its name with the settings that differ."""

    def __call__(self, network: StochasticBinary, n_guesses: int, generator: Generator) -> list[Array]:
        """Guesses (guess, unit, input + 1) of every layer's weights, the output's last."""


@dataclass(frozen=True)
class ScoreFunction:
    """(f − c)(x_j − p_j). baseline: c is E f of each example, which a running mean of its losses comes to, or 0."""

    baseline: bool = False

    def __post_init__(self) -> None:
        check_flag("baseline", self.baseline)

    @property
    def name(self) -> str:
        return "score_function_with_baseline" if self.baseline else "score_function"

    def __call__(self, network: StochasticBinary, n_guesses: int, generator: Generator) -> list[Array]:
        return self.along(network, Path.drawn(network, n_guesses, generator))

    def along(self, network: StochasticBinary, path: Path) -> list[Array]:
        """The guesses that sampled paths make."""
        advantage = network.losses(path.outputs) - (network.expected_losses() if self.baseline else 0.0)
        deltas = [advantage[..., None] * (x - p) for x, p in zip(path.states[1:], path.probabilities, strict=True)]
        return _guesses(network, path, deltas)


@dataclass(frozen=True)
class StraightThrough:
    """p(1 − p) h, h by backpropagation, as if a unit were its probability."""

    name: ClassVar[str] = "straight_through"

    def __call__(self, network: StochasticBinary, n_guesses: int, generator: Generator) -> list[Array]:
        return self.along(network, Path.drawn(network, n_guesses, generator))

    def along(self, network: StochasticBinary, path: Path) -> list[Array]:
        """The guesses that sampled paths make."""
        return _backpropagated(network, path, [p * (1 - p) for p in path.probabilities])


@dataclass(frozen=True)
class GumbelStraightThrough:
    """z(1 − z) h/τ, where units are z > ½ forward, and backpropagation takes them for z."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, above=0)

    @property
    def name(self) -> str:
        return f"gumbel_straight_through_{self.temperature:g}"

    def __call__(self, network: StochasticBinary, n_guesses: int, generator: Generator) -> list[Array]:
        return _with_temperature(network, n_guesses, generator, self.temperature, relaxed=False)


@dataclass(frozen=True)
class Concrete:
    """z(1 − z) h/τ, where units are z itself: the exact gradient of a relaxed network."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, above=0)

    @property
    def name(self) -> str:
        return f"concrete_{self.temperature:g}"

    def __call__(self, network: StochasticBinary, n_guesses: int, generator: Generator) -> list[Array]:
        return _with_temperature(network, n_guesses, generator, self.temperature, relaxed=True)


@dataclass(frozen=True)
class PathSampleAnalytic:
    """p(1 − p) h, h the changes of f and of probabilities for every flip of a unit along the path."""

    name: ClassVar[str] = "path_sample_analytic"

    def __call__(self, network: StochasticBinary, n_guesses: int, generator: Generator) -> list[Array]:
        return self.along(network, Path.drawn(network, n_guesses, generator))

    def along(self, network: StochasticBinary, path: Path) -> list[Array]:
        """The guesses that sampled paths make."""
        *hidden, last = network.weights
        off = path.outputs[..., None] - path.states[-1] * last[0, :-1]  # The outputs if a unit were 0.
        on = off + last[0, :-1]
        targets = network.targets[:, None]
        change = np.logaddexp(0.0, -targets * on) - np.logaddexp(0.0, -targets * off)
        deltas: list[Array] = []
        for layer in range(len(hidden) - 1, -1, -1):
            p, activations = path.probabilities[layer], path.activations[layer]
            deltas.insert(0, p * (1 - p) * change)
            if layer:
                # p_i is known at the state as it is: only the flipped one takes another σ, (guess, example, i, j).
                signs = 2 * path.states[layer] - 1
                flipped = activations[..., None] - signs[..., None, :] * hidden[layer][:, :-1]
                special.expit(flipped, out=flipped)
                change = signs * np.einsum("geij,gei->gej", p[..., None] - flipped, change)
        return _guesses(network, path, deltas)


@dataclass(frozen=True)
class Arm:
    """(f(b₁) − f(b₂))(U − ½), b₁ = [U > σ(−a)] and b₂ = [U < σ(a)], augment, reinforce, merge.

    Layers after the one that is looked at are drawn anew for b₁ and for b₂; where both are one state, f is the same.
    """

    name: ClassVar[str] = "arm"

    def __call__(self, network: StochasticBinary, n_guesses: int, generator: Generator) -> list[Array]:
        path = Path.drawn(network, n_guesses, generator)
        deltas = []
        for layer, p in enumerate(path.probabilities):
            uniform = generator.random(p.shape)
            first, second = (uniform > 1 - p).astype(float), (uniform < p).astype(float)
            losses = [_loss_after(network, layer, states, generator) for states in (first, second)]
            same = (first == second).all(-1)
            deltas.append(np.where(same, 0.0, losses[0] - losses[1])[..., None] * (uniform - 0.5))
        return _guesses(network, path, deltas)


BINARY_ESTIMATORS: tuple[BinaryEstimator, ...] = (
    ScoreFunction(),
    ScoreFunction(baseline=True),
    Arm(),
    StraightThrough(),
    GumbelStraightThrough(),
    Concrete(),
    Concrete(temperature=0.1),
    PathSampleAnalytic(),
)


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of an estimator for `fganalysis.measure` and `fganalysis.check_unbiased`, called with (n, generator).

    ``fga.measure(Draws(network, Arm()), network.gradient())``

    Raises:
        ValueError: another network or estimator, a number of draws below 1, or another kind of generator.
    """

    network: StochasticBinary
    estimator: BinaryEstimator

    def __post_init__(self) -> None:
        check_kind("network", self.network, StochasticBinary, "a StochasticBinary")
        check_kind("estimator", self.estimator, BinaryEstimator, "an instance of an estimator, such as Arm()")

    @property
    def __name__(self) -> str:
        return self.estimator.name

    @property
    def stable_name(self) -> str:
        """What the seeds take in."""
        return self.estimator.name

    def __call__(self, n_guesses: int, generator: Generator) -> dict[str, Array]:
        check_whole("n_guesses", n_guesses)
        check_kind("generator", generator, Generator, "a numpy.random.Generator")
        return self.network.named(self.estimator(self.network, n_guesses, generator))


@dataclass(frozen=True, eq=False)
class Path:
    """States on sampled paths, (guess, example, unit) of every layer.

    Attributes:
        states: those of the layers, the inputs (example, input) first. activations, probabilities: of the hidden
            layers. outputs: η, (guess, example).
    """

    states: list[Array]
    activations: list[Array]
    probabilities: list[Array]
    outputs: Array

    @classmethod
    def drawn(cls, network: StochasticBinary, n_guesses: int, generator: Generator) -> Path:
        """Every layer's units, given the layer before."""

        def units(layer: int, activations: Array) -> Array:
            return _units(special.expit(_for_each_guess(activations, n_guesses)), generator)

        return cls.of(network, units)

    @classmethod
    def through(cls, network: StochasticBinary, states: Sequence[Array]) -> Path:
        """Given states (guess, example, unit) of the hidden layers."""
        return cls.of(network, lambda layer, activations: states[layer])

    @classmethod
    def of(cls, network: StochasticBinary, units: Callable[[int, Array], Array]) -> Path:
        """Of units (guess, example, unit) that a function makes of a layer's index and its pre-activations."""
        states, activations, probabilities = [network.inputs], [], []
        for layer in range(len(network.weights) - 1):
            reaching = network.activations(layer, states[-1])
            states.append(units(layer, reaching))
            # No activation of the first layer depends on the guess.
            activations.append(_for_each_guess(reaching, len(states[-1])))
            probabilities.append(special.expit(activations[-1]))
        return cls(states, activations, probabilities, network.activations(-1, states[-1])[..., 0])


def _units(probabilities: Array, generator: Generator) -> Array:
    return (generator.random(probabilities.shape) < probabilities).astype(np.float64)


def _for_each_guess(array: Array, n_guesses: int) -> Array:
    """(example, unit) → (guess, example, unit); what has guesses already stays."""
    return np.broadcast_to(array, (n_guesses, *array.shape[-2:]))


def _guesses(network: StochasticBinary, path: Path, deltas: Sequence[Array]) -> list[Array]:
    """Guesses of every layer's weights, from the derivatives by its pre-activations, (guess, example, unit)."""
    outputs = network.slopes(path.outputs)[..., None]
    # Matrix products for each guess: (guess, unit, example) (guess, example, input + 1).
    return [
        delta.swapaxes(-1, -2) @ with_one(states) / len(network.inputs)
        for delta, states in zip((*deltas, outputs), path.states, strict=True)
    ]


def _backpropagated(network: StochasticBinary, path: Path, derivatives: Sequence[Array]) -> list[Array]:
    """Guesses by the chain rule. derivatives: of a hidden layer's units by its pre-activations."""
    *hidden, last = network.weights
    upstream = network.slopes(path.outputs)[..., None] * last[0, :-1]
    deltas: list[Array] = []
    for weight, derivative in zip(reversed(hidden), reversed(derivatives), strict=True):
        deltas.insert(0, derivative * upstream)
        upstream = deltas[0] @ weight[:, :-1]
    return _guesses(network, path, deltas)


def _with_temperature(
    network: StochasticBinary, n_guesses: int, generator: Generator, temperature: float, relaxed: bool
) -> list[Array]:
    """Guesses by the chain rule through z = σ((a − logit U)/τ)."""
    derivatives: list[Array] = []

    def units(layer: int, activations: Array) -> Array:
        wide = _for_each_guess(activations, n_guesses)
        soft = special.expit((wide - special.logit(generator.random(wide.shape))) / temperature)
        derivatives.append(soft * (1 - soft) / temperature)
        return soft if relaxed else (soft > 0.5).astype(np.float64)

    path = Path.of(network, units)
    return _backpropagated(network, path, derivatives)


def _loss_after(network: StochasticBinary, layer: int, states: Array, generator: Generator) -> Array:
    """f, (guess, example), from states of a layer, with all layers after it drawn."""
    for later in range(layer + 1, len(network.weights) - 1):
        states = _units(special.expit(network.activations(later, states)), generator)
    return network.losses(network.activations(-1, states)[..., 0])
