"""Checks at capture of slopes in forward mode, which take no backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fganalysis.capturing.batch import map_tensors
from fganalysis.capturing.errors import CannotMeasure
from fganalysis.capturing.examples import SAME
from fganalysis.capturing.moved_losses import DIFFERENCE_STEPS, Directions, Losses, size_of
from fganalysis.capturing.refusals import mean_loss
from fganalysis.capturing.snapshot import Snapshot


def refuse_weights_in_the_loss_unseen(snapshot: Snapshot) -> None:
    """As `refuse_weights_in_the_loss`, without a backward pass: a loss of constant outputs has no gradient."""
    with torch.enable_grad():
        constants = map_tensors(snapshot.outputs, lambda t: t.detach())
        loss = mean_loss(snapshot.loss_fn, constants, snapshot.targets)
    if loss.requires_grad:
        raise CannotMeasure(
            "loss_fn reads parameters by itself, not through the outputs, as a penalty does: leave it out of loss_fn "
            "(a weight decay belongs in the optimiser)"
        )


def _directions(snapshot: Snapshot, of_first_half: bool = False) -> list[Tensor]:
    """A random direction for each tap, (1, row, unit), zero outside the first half of the examples if asked for."""
    generator = torch.Generator().manual_seed(0)
    directions = []
    for tap in snapshot.taps:
        drawn = torch.randn((1, *tap.outputs.shape), generator=generator, dtype=torch.float64).to(tap.outputs)
        if of_first_half and tap.owners is not None:
            drawn *= (tap.owners.examples < snapshot.n_examples // 2).to(drawn)[:, None]
        elif of_first_half:
            drawn.zero_()
        directions.append(drawn)
    return directions


def _sloped(slopes: Callable[[], Tensor]) -> Tensor:
    try:
        return slopes().double()
    except (CannotMeasure, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise CannotMeasure(
            "forward mode (torch.func.jvp) fails on this network or loss: use autodiff='reverse', which needs none"
        ) from error


def refuse_dropped_tangents(snapshot: Snapshot) -> None:
    """Refuses a forward-mode slope that is not the inner product with the gradient: jvp can drop tangents silently."""
    directions, by_example = _directions(snapshot), not snapshot.interaction
    forward_slopes = _sloped(lambda: snapshot.slopes(directions, by_example=by_example))
    exact = _sloped(lambda: replace(snapshot, autodiff="reverse").slopes(directions, by_example=by_example))
    _refuse_other_slopes(forward_slopes, exact, 1e-2, 0.0)


def refuse_wrong_slopes_in_forward_mode(snapshot: Snapshot) -> None:
    """Refuses a forward-mode slope that does not predict the change of the loss along a step ΔW.

    The slope is taken at the activations, along y = ΔW x. It is wrong where a weight is also used elsewhere, where the
    loss has a penalty on the weights, and where tangents are dropped.
    """
    step = 10 * DIFFERENCE_STEPS[snapshot.dtype]
    generator = torch.Generator().manual_seed(3)
    parameters = {name: p for name, p in snapshot.network.named_parameters() if p.requires_grad}
    tapped = {name for tap in snapshot.taps for name in tap.parameter_names}
    directions_of = Directions(snapshot.network)
    moves = {
        name: step * size_of(p) * directions_of(name, None, generator)
        for name, p in parameters.items()
        if name in tapped
    }

    def slope() -> Tensor:
        directions = [tap.weights.along(tap.columns(moves).unsqueeze(0)) for tap in snapshot.taps]
        return snapshot.slopes(directions, by_example=False)

    losses = Losses(snapshot)
    ends = [losses.moved({name: sign * move for name, move in moves.items()})[0] for sign in (1, -1)]
    # Kinks and rounding are in a difference; what is dropped is of the order of the slopes.
    _refuse_other_slopes(
        _sloped(slope).sum(), torch.tensor((ends[0] - ends[1]) / 2), 0.1, 10 * losses.rounding(ends[0])
    )


def _refuse_other_slopes(forward_slopes: Tensor, other: Tensor, tolerance: float, rounding_of_other: float) -> None:
    if bool((forward_slopes - other).norm() > tolerance * other.norm() + rounding_of_other):
        raise CannotMeasure(
            "forward mode gives other slopes than the gradient on this network: use autodiff='reverse', which says more"
        )


def refuse_interacting_examples_in_forward_mode(snapshot: Snapshot) -> None:
    """Refuses examples that interact: perturbing half of the examples must not change the losses of the others."""
    n = snapshot.n_examples
    if n == 1 or snapshot.interaction:
        return
    directions = _directions(snapshot, of_first_half=True)
    slopes = _sloped(lambda: snapshot.slopes(directions))[0, 0]
    if bool(slopes[n // 2 :].norm() > SAME * slopes.norm()):
        raise CannotMeasure(
            "examples interact in the forward pass, so that an example's loss depends on the others' activations: take "
            "batch statistics out of it (network.eval() does for BatchNorm), or use autodiff='reverse'"
        )
