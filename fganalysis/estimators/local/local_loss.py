"""Local loss: the gradient of an auxiliary head's loss at a layer's activations, as the direction of a guess.

    v_l,b = φ'(s_l,b) ⊙ ∂ℓ_head/∂φ(s_l,b)                  the head reads φ(s_l), the output of block l
    activation:   ĝ_l,b = ⟨target_l,b, v_l,b⟩ v_l,b / ‖v_l,b‖²
    weight:       Ĝ_l   = ⟨Target_l, V_l⟩ V_l / ‖V_l‖²,   V_l = Σ_b v_l,b x_bᵀ

The target is projected on v. A "global" target is the gradient of the network's loss, by a slope along v, with one
forward pass for each tap. A "local" target is the gradient of the loss of the block's own head. At the output tap the
guess is the exact gradient, since the head there is the loss itself.

On any other network the head of a tap reads what arrives at the next tap downstream, and v is pulled back from there.
With ``blocks`` heads stand behind the named modules alone, as in the source: the projection is at the block's output,

    ĝ_block,b = ⟨target_b, v_b⟩ v_b / ‖v_b‖²,   v_b = ∂ℓ_head/∂(the block's output)

and is pulled back to the taps of the block (`fganalysis.estimators.local.blocks`).

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

from fganalysis.arguments import check_choice, check_kind, check_names, check_number, check_seed, check_whole
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Tap
from fganalysis.capturing.weight_maps.matrix import MatrixMap
from fganalysis.estimators.adam import AdamState, check_optimiser
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.feedback.delivery import hidden_taps, is_plain_chain
from fganalysis.estimators.feedback.matrices import output_error, read_by_next, repeated
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.local import heads
from fganalysis.estimators.local.blocks import Block, behind_modules, between_taps
from fganalysis.estimators.local.projection import near_one, projected, scaled
from fganalysis.estimators.local.reading import Reading, reading_of
from fganalysis.estimators.passes import Passes

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
        blocks: names of the modules behind which heads stand; None for a head behind every tap but those at the
            outputs. A projection in weight space is then that of all weights of the block together.

    Closed form: for the linear head under the mean cross-entropy, whose v is known. There is none for deeper heads and
    other losses, whose v needs their backward pass, nor for redrawn heads, whose v is no polynomial of their weights.

    Raises:
        ValueError: unknown settings; at a call, a head that does not fit a block's output, class indices beyond the
            outputs, or mode "trained" before there are trained heads; on a network that is no chain of Linear modules
            and with ``blocks``, examples that interact, no output of a block of each example alone, outputs that are
            no single tensor for the loss, or a snapshot without a backward pass or of a part of a batch.
    """

    head: heads.Kind = "linear"
    target: Target = "global"
    space: Space = "activation"
    mode: Mode = "frozen"
    seed: int = 0
    width: int | None = None
    rate: float = 1e-3
    optimiser: AdamState | None = None
    blocks: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, choices in {"head": heads.Kind, "target": Target, "space": Space, "mode": Mode}.items():
            check_choice(name, getattr(self, name), get_args(choices))
        check_seed("seed", self.seed)
        if self.width is not None:
            check_whole("width", self.width)
        check_number("rate", self.rate, above=0)
        check_optimiser(self.optimiser)
        if self.blocks is not None:
            check_names("blocks", self.blocks)
            object.__setattr__(self, "blocks", tuple(self.blocks))

    @staticmethod
    def _check_targets(snapshot: Snapshot) -> None:
        """Once for a batch, as the host waits for a GPU. A snapshot with other targets may share the memory of this."""
        checked: list[Tensor] = snapshot.remember("class targets that were checked", list)
        if not any(targets is snapshot.targets for targets in checked):
            heads.check_targets(snapshot.targets, snapshot.outputs)
            checked[:] = [snapshot.targets]

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        self._check_targets(snapshot)
        if self.mode == "trained" and self.optimiser is None:
            raise ValueError("mode 'trained' needs trained heads: use train_heads, or initialised and advanced")
        if self.mode == "redrawn":
            at_blocks = self._redrawn(snapshot, n_guesses, generator)
        else:
            at_blocks = self._head_gradients(snapshot, self.mode == "trained")
        if self._on_a_chain(snapshot):
            directions = self._at_taps(snapshot, at_blocks)
            guesses = self._projections(snapshot, directions) if directions else []
            return repeated([*guesses, output_error(snapshot)], n_guesses)
        local = self._head_gradients(snapshot, self.optimiser is not None) if self.target == "local" else None
        return repeated(projected(snapshot, self._blocks(snapshot), at_blocks, local, self.space), n_guesses)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        """A slope along v of every block for a global target, and what makes weight gradients of v and of the guess.

        Named blocks take a backward pass, from their outputs to their weights, for each vector that is pulled back.
        """
        n_blocks = len(hidden_taps(snapshot)) if self.blocks is None else len(self.blocks)
        n_drawn = n_guesses if self.mode == "redrawn" else 1
        slopes = n_drawn if self.target == "global" else 0
        pulled = 1  # The mean guess; in weight space V of every guess, and the local target.
        if self.space == "weight":
            pulled = n_drawn + (self.target == "local")
        along = slopes if self.space == "weight" else 0  # V x, the change at a tap along V.
        named = self.blocks is not None
        return Passes(
            1,
            slopes * n_blocks,
            backward=pulled if named else 0,
            products=along + (0 if named else pulled),
            beside=("forward and backward pass of every auxiliary head",),
        )

    def _on_a_chain(self, snapshot: Snapshot) -> bool:
        """Whether products with φ' and K = X Xᵀ of each tap alone give the guess."""
        alone = all(
            isinstance(tap.weights, MatrixMap) and len(snapshot.weights[tap.layer].taps) == 1 for tap in snapshot.taps
        )
        return self.blocks is None and is_plain_chain(snapshot) and alone

    def _blocks(self, snapshot: Snapshot) -> list[Block]:
        made: list[Block] = snapshot.remember(
            ("blocks", self.blocks),
            lambda: between_taps(snapshot) if self.blocks is None else behind_modules(snapshot, self.blocks),
        )
        return made

    def _readings(self, snapshot: Snapshot) -> list[Reading]:
        """What the heads read, in the order of the taps or modules that they stand behind."""
        if not self._on_a_chain(snapshot):
            return [block.reading for block in self._blocks(snapshot)]
        return [
            reading_of(snapshot, tap.name, read_by_next(snapshot, index), (tap.units,), 0)
            for index, tap in enumerate(snapshot.taps[:-1])
        ]

    def _redrawn(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> list[Tensor]:
        """∂ℓ/∂block of heads that are drawn for every guess, (guess, example, number) each."""
        found = []
        for reading in self._readings(snapshot):
            make = self._gradients(reading)
            shapes = reading.shapes(self.head, self.width)
            drawn = heads.redrawn_gradients(shapes, n_guesses, generator, make, reading.signal)
            found.append(reading.numbers(drawn))
        return found

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
        """The loss of the head of each block on the batch, (block,)."""
        pairs = zip(self.own_heads(snapshot, self.optimiser is not None), self._readings(snapshot), strict=True)
        return torch.stack([r.loss(heads.outputs_of(head, r.signal, r.each)) for head, r in pairs])

    def _projections(self, snapshot: Snapshot, directions: Sequence[Tensor]) -> list[Tensor]:
        """The projection of the target on each tap's directions (guess, example, unit), in the same shape."""
        hidden = snapshot.taps[:-1]
        pairs = [self._normalised(tap, v) for tap, v in zip(hidden, directions, strict=True)]
        units, probes = [unit for unit, _ in pairs], [probe for _, probe in pairs]
        if self.target == "local":
            at_blocks = self._head_gradients(snapshot, self.optimiser is not None)
            local_gradients = self._at_taps(snapshot, at_blocks)
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
        direction = near_one(direction)
        if self.space == "activation":
            unit = scaled(direction, torch.linalg.vector_norm(direction, dim=-1, keepdim=True))
            return unit, unit
        # F has as many rows as the batch or fewer. Its decomposition pays only for many directions.
        root = tap.kernel_root if len(direction) > 1 else tap.inputs.T
        image = root @ direction
        norm = torch.linalg.vector_norm(image, dim=(1, 2), keepdim=True)
        return scaled(direction, norm), root.T @ scaled(image, norm)

    def _at_taps(self, snapshot: Snapshot, at_blocks: Sequence[Tensor]) -> list[Tensor]:
        """v = φ' ⊙ ∂ℓ/∂φ(s) of a chain."""
        pairs = zip(at_blocks, snapshot.upstream, strict=True)
        return [at_block * jacobian.derivative for at_block, jacobian in pairs]

    def _head_gradients(self, snapshot: Snapshot, trained: bool) -> list[Tensor]:
        """∂ℓ/∂block of the trained heads or of those of the seed, (1, example, number) for every block."""
        if trained and self.optimiser is not None:
            pairs = zip(self._readings(snapshot), self.gradients_of_trained(snapshot), strict=True)
            return [reading.numbers(at_block.unsqueeze(0)) for reading, (at_block, _) in pairs]
        made: list[Tensor] = snapshot.remember(
            ("head gradients", self.head, self.width, self.seed, self.blocks), lambda: self._of_the_seed(snapshot)
        )
        return made

    def _of_the_seed(self, snapshot: Snapshot) -> list[Tensor]:
        singles = [tuple(tensor.unsqueeze(0) for tensor in head) for head in self.own_heads(snapshot, False)]
        pairs = zip(self._readings(snapshot), singles, strict=True)
        return [reading.numbers(self._gradients(reading)(head)) for reading, head in pairs]

    def gradients_of_trained(self, snapshot: Snapshot) -> list[tuple[Tensor, heads.Parameters]]:
        """∂ℓ/∂(what the head reads) and ∂ℓ/∂parameters of every trained head.

        A guess needs the first and a step of Adam the second, so one backward pass through the head serves both. The
        snapshot remembers the gradients of one state of the heads, as every step makes a new state.
        """
        trained_heads = self.own_heads(snapshot, True)
        last: dict[AdamState | None, list[tuple[Tensor, heads.Parameters]]]
        last = snapshot.remember("gradients of trained heads", dict)
        gradients = last.get(self.optimiser)
        if gradients is None:
            gradients = [
                heads.both_gradients(head, reading.signal, reading.loss, reading.each)
                for reading, head in zip(self._readings(snapshot), trained_heads, strict=True)
            ]
            last.clear()
            last[self.optimiser] = gradients
        return gradients

    def _gradients(self, reading: Reading) -> Callable[[heads.Parameters], Tensor]:
        def of(parameters: heads.Parameters) -> Tensor:
            return heads.block_gradients(parameters, reading.signal, reading.loss, reading.each)

        return of

    def own_heads(self, snapshot: Snapshot, trained: bool) -> list[heads.Parameters]:
        """The head of every block, trained or from the seed. Raises ValueError for one that does not fit."""
        if not trained or self.optimiser is None:
            return self._initial(snapshot)
        block_heads, values = [], list(self.optimiser.values)
        for reading in self._readings(snapshot):
            shape = reading.shapes(self.head, self.width)
            head, values = tuple(values[: len(shape)]), values[len(shape) :]
            got = tuple(tuple(tensor.shape) for tensor in head)
            if got != shape:
                raise ValueError(
                    f"the head does not fit the block of tap {reading.name!r}: it needs {shape}, got {got}"
                )
            block_heads.append(head)
        return block_heads

    @cached_property
    def _seeded(self) -> dict[Hashable, list[heads.Parameters]]:
        """The heads of the seed for the last network: drawing large heads takes longer than a training step."""
        return {}

    def _initial(self, snapshot: Snapshot) -> list[heads.Parameters]:
        shapes = tuple(reading.shapes(self.head, self.width) for reading in self._readings(snapshot))
        key = (shapes, snapshot.dtype, snapshot.device)
        # One lookup, because another thread may replace the entry by the heads of another network.
        initial_heads = self._seeded.get(key)
        if initial_heads is None:
            generator = torch.Generator().manual_seed(self.seed)
            # In float32 and then converted, so that a float32 and a float64 network get the same heads.
            like = torch.zeros(0, dtype=torch.float32)
            drawn = [heads.drawn(shape, 1, generator, like) for shape in shapes]
            initial_heads = [tuple(tensor[0].to(snapshot.like) for tensor in head) for head in drawn]
            self._seeded.clear()
            self._seeded[key] = initial_heads
        return initial_heads

    def __getstate__(self) -> dict[str, object]:
        """Only the fields, for copies and pickles: drawing the heads again is faster than copying them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def train_heads(estimator: LocalLoss, snapshot: Snapshot, n_steps: int) -> LocalLoss:
    """The estimator with its heads trained for ``n_steps`` more steps of Adam on the snapshot's batch.

    Raises ValueError for n_steps below 1, for heads that do not fit and for class indices beyond the outputs.
    """
    check_kind("estimator", estimator, LocalLoss, "a LocalLoss")
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    check_whole("n_steps", n_steps)
    heads.check_targets(snapshot.targets, snapshot.outputs)
    if estimator.optimiser is None:
        estimator = estimator.initialised(snapshot)
    for _ in range(n_steps):
        gradients = [tensor for _, of_head in estimator.gradients_of_trained(snapshot) for tensor in of_head]
        assert estimator.optimiser is not None
        moved = estimator.optimiser.moved(gradients, estimator.rate)
        estimator = replace(estimator, optimiser=moved)
    return estimator
