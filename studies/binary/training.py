"""The problem and the training of Shekhovtsov, Yanush & Flach (2020), as their published code has them.

Two classes of points in the plane: one uniform on [−π/2, π/2] × [0, 1], the other uniform on the part of
[−π/2, π/2] × [−1, 1] below the cosine. They overlap between 0 and the cosine. Training is by the path sample-analytic
guess, one guess a step, with stochastic gradient descent and momentum.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from fganalysis.problems.binary_estimators import PathSampleAnalytic
from fganalysis.problems.stochastic_binary import Array, StochasticBinary

HALF_WIDTH = np.pi / 2


def classes(per_class: int, seed: int) -> tuple[Array, Array]:
    """Points (example, 2) and their classes ±1, half of each."""
    generator = np.random.default_rng(seed)
    first = np.column_stack([generator.uniform(-HALF_WIDTH, HALF_WIDTH, per_class), generator.random(per_class)])
    below = np.empty((0, 2))
    while len(below) < per_class:
        drawn = generator.uniform([-HALF_WIDTH, -1], [HALF_WIDTH, 1], (2 * per_class, 2))
        below = np.concatenate([below, drawn[drawn[:, 1] < np.cos(drawn[:, 0])]])
    return np.concatenate([first, below[:per_class]]), np.repeat([1.0, -1.0], per_class)


def trained(
    network: StochasticBinary, epochs: int, batch: int, rate: float, momentum: float, seed: int
) -> StochasticBinary:
    """The network after so many passes over its examples; more epochs continue the same training."""
    generator = np.random.default_rng(seed)
    estimator, weights = PathSampleAnalytic(), network.weights
    velocities = [np.zeros_like(weight) for weight in weights]
    for _ in range(epochs):
        for rows in np.array_split(generator.permutation(len(network.inputs)), -(-len(network.inputs) // batch)):
            part = StochasticBinary(weights, network.inputs[rows], network.targets[rows])
            guesses = estimator(part, 1, generator)
            velocities = [momentum * old + guess[0] for old, guess in zip(velocities, guesses, strict=True)]
            weights = tuple(weight - rate * velocity for weight, velocity in zip(weights, velocities, strict=True))
    return dataclasses.replace(network, weights=weights)
