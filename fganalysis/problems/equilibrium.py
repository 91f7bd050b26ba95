"""Equilibrium propagation in a layered energy network: the exact gradient, and guesses from nudged fixed points.

The state of an example is s_1 … s_n, s_0 are its inputs, and W_l [s_{l−1}, 1] are weights with biases as last columns:

    E(s) = Σ_{l<n} Ψ(s_l) + ‖s_n‖²/2 − Σ_l s_lᵀ W_l [s_{l−1}, 1]        Ψ(s) = Σ_i s_i artanh s_i + log(1 − s_i²)/2
    F(s; β) = E(s) + β ℓ(s_n)        ℓ(s_n) = ‖s_n − y‖²/2        L = mean over examples of ℓ where β = 0

∂F/∂s = 0 means s_l = tanh(W_l [s_{l−1}, 1] + W_{l+1}ᵀ s_{l+1}), without the bias column of W_{l+1}, and
s_n = (W_n [s_{n−1}, 1] + β y)/(1 + β). Layers of one parity do not interact, so these values are the least point of F
over all of them. A sweep sets the odd layers to them, then the even ones: F falls until the state is fixed.

e(β) is the mean over examples of ∂E/∂W at the fixed point, −s_l [s_{l−1}, 1]ᵀ for layer l. dL/dW is its derivative at
β = 0, and a guess is a difference quotient:

    one-sided    (e(β) − e(0))/β          bias O(β), not random
    random sign  the same at β or −β      bias O(β²); the sign, one for all examples, is random
    symmetric    (e(β) − e(−β))/2β        bias O(β²), not random

Sources: Scellier & Bengio 2017; Laborieux et al. 2020, whose states are fixed points of a hard sigmoid: tanh has the
derivatives that the exact gradient takes. docs/mathematics.md#equilibrium-propagation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fganalysis.arguments import check_kind, check_number, check_seed, check_whole, described

Named = dict[str, Tensor]
PROBLEM = "what fganalysis.problems.equilibrium.Equilibrium makes"


def random_weights(sizes: Sequence[int], gain: float, seed: int) -> tuple[Tensor, ...]:
    """Random weights in double precision, all singular values ``gain``, and biases of zero, (unit, input + 1) a layer.

    Below ½ the energy is strictly convex, whatever the number of layers: the matrix of all weights between layers has
    the norm 2·gain at most, and ∂²Ψ/∂s² is 1 at least. The nearer to ½, the slower the relaxation.

    sizes: units of inputs, hidden layers and outputs.
    """
    if not isinstance(sizes, Sequence) or isinstance(sizes, str) or len(sizes) < 2:
        raise ValueError(f"sizes must be at least 2 whole numbers, inputs first, got {described(sizes)}")
    for size in sizes:
        check_whole("a size", size)
    check_number("gain", gain, least=0)
    check_seed("seed", seed)
    generator, weights = torch.Generator().manual_seed(seed), []
    for inputs, units in pairwise(sizes):
        drawn = torch.randn(units, inputs, generator=generator, dtype=torch.float64)
        left, _, right = torch.linalg.svd(drawn, full_matrices=False)
        weights.append(torch.cat([gain * left @ right, drawn.new_zeros(units, 1)], 1))
    return tuple(weights)


@dataclass(frozen=True, eq=False)
class Equilibrium:
    """An energy network on one batch; names of its layers are layer_1 … layer_n.

    Args:
        weights: (unit, input + 1) a layer, the bias as last column, in double precision.
        inputs: (example, unit), activations that are held. targets: (example, output unit).
        tolerance: a relaxation has ended when no unit moves by more than this in a sweep, in units of activation. The
            state may be further from the fixed point than that, the more so the slower it comes to it.
        most_sweeps: of one relaxation.

    Raises:
        ValueError: for arrays that do not fit together or are not in double precision, and, when they are asked for
            what takes a fixed point, for a relaxation that does not end.
    """

    weights: tuple[Tensor, ...]
    inputs: Tensor
    targets: Tensor
    tolerance: float = 1e-12
    most_sweeps: int = 10_000
    _kept: dict[float, Named] = field(default_factory=dict, init=False, repr=False)  # Three estimators share them.

    def __post_init__(self) -> None:
        check_number("tolerance", self.tolerance, above=0)
        check_whole("most_sweeps", self.most_sweeps)
        check_kind("weights", self.weights, (tuple, list), "a tuple of the weights of each layer")
        given = {f"weights of layer_{place}": weight for place, weight in enumerate(self.weights, 1)}
        for name, array in ({"inputs": self.inputs} | given | {"targets": self.targets}).items():
            if not isinstance(array, Tensor) or array.dtype != torch.float64 or array.ndim != 2 or not array.numel():
                raise ValueError(
                    f"{name} must be a matrix in double precision, a float64 tensor, got {described(array)}"
                )
            if not bool(torch.isfinite(array).all()):
                raise ValueError(f"{name} must have finite entries, got NaN or infinite ones")
            if array.device != self.inputs.device:
                raise ValueError(
                    f"{name} must be on the device of the inputs, {self.inputs.device}, got {array.device}"
                )
        units = self.inputs.shape[1]
        for name, weight in given.items():
            if weight.shape[1] != units + 1:
                raise ValueError(
                    f"{name} must have {units + 1} columns, {units} units of the layer below and a bias, got "
                    f"{weight.shape[1]}"
                )
            units = len(weight)
        if not given or self.targets.shape != (len(self.inputs), units):
            raise ValueError(
                f"targets must have an entry for each of {len(self.inputs)} examples and {units} outputs of at least "
                f"one layer, got the shape {tuple(self.targets.shape)}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"layer_{place}" for place in range(1, len(self.weights) + 1))

    @cached_property
    def free(self) -> list[Tensor]:
        """The fixed point without nudging, (example, unit) a layer, the inputs first."""
        start = [self.inputs.new_zeros(len(self.inputs), len(weight)) for weight in self.weights]
        return self._relaxed([0.0], start)

    def loss(self) -> float:
        """The mean of ‖s_n − y‖²/2 over examples, at the free fixed point."""
        return float((self.free[-1] - self.targets).square().sum(1).mean()) / 2

    def relaxed(self, nudges: Sequence[float]) -> list[Tensor]:
        """Fixed points for each nudge, (nudge · example, unit) a layer, the inputs first, from the free one as start.

        Raises:
            ValueError: for a nudge of −1 or below, where F has no least value, and a relaxation that does not end.
        """
        _check_nudges(nudges)
        return self._relaxed(nudges, self.free[1:])

    def _relaxed(self, nudges: Sequence[float], start: Sequence[Tensor]) -> list[Tensor]:
        n_rows = len(nudges) * len(self.inputs)
        strength = self.inputs.new_tensor(list(nudges)).repeat_interleave(len(self.inputs))[:, None]
        states = [array.repeat(len(nudges), 1) for array in (self.inputs, *start)]
        pulled = strength * self.targets.repeat(len(nudges), 1)
        ended = [array.clone() for array in states]
        moving, change = torch.arange(n_rows, device=self.inputs.device), states[0].new_zeros(n_rows)
        for _ in range(self.most_sweeps):
            change = torch.zeros_like(change)
            for first in (1, 2):
                for layer in range(first, len(states), 2):
                    new = self._settled(states, layer, strength, pulled)
                    change = torch.maximum(change, (new - states[layer]).abs().amax(1))
                    states[layer] = new
            going = ~(change <= self.tolerance)
            if not bool(going.all()):  # The end of an example does not depend on the others.
                for whole, part in zip(ended, states, strict=True):
                    whole[moving[~going]] = part[~going]
                states = [part[going] for part in states]
                moving, change, strength, pulled = moving[going], change[going], strength[going], pulled[going]
            if not len(moving):
                return ended
        raise ValueError(
            f"the relaxation of {len(moving)} of {n_rows} states does not end: after {self.most_sweeps} sweeps a unit "
            f"still moves by {float(change.max()):.3g}, above tolerance={self.tolerance:g}; allow a larger tolerance "
            "or more sweeps, or take smaller weights"
        )

    def _settled(self, states: Sequence[Tensor], layer: int, strength: Tensor, pulled: Tensor) -> Tensor:
        """The least point of F in one layer, given the others."""
        weight = self.weights[layer - 1]
        drive = torch.addmm(weight[:, -1], states[layer - 1], weight[:, :-1].T)
        if layer == len(self.weights):
            return (drive + pulled) / (1 + strength)
        return torch.tanh(drive + states[layer + 1] @ self.weights[layer][:, :-1])

    def energy_gradients(self, nudges: Sequence[float]) -> list[Named]:
        """e(β) for each nudge β, (unit, input + 1) a layer. They are kept; new ones are relaxed together."""
        _check_nudges(nudges)
        new = [nudge for nudge in dict.fromkeys(map(float, nudges)) if nudge not in self._kept]
        if new:
            states = self.free if new == [0.0] else self.relaxed(new)  # At 0 there is nothing to relax.
            rows = [array.unflatten(0, (len(new), len(self.inputs))) for array in states]
            for place, nudge in enumerate(new):
                self._kept[nudge] = self._products([-array[place] for array in rows[1:]], [a[place] for a in rows[:-1]])
        return [self._kept[float(nudge)] for nudge in nudges]

    def gradient(self) -> Named:
        """dL/dW at the free fixed point, (unit, input + 1) a layer, by implicit differentiation.

        With H = ∂²E/∂s² and v = H⁻¹ ∂ℓ/∂s, layer l is the mean over examples of v_l [s_{l−1}, 1]ᵀ + s_l [v_{l−1}, 0]ᵀ.

        Raises:
            ValueError: if the fixed point is no strict minimum of the energy.
        """
        v = self._response()
        above = self._products(v, self.free[:-1])
        below = self._products(self.free[1:], [torch.zeros_like(self.inputs), *v[:-1]], bias=0.0)
        return {name: above[name] + below[name] for name in self.names}

    def _response(self) -> list[Tensor]:
        """v = H⁻¹ ∂ℓ/∂s, (example, unit) a layer without the inputs.

        H = D⁻¹ − J, D = diag(1 − s²), is solved as D^½ (1 − D^½ J D^½)⁻¹ D^½, which has no infinite entries where units
        are saturated. Only neighbouring layers are coupled, by B_l = D_l^½ W_l D_{l−1}^½: elimination from the inputs
        up leaves S_l = 1 − B_l S_{l−1}⁻¹ B_lᵀ, and H is positive definite if all of them are.
        """
        states = self.free[1:]
        roots = [(1 - s.square()).clamp(min=0).sqrt() for s in states[:-1]] + [torch.ones_like(states[-1])]
        couplings: list[Tensor] = []  # B_l, of all layers but the first.
        factors: list[Tensor] = []  # Of S_l.
        wrong = torch.zeros(len(self.inputs), dtype=torch.bool, device=self.inputs.device)
        for place, (weight, root) in enumerate(zip(self.weights, roots, strict=True)):
            matrix = torch.diag_embed(torch.ones_like(root))
            if place:
                couplings.append(root[:, :, None] * weight[:, :-1] * roots[place - 1][:, None, :])
                matrix = matrix - couplings[-1] @ torch.cholesky_solve(couplings[-1].mT, factors[-1])
            factor, failed = torch.linalg.cholesky_ex(matrix)
            wrong |= failed > 0
            factors.append(factor)
        if bool(wrong.any()):
            raise ValueError(
                f"the free fixed point of {int(wrong.sum())} of {len(wrong)} examples is no strict minimum of the "
                "energy, so that the loss has no gradient there: take smaller weights"
            )
        solved = [torch.cholesky_solve((states[-1] - self.targets)[..., None], factors.pop())]
        while factors:
            solved.append(torch.cholesky_solve(couplings.pop().mT @ solved[-1], factors.pop()))
        return [root * v[..., 0] for root, v in zip(roots, reversed(solved), strict=True)]

    def _products(self, rows: Sequence[Tensor], columns: Sequence[Tensor], bias: float = 1.0) -> Named:
        """The mean over examples of row [column, bias]ᵀ, a layer each."""
        found = {}
        for name, row, column in zip(self.names, rows, columns, strict=True):
            found[name] = row.T @ torch.cat([column, column.new_full((len(column), 1), bias)], 1) / len(row)
        return found


def _check_nudges(nudges: object) -> None:
    if isinstance(nudges, str) or not isinstance(nudges, Sequence | np.ndarray) or not len(nudges):
        raise ValueError(f"nudges must be a list of numbers, at least one, got {described(nudges)}")
    for nudge in nudges:
        check_number("a nudge", nudge, above=-1)


def _difference(problem: Equilibrium, low: float, high: float) -> Named:
    below, above = problem.energy_gradients([low, high])
    return {name: (above[name] - below[name]) / (high - low) for name in problem.names}


def _repeated(guess: Named, n: int) -> Named:
    """The same guess n times, (guess, …)."""
    return {name: array.expand(n, *array.shape) for name, array in guess.items()}


def _check(problem: object, beta: object) -> None:
    check_kind("problem", problem, Equilibrium, PROBLEM)
    check_number("beta", beta, above=0, below=1)


@dataclass(frozen=True)
class OneSided:
    """(e(β) − e(0))/β, a draw for `fganalysis.measure`; β between −1 and 1, not 0."""

    problem: Equilibrium
    beta: float

    def __post_init__(self) -> None:
        check_kind("problem", self.problem, Equilibrium, PROBLEM)
        check_number("beta", self.beta, above=-1, below=1)
        if self.beta == 0:
            raise ValueError("beta must not be 0: the limit is problem.gradient()")

    def guess(self) -> Named:
        return _difference(self.problem, 0.0, self.beta)

    def __call__(self, n: int, generator: Any) -> Named:
        return _repeated(self.guess(), n)


@dataclass(frozen=True)
class Symmetric:
    """(e(β) − e(−β))/2β, a draw for `fganalysis.measure`; β between 0 and 1."""

    problem: Equilibrium
    beta: float

    def __post_init__(self) -> None:
        _check(self.problem, self.beta)

    def guess(self) -> Named:
        return _difference(self.problem, -self.beta, self.beta)

    def __call__(self, n: int, generator: Any) -> Named:
        return _repeated(self.guess(), n)


@dataclass(frozen=True)
class RandomSign:
    """The one-sided guess at β or −β, each with probability ½, a draw for `fganalysis.measure`; β between 0 and 1."""

    problem: Equilibrium
    beta: float

    def __post_init__(self) -> None:
        _check(self.problem, self.beta)

    def __call__(self, n: int, generator: Any) -> Named:
        check_kind("generator", generator, np.random.Generator, "a numpy.random.Generator")
        self.problem.energy_gradients([0.0, self.beta, -self.beta])  # In one relaxation.
        minus, plus = (_difference(self.problem, 0.0, sign * self.beta) for sign in (-1, 1))
        positive = torch.from_numpy(generator.integers(2, size=n))
        return {name: torch.stack([minus[name], plus[name]])[positive.to(plus[name].device)] for name in plus}
