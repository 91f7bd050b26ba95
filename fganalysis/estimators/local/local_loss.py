"""Local loss: the gradient of an auxiliary head's loss at a block's output, as the direction of a guess.

    v_l,b = φ'(s_l,b) ⊙ ∂ℓ_head/∂φ(s_l,b)                  the head reads φ(s_l), the block's output
    activation:   ĝ_l,b = ⟨target_l,b, v_l,b⟩ v_l,b / ‖v_l,b‖²
    weight:       Ĝ_l   = ⟨Target_l, V_l⟩ V_l / ‖V_l‖²,   V_l = Σ_b v_l,b x_bᵀ

target: the loss's own gradient ("global", a slope along v, one pass a tap) or that of the block's own head ("local").
The output tap's block has the loss itself for a head: its guess is exact. Random: the heads, once, or for every guess.
Biased: of the target only the part along v is kept, the best multiple of v. Source: Fournier et al. 2023, who project
at the block's output; here it is at the tap, where gradients are measured.
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
    """ĝ = the target's projection on v.

    Fields: ``head`` and ``width`` as in `fganalysis.estimators.local.heads`; ``target``; the ``space`` of the
    projection; ``mode``, the weights of the head that makes the guess: "frozen" at those drawn from ``seed``, "trained"
    ones, or "redrawn" for every guess. ``optimiser`` is the state, the trained heads with Adam's moments: made by
    `train_heads`, or by `initialised` and `advanced` beside the network's own training, with Adam's ``rate``. The
    "local" target is the gradient of the trained heads where there are any, of the seed's otherwise.

    Closed form: the projection on v, predicted for the linear head under the mean cross-entropy. None for the deeper
    heads and other losses, whose v is what only their own backward pass gives, nor for redrawn heads, v being no
    polynomial of their weights.
    Raises ValueError for unknown settings; in a call for a head that does not fit a block's output, for class indices
    beyond the outputs, and for mode "trained" before there are trained heads.
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
        """The heads of the seed in the shapes that the network asks for, to be trained by `advanced`."""
        initial = self._initial(snapshot)
        return replace(self, optimiser=AdamState.at([tensor for head in initial for tensor in head]))

    def advanced(self, snapshot: Snapshot, generator: torch.Generator) -> LocalLoss:
        """One step of Adam for every head on the snapshot's batch; nothing where no trained head is asked for."""
        if self.mode != "trained" and self.target == "global":
            return self
        return train_heads(self, snapshot, 1)

    def state(self) -> dict[str, Tensor]:
        """Heads and Adam's moments by name, for a checkpoint; empty before there are any."""
        return self.optimiser.tensors() if self.optimiser else {}

    def with_state(self, state: dict[str, Tensor]) -> LocalLoss:
        """The estimator that `state` was taken from. Raises ValueError where tensors are missing."""
        return replace(self, optimiser=AdamState.of_tensors(state) if state else None)

    def head_losses(self, snapshot: Snapshot) -> Tensor:
        """The loss of each block's own head on the batch, (layer,), the output tap left out."""
        own = self.own_heads(snapshot, self.optimiser is not None)
        blocks = [read_by_next(snapshot, index) for index in range(len(own))]
        pairs = zip(own, blocks, strict=True)
        return torch.stack([snapshot.loss_fn(heads.outputs_of(head, block), snapshot.targets) for head, block in pairs])

    def _projections(self, snapshot: Snapshot, directions: Sequence[Tensor]) -> list[Tensor]:
        """The target's projection on each direction (guess, example, unit), in the same shape."""
        hidden = snapshot.taps[:-1]
        pairs = [self._normalised(tap, v) for tap, v in zip(hidden, directions, strict=True)]
        units, probes = [unit for unit, _ in pairs], [probe for _, probe in pairs]
        if self.target == "local":
            own = self._head_gradients(snapshot, self.optimiser is not None)
            slopes = [(probe * gradient).sum(-1) for probe, gradient in zip(probes, own, strict=True)]
        else:
            still = probes[0].new_zeros(len(probes[0]), *snapshot.taps[-1].outputs.shape)
            slopes = list(snapshot.slopes([*probes, still], "separate").unbind(1)[:-1])
        if self.space == "weight":
            slopes = [slope.sum(-1, keepdim=True) for slope in slopes]
        return [slope.unsqueeze(-1) * unit for slope, unit in zip(slopes, units, strict=True)]

    def _normalised(self, tap: Tap, direction: Tensor) -> tuple[Tensor, Tensor]:
        """v/‖v‖ for each example, or v/‖V‖, zero staying zero; and where the slope is taken for it.

        Along the weights V the tap's outputs move by V x_b = Σ_c K_bc v_c, with K = FᵀF and ‖V‖ = ‖F v‖.
        """
        direction = _near_one(direction)
        if self.space == "activation":
            unit = _scaled(direction, torch.linalg.vector_norm(direction, dim=-1, keepdim=True))
            return unit, unit
        # F is as small as the batch, which pays for its decomposition where there are many directions to multiply.
        root = tap.kernel_root if len(direction) > 1 else tap.inputs.T
        image = root @ direction
        norm = torch.linalg.vector_norm(image, dim=(1, 2), keepdim=True)
        return _scaled(direction, norm), root.T @ _scaled(image, norm)

    def _head_gradients(self, snapshot: Snapshot, trained: bool) -> list[Tensor]:
        """v of the heads of the state or of the seed, (1, example, unit) for every tap but the last."""
        if trained and self.optimiser is not None:
            at_blocks = [at_block.unsqueeze(0) for at_block, _ in self.gradients_of_trained(snapshot)]
        else:
            at_blocks = snapshot.remember(
                ("head gradients", self.head, self.width, self.seed), self._at_blocks(snapshot)
            )
        pairs = zip(at_blocks, snapshot.upstream, strict=True)
        return [at_block * jacobian.derivative for at_block, jacobian in pairs]

    def _at_blocks(self, snapshot: Snapshot) -> Callable[[], list[Tensor]]:
        """Makes ∂ℓ/∂block of the seed's heads, (1, example, unit) each."""

        def make() -> list[Tensor]:
            singles = [tuple(tensor.unsqueeze(0) for tensor in head) for head in self.own_heads(snapshot, False)]
            return [self._gradients(snapshot, index)(head) for index, head in enumerate(singles)]

        return make

    def gradients_of_trained(self, snapshot: Snapshot) -> list[tuple[Tensor, heads.Parameters]]:
        """∂ℓ/∂block and ∂ℓ/∂parameters of every trained head: a guess and the heads' own step share the passes.

        The snapshot remembers the last state's alone; every step has another.
        """
        own = self.own_heads(snapshot, True)
        last: dict[AdamState | None, list[tuple[Tensor, heads.Parameters]]]
        last = snapshot.remember("gradients of trained heads", dict)
        found = last.get(self.optimiser)
        if found is None:
            found = [
                heads.both_gradients(head, read_by_next(snapshot, index), snapshot.loss_fn, snapshot.targets)
                for index, head in enumerate(own)
            ]
            last.clear()
            last[self.optimiser] = found
        return found

    def _gradients(self, snapshot: Snapshot, index: int) -> Callable[[heads.Parameters], Tensor]:
        def of(parameters: heads.Parameters) -> Tensor:
            return heads.block_gradients(parameters, block, snapshot.loss_fn, snapshot.targets)

        block = read_by_next(snapshot, index)
        return of

    def own_heads(self, snapshot: Snapshot, trained: bool) -> list[heads.Parameters]:
        """One head for every tap but the last, of the state or of the seed; checked."""
        if not trained or self.optimiser is None:
            return self._initial(snapshot)
        shapes = self._shapes(snapshot)
        found, values = [], list(self.optimiser.values)
        for name, shape in zip(snapshot.layers, shapes, strict=False):
            head, values = tuple(values[: len(shape)]), values[len(shape) :]
            got = tuple(tuple(tensor.shape) for tensor in head)
            if got != shape:
                raise ValueError(f"the head does not fit the block of tap {name!r}: it needs {shape}, got {got}")
            found.append(head)
        return found

    @cached_property
    def _seeded(self) -> dict[Hashable, list[heads.Parameters]]:
        """The seed's heads for the blocks met last: large ones take longer to draw than the network's whole step."""
        return {}

    def _initial(self, snapshot: Snapshot) -> list[heads.Parameters]:
        shapes = tuple(self._shapes(snapshot))
        key = (shapes, snapshot.outputs.dtype, snapshot.outputs.device)
        # Asked and answered at once: another thread may guess on another network, whose blocks are then the last ones.
        found = self._seeded.get(key)
        if found is None:
            generator = torch.Generator().manual_seed(self.seed)
            # In float32 and then converted, so that a float32 and a float64 network get the same heads.
            like = torch.zeros(0, dtype=torch.float32)
            drawn = [heads.drawn(shape, 1, generator, like) for shape in shapes]
            found = [tuple(tensor[0].to(snapshot.outputs) for tensor in head) for head in drawn]
            self._seeded.clear()
            self._seeded[key] = found
        return found

    def __getstate__(self) -> dict[str, object]:
        """The fields alone, for copies and pickles: heads of a seed are drawn again in less time than they travel."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _shapes(self, snapshot: Snapshot) -> list[heads.Shapes]:
        outputs = snapshot.outputs.shape[1]
        hidden = snapshot.taps[:-1]
        return [heads.shapes_of(self.head, tap.units, outputs, self.width, tap.name) for tap in hidden]


def train_heads(estimator: LocalLoss, snapshot: Snapshot, n_steps: int) -> LocalLoss:
    """The estimator with its heads trained for ``n_steps`` steps of Adam on the snapshot's batch, from where they were.

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
    """Every guess times a power of two that brings its largest number near 1: squares of 1e-25 are zero in float32."""
    exponent = torch.frexp(direction.abs().amax((1, 2), keepdim=True)).exponent
    return torch.ldexp(direction, -exponent.clamp(min=-125))


def _scaled(direction: Tensor, norm: Tensor) -> Tensor:
    return direction / torch.where(norm > 0, norm, 1.0)
