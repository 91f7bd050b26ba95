"""Finite difference (SPSA, MeZO): losses at moved weights instead of a derivative.

    one-sided:  Ĝ = (L(θ+εz) − L(θ))/ε · z        central:  Ĝ = (L(θ+εz) − L(θ−εz))/2ε · z

z ~ law, one draw per guess for the weights of all taps, from the generator alone: a seed and a guess's slope, two
numbers, are the guess, and `FiniteDifference.draw` makes its z again. Only the loss is evaluated, at weights made for
the evaluation: the network's own are never written to, so there is nothing to restore, nor to its buffers. Each guess
of a call holds z and one moved copy of the weights.

Cost: two losses a guess, of many guesses at once by batched products (`torch.func.vmap`). Where a forward pass or loss
does not allow that (in-place writes, boolean masks, ``.item()``, branches on numbers) or gives other losses that way,
which is tried once a snapshot, the losses are evaluated guess by guess: the same numbers to rounding, at a forward pass
each, which on a small network takes many times longer. One guess, as in training, is always evaluated so.

Random: z. The error of a guess against (z·G) z is O(ε) one-sided, O(ε²) central, plus the loss's rounding error over ε.
Bias: O(ε²) for both where the law is symmetric, as z and −z come equally often; one-sided with a skewed law O(ε).
Sources: Spall 1992 (SPSA); Malladi et al. 2023 (MeZO).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fganalysis.arguments import check_flag, check_number
from fganalysis.capturing.batch import functionally_called
from fganalysis.capturing.errors import NonFiniteActivations
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.directional import check_switches
from fganalysis.estimators.guesses import WeightEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise, drawn
from fganalysis.estimators.passes import Passes
from fganalysis.estimators.tangents_of_weights import Tangents

PROBE_DIRECTIONS = 8  # Directions in which a larger step must change the loss before ε is called too small.
WORTH_A_BATCH = 3  # Fewer losses than this take no longer when evaluated one by one.
SUMMATION_ROUNDING = 2.0**10  # By which two orders of summation may differ, in units of the data type's precision.


@dataclass(frozen=True)
class FiniteDifference:
    """Ĝ = (difference of losses over ``epsilon``) z; ``central`` evaluates at both ends, else at θ+εz and θ.

    No closed form for a network in general, as it takes the loss's higher derivatives; where the loss is quadratic in
    the weights, and for ε → 0 and the order in ε, there is one.

    Raises:
        ValueError: epsilon that is not positive and finite; at a call, epsilon so small that θ+εz is θ in the network's
            data type, or that no loss differs by as much as its rounding, or so large that a loss is not finite.
    """

    # `fganalysis.difference_step` finds the best ε of a network, data type and kind of difference.
    epsilon: float = 1e-3
    central: bool = True
    noise: Noise = GAUSSIAN

    def __post_init__(self) -> None:
        check_number("epsilon", self.epsilon, above=0)
        check_flag("central", self.central)
        check_switches(self)

    def tangents(self) -> Tangents:
        return Tangents(self.noise, "joint", slope="central" if self.central else "one-sided")

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        directions = self.draw(snapshot, n_guesses, generator)
        differences = self._differences(snapshot, directions)
        # Asked for at once, as a GPU makes the host wait at each question.
        asked = [_moved_by(snapshot, directions, self.epsilon, 0), differences.isfinite().all(), differences.any()]
        first_moves, finite, differ = torch.stack(asked).tolist()
        if not first_moves and not _moves(snapshot, directions, self.epsilon):
            raise ValueError(f"epsilon={self.epsilon:g} underflows: no weight changes by it in {snapshot.loss.dtype}")
        if not finite:
            # As training knows it, a run that diverges stops there and keeps what it has.
            raise NonFiniteActivations(f"epsilon={self.epsilon:g} is too large: a loss at moved weights is not finite")
        if not differ:
            self._refuse_rounded_losses(snapshot)
        slopes = differences / (2 * self.epsilon if self.central else self.epsilon)
        return WeightEstimates(slopes.unsqueeze(1).expand(-1, len(directions)), directions)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        return Passes(forward=2 * n_guesses if self.central else n_guesses + 1)

    def draw(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """z, (guess, unit, input) a tap: all that a call draws; a generator in the same state gives it again."""
        return tuple(
            drawn(self.noise, (n_guesses, *layer.weight.shape), generator, layer.weight, vector_dims=2)
            for layer in snapshot.weights
        )

    def _differences(self, snapshot: Snapshot, directions: Sequence[Tensor]) -> Tensor:
        """L(θ+εz) − L(θ−εz) or L(θ+εz) − L(θ), (guess,)."""
        if self.central:
            return _losses(snapshot, directions, self.epsilon) - _losses(snapshot, directions, -self.epsilon)
        # Taking L(θ) from elsewhere would put another order of summation, whose rounding is divided by ε, beside it.
        losses = _losses(snapshot, [_with_origin(direction) for direction in directions], self.epsilon)
        return losses[1:] - losses[0]

    def _refuse_rounded_losses(self, snapshot: Snapshot) -> None:
        """Differences that are all zero are right where the loss is flat, and rounding where a larger step moves it."""
        generator = torch.Generator(snapshot.device).manual_seed(0)
        probes = self.draw(snapshot, PROBE_DIRECTIONS, generator)
        step = torch.finfo(snapshot.loss.dtype).eps ** (1 / 3)
        if step <= self.epsilon or self._differences(snapshot, probes).any():
            return
        larger = _losses(snapshot, [_with_origin(probe) for probe in probes], step)
        if bool((larger[1:] != larger[0]).any()):
            raise ValueError(
                f"epsilon={self.epsilon:g} is too small: the losses differ by less than their rounding error in "
                f"{snapshot.loss.dtype}"
            )


def _moves(snapshot: Snapshot, directions: Sequence[Tensor], epsilon: float) -> bool:
    """Whether a step changes any weight at all; a direction of zeros has none to change."""
    still = True
    for number, direction in enumerate(directions):
        if bool(_moved_by(snapshot, directions, epsilon, number)):
            return True
        still = still and not bool(direction.any())
    return still


def _moved_by(snapshot: Snapshot, directions: Sequence[Tensor], epsilon: float, number: int) -> Tensor:
    """Whether a step changes any weight of one layer, a tensor of one truth value."""
    weight = snapshot.weights[number].weight
    return (torch.add(weight, directions[number], alpha=epsilon) != weight).any()


def _with_origin(direction: Tensor) -> Tensor:
    """A direction of zeros before the others."""
    return torch.cat([torch.zeros_like(direction[:1]), direction])


def _losses(snapshot: Snapshot, directions: Sequence[Tensor], step: float) -> Tensor:
    """L(θ + step·z) of every direction, (guess,)."""
    if len(directions[0]) < WORTH_A_BATCH or not snapshot.remember("losses in a batch", lambda: _in_a_batch(snapshot)):
        return _one_by_one(snapshot, _moved(snapshot, directions, step))
    return _batched(snapshot, _moved(snapshot, directions, step))


def _moved(snapshot: Snapshot, directions: Sequence[Tensor], step: float) -> dict[str, Tensor]:
    """θ + step·z by parameter name, (guess, …)."""
    moved: dict[str, Tensor] = {}
    for layer, direction in zip(snapshot.weights, directions, strict=True):
        moved |= layer.by_parameter(torch.add(layer.weight, direction, alpha=step))
    return moved


def _batched(snapshot: Snapshot, moved: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.func.vmap(_loss_of(snapshot))(moved)


def _one_by_one(snapshot: Snapshot, moved: dict[str, Tensor]) -> Tensor:
    loss = _loss_of(snapshot)
    with torch.no_grad():
        n_guesses = len(next(iter(moved.values())))
        return torch.stack(
            [loss({name: weights[guess] for name, weights in moved.items()}) for guess in range(n_guesses)]
        )


def _loss_of(snapshot: Snapshot) -> Callable[[dict[str, Tensor]], Tensor]:
    """The loss as a function of the weights that move, by parameter name."""
    parameters = {name: value.detach() for name, value in snapshot.network.named_parameters()}
    buffers = dict(snapshot.network.named_buffers())
    # functional_call puts tensors into the module while it runs: on the shared one another thread would see them. This
    # is a copy of the modules alone, around the same tensors.
    shared: dict[int, Any] = {
        id(tensor): tensor for tensor in (*snapshot.network.parameters(), *snapshot.network.buffers())
    }
    network = copy.deepcopy(snapshot.network, shared)

    def loss(weights: dict[str, Tensor]) -> Tensor:
        # What a forward pass writes to a buffer must not reach the next one.
        fresh = {name: buffer.clone() for name, buffer in buffers.items()}
        outputs = functionally_called(network, (parameters | weights, fresh), snapshot.inputs)
        return snapshot.loss_fn(outputs, snapshot.targets)

    return loss


def _in_a_batch(snapshot: Snapshot) -> bool:
    """Whether the losses at a few places are the same in a batch as one by one, to rounding."""
    generator = torch.Generator(snapshot.device).manual_seed(0)
    directions = [GAUSSIAN.draw((2, *layer.weight.shape), generator, layer.weight) for layer in snapshot.weights]
    precision = torch.finfo(snapshot.loss.dtype).eps
    moved = _moved(snapshot, directions, precision ** (1 / 3))
    try:
        batched = _batched(snapshot, moved)
    except Exception:  # A batch can fail in as many ways as there are operations, and a plain pass is the judge.
        return False
    plain = _one_by_one(snapshot, moved)
    tolerance = SUMMATION_ROUNDING * precision * plain.abs()
    return batched.shape == plain.shape and bool(((batched - plain).abs() <= tolerance).all())
