"""Local loss: the gradient of an auxiliary head's loss at a layer's activations, as the direction of a guess.

    v_l,b = φ'(s_l,b) ⊙ ∂ℓ_head/∂φ(s_l,b)                  the head reads φ(s_l), the output of block l
    activation:   ĝ_l,b = ⟨target_l,b, v_l,b⟩ v_l,b / ‖v_l,b‖²
    weight:       Ĝ_l   = ⟨Target_l, V_l⟩ V_l / ‖V_l‖²,   V_l = Σ_b v_l,b x_bᵀ

The target is projected on v. A "global" target is the gradient of the network's loss, by a slope along v, with one
forward pass for each tap. A "local" target is the gradient of the loss of the block's own head. At the output tap the
guess is the exact gradient, since the head there is the loss itself.

Random: the heads, drawn once or for every guess. Biased: only the part of the target along v is kept. Sources:
docs/mathematics.md#local-losses; Fournier et al. 2023, who project at the block's output and not at the tap.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from fganalysis.arguments import check_choice, check_kind, check_number, check_seed, check_whole
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Tap
from fganalysis.estimators.adam import AdamState, check_optimiser
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.feedback.matrices import output_error, read_by_next, repeated
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.local import heads

Target = Literal["global", "local"]
Space = Literal["activation", "weight"]
Mode = Literal["frozen", "trained", "redrawn"]


@dataclass(frozen=True, eq=False)
class LocalLoss:
    """ĝ = the projection of the target on v.

    Fields:
        head, width: kind and size of the heads, as in `fganalysis.estimators.local.heads`.
        target: "global" or "local". Heads of a "local" target are the trained ones, or those of ``seed`` before any
            training.
        space: the space of the projection, "activation" or "weight".
        mode: which heads make the guess: "frozen" ones, as drawn from ``seed``; "trained" ones; or heads that are
            "redrawn" for every guess.
        rate: Adam's learning rate when heads are trained.
        optimiser: the trained heads with Adam's moments. `train_heads` makes it; so do `initialised` and then
            `advanced` after each step of the network's own training.

    Closed form: for the linear head under the mean cross-entropy, whose v is known. There is none for deeper heads and
    other losses, whose v needs their backward pass, nor for redrawn heads, whose v is no polynomial of their weights.

    Raises:
        ValueError: unknown settings; at a call, a head that does not fit a block's output, class indices beyond the
            outputs, or mode "trained" before there are trained heads.
    """

    head: heads.Kind = "linear"
    target: Target = "global"
    space: Space = "activation"
    mode: Mode = "frozen"
    seed: int = 0
    width: int | None = None
    rate: float = 1e-3
    optimiser: AdamState | None = None

    def __post_init__(self) -> None:
        for name, choices in {"head": heads.Kind, "target": Target, "space": Space, "mode": Mode}.items():
            check_choice(name, getattr(self, name), get_args(choices))
        check_seed("seed", self.seed)
        if self.width is not None:
            check_whole("width", self.width)
        check_number("rate", self.rate, above=0)
        check_optimiser(self.optimiser)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        heads.check_targets(snapshot.targets, snapshot.outputs.shape[1])
        if self.mode == "trained" and self.optimiser is None:
            raise ValueError("mode 'trained' needs trained heads: use train_heads, or initialised and advanced")
        shapes = self._shapes(snapshot)
        if self.mode == "redrawn":
            makers = [self._gradients(snapshot, index) for index in range(len(shapes))]
            directions = [
                heads.redrawn_gradients(shape, n_guesses, generator, make, snapshot.outputs) * jacobian.derivative
                for shape, make, jacobian in zip(shapes, makers, snapshot.upstream, strict=True)
            ]
        else:
            directions = self._head_gradients(snapshot, self.mode == "trained")
        guesses = self._projections(snapshot, directions) if directions else []
        return repeated([*guesses, output_error(snapshot)], n_guesses)

    def initialised(self, snapshot: Snapshot) -> LocalLoss:
        """The estimator with untrained heads, drawn from the seed, that `advanced` can train."""
        initial = self._initial(snapshot)
        return replace(self, optimiser=AdamState.at([tensor for head in initial for tensor in head]))

    def advanced(self, snapshot: Snapshot, generator: torch.Generator) -> LocalLoss:
        """The estimator after one step of Adam for every head on the snapshot's batch.

        Unchanged where neither ``mode`` nor ``target`` uses trained heads.
        """
        if self.mode != "trained" and self.target == "global":
            return self
        return train_heads(self, snapshot, 1)

    def state(self) -> dict[str, Tensor]:
        """Trained heads and Adam's moments by name, for a checkpoint; empty before the first training."""
        return self.optimiser.tensors() if self.optimiser else {}

    def with_state(self, state: dict[str, Tensor]) -> LocalLoss:
        """The estimator that `state` was taken from. Raises ValueError where tensors are missing."""
        return replace(self, optimiser=AdamState.of_tensors(state) if state else None)

    def head_losses(self, snapshot: Snapshot) -> Tensor:
        """The loss of the head of each block on the batch, (layer,), without the output tap."""
        block_heads = self.own_heads(snapshot, self.optimiser is not None)
        blocks = [read_by_next(snapshot, index) for index in range(len(block_heads))]
        pairs = zip(block_heads, blocks, strict=True)
        return torch.stack([snapshot.loss_fn(heads.outputs_of(head, block), snapshot.targets) for head, block in pairs])

    def _projections(self, snapshot: Snapshot, directions: Sequence[Tensor]) -> list[Tensor]:
        """The projection of the target on each tap's directions (guess, example, unit), in the same shape."""
        hidden = snapshot.taps[:-1]
        pairs = [self._normalised(tap, v) for tap, v in zip(hidden, directions, strict=True)]
        units, probes = [unit for unit, _ in pairs], [probe for _, probe in pairs]
        if self.target == "local":
            local_gradients = self._head_gradients(snapshot, self.optimiser is not None)
            slopes = [(probe * gradient).sum(-1) for probe, gradient in zip(probes, local_gradients, strict=True)]
        else:
            still = probes[0].new_zeros(len(probes[0]), *snapshot.taps[-1].outputs.shape)
            slopes = list(snapshot.slopes([*probes, still], "separate").unbind(1)[:-1])
        if self.space == "weight":
            slopes = [slope.sum(-1, keepdim=True) for slope in slopes]
        return [slope.unsqueeze(-1) * unit for slope, unit in zip(slopes, units, strict=True)]

    def _normalised(self, tap: Tap, direction: Tensor) -> tuple[Tensor, Tensor]:
        """The direction of the guess, and the direction at the activations along which its slope is taken.

        In activation space both are v/‖v‖ of each example. In weight space the first is v/‖V‖, and the second is the
        change of the tap's outputs along V/‖V‖: V x_b = Σ_c K_bc v_c, with K = FᵀF and ‖V‖ = ‖F v‖. A direction of
        zeros stays zero.
        """
        direction = _near_one(direction)
        if self.space == "activation":
            unit = _scaled(direction, torch.linalg.vector_norm(direction, dim=-1, keepdim=True))
            return unit, unit
        # F has as many rows as the batch or fewer. Its decomposition pays only for many directions.
        root = tap.kernel_root if len(direction) > 1 else tap.inputs.T
        image = root @ direction
        norm = torch.linalg.vector_norm(image, dim=(1, 2), keepdim=True)
        return _scaled(direction, norm), root.T @ _scaled(image, norm)

    def _head_gradients(self, snapshot: Snapshot, trained: bool) -> list[Tensor]:
        """v of the trained heads or of those of the seed, (1, example, unit) for every tap but the last."""
        if trained and self.optimiser is not None:
            at_blocks = [at_block.unsqueeze(0) for at_block, _ in self.gradients_of_trained(snapshot)]
        else:
            at_blocks = snapshot.remember(
                ("head gradients", self.head, self.width, self.seed), self._at_blocks(snapshot)
            )
        pairs = zip(at_blocks, snapshot.upstream, strict=True)
        return [at_block * jacobian.derivative for at_block, jacobian in pairs]

    def _at_blocks(self, snapshot: Snapshot) -> Callable[[], list[Tensor]]:
        """A function that computes ∂ℓ/∂block for the heads of the seed, (1, example, unit) each."""

        def make() -> list[Tensor]:
            singles = [tuple(tensor.unsqueeze(0) for tensor in head) for head in self.own_heads(snapshot, False)]
            return [self._gradients(snapshot, index)(head) for index, head in enumerate(singles)]

        return make

    def gradients_of_trained(self, snapshot: Snapshot) -> list[tuple[Tensor, heads.Parameters]]:
        """∂ℓ/∂block and ∂ℓ/∂parameters of every trained head.

        A guess needs the first and a step of Adam the second, so one backward pass through the head serves both. The
        snapshot remembers the gradients of one state of the heads, as every step makes a new state.
        """
        trained_heads = self.own_heads(snapshot, True)
        last: dict[AdamState | None, list[tuple[Tensor, heads.Parameters]]]
        last = snapshot.remember("gradients of trained heads", dict)
        gradients = last.get(self.optimiser)
        if gradients is None:
            gradients = [
                heads.both_gradients(head, read_by_next(snapshot, index), snapshot.loss_fn, snapshot.targets)
                for index, head in enumerate(trained_heads)
            ]
            last.clear()
            last[self.optimiser] = gradients
        return gradients

    def _gradients(self, snapshot: Snapshot, index: int) -> Callable[[heads.Parameters], Tensor]:
        def of(parameters: heads.Parameters) -> Tensor:
            return heads.block_gradients(parameters, block, snapshot.loss_fn, snapshot.targets)

        block = read_by_next(snapshot, index)
        return of

    def own_heads(self, snapshot: Snapshot, trained: bool) -> list[heads.Parameters]:
        """The head of every tap but the last, trained or from the seed. Raises ValueError for one that does not fit."""
        if not trained or self.optimiser is None:
            return self._initial(snapshot)
        shapes = self._shapes(snapshot)
        block_heads, values = [], list(self.optimiser.values)
        for name, shape in zip(snapshot.layers, shapes, strict=False):
            head, values = tuple(values[: len(shape)]), values[len(shape) :]
            got = tuple(tuple(tensor.shape) for tensor in head)
            if got != shape:
                raise ValueError(f"the head does not fit the block of tap {name!r}: it needs {shape}, got {got}")
            block_heads.append(head)
        return block_heads

    @cached_property
    def _seeded(self) -> dict[Hashable, list[heads.Parameters]]:
        """The heads of the seed for the last network: drawing large heads takes longer than a training step."""
        return {}

    def _initial(self, snapshot: Snapshot) -> list[heads.Parameters]:
        shapes = tuple(self._shapes(snapshot))
        key = (shapes, snapshot.dtype, snapshot.device)
        # One lookup, because another thread may replace the entry by the heads of another network.
        initial_heads = self._seeded.get(key)
        if initial_heads is None:
            generator = torch.Generator().manual_seed(self.seed)
            # In float32 and then converted, so that a float32 and a float64 network get the same heads.
            like = torch.zeros(0, dtype=torch.float32)
            drawn = [heads.drawn(shape, 1, generator, like) for shape in shapes]
            initial_heads = [tuple(tensor[0].to(snapshot.outputs) for tensor in head) for head in drawn]
            self._seeded.clear()
            self._seeded[key] = initial_heads
        return initial_heads

    def __getstate__(self) -> dict[str, object]:
        """Only the fields, for copies and pickles: drawing the heads again is faster than copying them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _shapes(self, snapshot: Snapshot) -> list[heads.Shapes]:
        outputs = snapshot.outputs.shape[1]
        hidden = snapshot.taps[:-1]
        return [heads.shapes_of(self.head, tap.units, outputs, self.width, tap.name) for tap in hidden]


def train_heads(estimator: LocalLoss, snapshot: Snapshot, n_steps: int) -> LocalLoss:
    """The estimator with its heads trained for ``n_steps`` more steps of Adam on the snapshot's batch.

    Raises ValueError for n_steps below 1, for heads that do not fit and for class indices beyond the outputs.
    """
    check_kind("estimator", estimator, LocalLoss, "a LocalLoss")
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    check_whole("n_steps", n_steps)
    heads.check_targets(snapshot.targets, snapshot.outputs.shape[1])
    if estimator.optimiser is None:
        estimator = estimator.initialised(snapshot)
    for _ in range(n_steps):
        gradients = [tensor for _, of_head in estimator.gradients_of_trained(snapshot) for tensor in of_head]
        assert estimator.optimiser is not None
        moved = estimator.optimiser.moved(gradients, estimator.rate)
        estimator = replace(estimator, optimiser=moved)
    return estimator


def _near_one(direction: Tensor) -> Tensor:
    """Scales every guess by a power of two to a largest entry near 1, as squares of 1e-25 are zero in float32."""
    exponent = torch.frexp(direction.abs().amax((1, 2), keepdim=True)).exponent
    return torch.ldexp(direction, -exponent.clamp(min=-125))


def _scaled(direction: Tensor, norm: Tensor) -> Tensor:
    return direction / torch.where(norm > 0, norm, 1.0)
