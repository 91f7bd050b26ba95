"""A layered network of stochastic binary units, and its exact gradient by summing over the states of the units.

    a^l = W^l x^(l−1) + b^l,  P(x^l_j = 1 | x^(l−1)) = σ(a^l_j),  x^l_j = 0 or 1,  η = w·x^L + b,  f = ln(1 + exp(−y η))

x^0 is the input and y = ±1 the class. The loss is E f, the mean over the examples and over all states. It is smooth in
the weights, although no unit is. P(x | s) is the probability of a layer's state x after the state s of the layer
before, and V_l(x) = E(f | x^l = x). The derivative by a unit's pre-activation after s is ∑_x P(x | s) (x_j − σ(a_j))
V_l(x), and V_(l−1)(s) = ∑_x P(x | s) V_l(x). So the sums are over pairs of states of neighbouring layers, not paths.

Estimators of this gradient are in `fganalysis.problems.binary_estimators`.

Source: Shekhovtsov, Yanush & Flach 2020; docs/mathematics.md#stochastic-binary-networks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fganalysis.arguments import check_kind, check_seed, check_whole, described

Array = NDArray[np.float64]
MOST_UNITS = 12  # Of a layer whose states are summed over: pairs of them are numbered by four to its power.
OUTPUT = "output"


@dataclass(frozen=True, eq=False)
class StochasticBinary:
    """A network of stochastic binary units on a batch.

    Attributes:
        weights: one (unit, input + 1) for each hidden layer, and (1, unit + 1) for the output η; the last column is the
            bias. inputs: (example, input). targets: (example,), each 1 or −1.

    Raises:
        ValueError: arrays that are no finite real numbers, shapes that do not fit each other, other targets.
    """

    weights: tuple[Array, ...]
    inputs: Array
    targets: Array

    def __post_init__(self) -> None:
        check_kind("weights", self.weights, (tuple, list), "a tuple of arrays, hidden layers first, the output last")
        if len(self.weights) < 2:
            raise ValueError(
                f"weights must be those of a hidden layer and the output at least, got {len(self.weights)}"
            )
        weights = tuple(_finite(f"weights[{index}]", weight, 2) for index, weight in enumerate(self.weights))
        inputs, targets = _finite("inputs", self.inputs, 2), _finite("targets", self.targets, 1)
        sizes = [inputs.shape[1], *(len(weight) for weight in weights)]
        for index, weight in enumerate(weights):
            if weight.shape[1] != sizes[index] + 1:
                raise ValueError(
                    f"weights[{index}] must have {sizes[index]} columns for what reaches it and one for the bias, got "
                    f"{weight.shape[1]}"
                )
        if sizes[-1] != 1:
            raise ValueError(f"the last weights must have one row, as there is one output, got {sizes[-1]}")
        if len(targets) != len(inputs) or not np.isin(targets, (-1.0, 1.0)).all():
            raise ValueError(
                f"targets must be 1 or −1 for each of the {len(inputs)} examples, got {described(targets)}"
            )
        for name, value in (("weights", weights), ("inputs", inputs), ("targets", targets)):
            object.__setattr__(self, name, value)

    @classmethod
    def initial(cls, units: Sequence[int], inputs: Array, targets: Array, seed: int = 0) -> StochasticBinary:
        """Weights and biases uniform on ±1, as Shekhovtsov et al. start from. units: of the hidden layers."""
        check_kind("units", units, (tuple, list), "the numbers of units of the hidden layers")
        check_seed("seed", seed)
        for index, number in enumerate(units):
            check_whole(f"units[{index}]", number)
        sizes = [_finite("inputs", inputs, 2).shape[1], *units, 1]
        generator = np.random.default_rng(seed)
        pairs = itertools.pairwise(sizes)
        return cls(tuple(generator.uniform(-1, 1, (after, before + 1)) for before, after in pairs), inputs, targets)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the weights: hidden_1, hidden_2, …, output."""
        return (*(f"hidden_{index}" for index in range(1, len(self.weights))), OUTPUT)

    def activations(self, layer: int, states: Array) -> Array:
        """Pre-activations (…, unit) of a layer from what reaches it, (…, input)."""
        weight = self.weights[layer]
        return states @ weight[:, :-1].T + weight[:, -1]

    def losses(self, outputs: Array) -> Array:
        """f of outputs η, (…, example)."""
        losses: Array = np.logaddexp(0.0, -self.targets * outputs)
        return losses

    def slopes(self, outputs: Array) -> Array:
        """∂f/∂η of outputs (…, example)."""
        slopes: Array = -self.targets * special.expit(-self.targets * outputs)
        return slopes

    def named(self, gradients: Sequence[Array]) -> dict[str, Array]:
        """Arrays of the layers by their names."""
        return dict(zip(self.names, gradients, strict=True))

    @cached_property
    def _summed(self) -> Summed:
        return Summed.of(self)

    def expected_losses(self) -> Array:
        """E f of every example, (example,)."""
        return self._summed.losses

    def loss(self) -> float:
        """E f, the mean over the examples."""
        return float(self._summed.losses.mean())

    def gradient(self) -> dict[str, Array]:
        """The exact gradient of `loss` in the weights, by name: the truth for `fganalysis.measure`."""
        return self.named(self._summed.gradients)


@dataclass(frozen=True, eq=False)
class Summed:
    """What sums over states give. losses: (example,). gradients: of each layer's weights."""

    losses: Array
    gradients: list[Array]

    @classmethod
    def of(cls, network: StochasticBinary) -> Summed:
        """Raises ValueError for layers of too many units."""
        *hidden, _ = network.weights
        largest = max(len(weight) for weight in hidden)
        if largest > MOST_UNITS:
            raise ValueError(
                f"the exact gradient sums over all states of a layer, which is done for {MOST_UNITS} units at most, "
                f"got {largest}: give the draws of an unbiased estimator as baseline of fga.measure"
            )
        states = [all_states(len(weight)) for weight in hidden]
        # Of the first layer: (example, state). Of all others: (state before, state).
        first = _probabilities(network.activations(0, network.inputs), states[0])
        others = [
            _probabilities(network.activations(layer, states[layer - 1]), states[layer])
            for layer in range(1, len(hidden))
        ]
        reached = [first]
        for matrix in others:
            reached.append(reached[-1] @ matrix)
        outputs = np.broadcast_to(
            network.activations(-1, states[-1])[:, 0, None], (len(states[-1]), len(network.inputs))
        )
        values = [network.losses(outputs).T]  # V_l, (example, state), the last layer first.
        for matrix in reversed(others):
            values.append(values[-1] @ matrix.T)
        values.reverse()
        n_examples = len(network.inputs)
        deviations = states[0] - special.expit(network.activations(0, network.inputs))[:, None]
        by_unit = ((first * values[0])[..., None] * deviations).sum(1)
        gradients = [by_unit.T @ with_one(network.inputs) / n_examples]
        for layer, matrix in enumerate(others, start=1):
            joint = matrix * (reached[layer - 1].T @ values[layer]) / n_examples
            deviations = states[layer] - special.expit(network.activations(layer, states[layer - 1]))[:, None]
            gradients.append((joint[..., None] * deviations).sum(1).T @ with_one(states[layer - 1]))
        slopes = (reached[-1] * network.slopes(outputs).T).sum(0) / n_examples
        gradients.append(slopes[None] @ with_one(states[-1]))
        return cls((first * values[0]).sum(1), gradients)


def all_states(units: int) -> Array:
    """Every state of so many binary units, (state, unit)."""
    return (np.arange(2**units)[:, None] >> np.arange(units) & 1).astype(np.float64)


def with_one(states: Array) -> Array:
    """States (…, unit) and the constant that the bias multiplies, (…, unit + 1)."""
    return np.concatenate([states, np.ones_like(states[..., :1])], axis=-1)


def _probabilities(activations: Array, states: Array) -> Array:
    """P(state | activations), (…, unit) → (…, state)."""
    signs = 2 * states - 1
    logs = special.log_expit(activations[..., None, :] * signs).sum(-1)
    probabilities: Array = np.exp(logs)
    return probabilities


def _finite(name: str, value: Any, n_dims: int) -> Array:
    """A checked array of real numbers in double precision."""
    kinds = "fiub"
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds or isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"{name} must be a NumPy array of real numbers, got {described(value)}")
    if value.ndim != n_dims or 0 in value.shape:
        raise ValueError(f"{name} must have {n_dims} dimensions, none empty, got the shape {value.shape}")
    if not np.isfinite(value).all():
        raise ValueError(f"{name} has NaN or infinite entries")
    return value.astype(np.float64)
