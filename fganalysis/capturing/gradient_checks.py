"""Checks at capture that the gradient, with which everything is compared, is right.

Three comparisons: the gradient put together from the taps with autograd's; a second forward pass with the first; a
difference of losses with the slope of the gradient. `fganalysis.capturing.examples` compares the gradient of an example
with and without the other examples.
Each failure is one sentence with the cause and the way out. Tolerances allow for rounding and for kinks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fganalysis.capturing.batch import buffers_kept, differentiable, functionally_called, map_tensors
from fganalysis.capturing.calls import Calls
from fganalysis.capturing.errors import CannotMeasure
from fganalysis.capturing.examples import LONGEST, SAME, SHORTEST, same
from fganalysis.capturing.forward_mode import tap_modules
from fganalysis.capturing.refusals import forward, mean_loss
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layer, Loss
from fganalysis.capturing.weight_maps.matrix import MatrixMap

# Tolerances of the checks at capture. They must be large enough that no right network is refused and small enough that
# every wrong one is. To tune them again, change them and run tests/unit/capturing/test_capture_checks.py, which has
# networks of both kinds.
DIFFERENCE_STEPS = {torch.float32: 1e-3, torch.float64: 1e-5}  # Lengths of steps relative to each parameter's norm.
SHRINKING = (
    1.0,
    0.1,
    0.01,
)  # Factors of the step, tried in turn: a disagreement by curvature vanishes.
CURVED = 0.01  # A difference of losses may miss the prediction by this part of the summed sizes of all changes.
ROUNDINGS = 4.0  # Rounding error of a loss from rounded activations, in units of their precision.
ROUNDINGS_OF_LOSS = 30.0  # Rounding error of the loss function alone, in units of its precision.
IN_DOUBLE = 0.1  # Largest relative difference of a parameter's gradients in single and in double precision.
LEAST_CHANGE = 10.0  # A shorter step is tried only while the predicted change is this many rounding errors.
LEAST_SHARE = {torch.float32: 0.03, torch.float64: 1e-4}  # Least share of a parameter in the predicted change.
PARAMETERS_SEARCHED = 50  # Parameters stepped along one by one, to name the one whose gradient is wrong.


def refuse_random_forward_pass(snapshot: Snapshot) -> None:
    """Refuses a network whose second forward pass differs: it draws noise, or a pass changes its state."""
    with torch.no_grad(), buffers_kept(snapshot.network), Calls(tap_modules(snapshot)) as calls:
        outputs = forward(snapshot.network, snapshot.inputs)
    seen = {(call.name, call.number, place): tensor for call in calls.all for place, tensor in call.outputs.items()}
    different = [
        tap.name
        for tap in snapshot.taps
        if (output := seen.get((tap.name, tap.number, tap.place))) is not None
        and not same(tap.outputs, tap.layout.rows(output.detach()))
    ]
    missing = any((tap.name, tap.number, tap.place) not in seen for tap in snapshot.taps)
    pairs = zip(differentiable(snapshot.outputs), differentiable(outputs), strict=False)
    if different or missing or not all(same(first, second) for first, second in pairs):
        where = f"from tap {different[0]!r} on" if different else "after the last tap"
        raise CannotMeasure(
            f"two forward passes on the same batch differ {where}: the network draws noise (functional dropout without "
            "training=self.training, RReLU) or changes a state; call network.eval() or take it out"
        )


def rounding(tensor: Tensor) -> float:
    """The largest relative difference between two computations of a tensor that rounding explains."""
    return 1e3 * torch.finfo(tensor.dtype).eps


def refuse_other_gradient(snapshot: Snapshot, by_name: Mapping[str, Tensor | None]) -> None:
    """Refuses where ∂L/∂W put together from the taps, Σ_r g_r x_rᵀ, is not autograd's, parameter by parameter."""
    for layer, gradient in zip(snapshot.weights, snapshot.weight_gradients, strict=True):
        for name, assembled in layer.by_parameter(gradient).items():
            exact = by_name.get(name)
            exact = torch.zeros_like(assembled) if exact is None else exact
            difference, size = _norm(assembled - exact), max(_norm(assembled), _norm(exact))
            if difference <= SAME * size:
                continue
            # What is left of a sum over examples that cancels, as before a batch mean is subtracted, is rounding.
            if difference > SAME * size + _rounding_of_sums(snapshot, layer):
                raise CannotMeasure(
                    f"the gradient of {name!r} has norm {_norm(exact):.3g}, where the module of its own alone gives "
                    f"{_norm(assembled):.3g}: the parameter is used elsewhere too (by hand, in a penalty of the "
                    "loss), or the module keeps a state; change that or leave it out by requires_grad_(False)"
                )


def _rounding_of_sums(snapshot: Snapshot, layer: Layer) -> float:
    """The rounding error of the sums over rows of a layer's gradient."""
    error = 0.0
    for index in layer.taps:
        tap, at_tap = snapshot.taps[index], snapshot.gradients[index].double().abs()
        if isinstance(tap.weights, MatrixMap):
            error += rounding(snapshot.like) * float((at_tap.T @ tap.inputs.double().abs()).norm())
        else:
            error += rounding(snapshot.like) * float(tap.weights.gradients(at_tap.unsqueeze(0)).norm())
    return error


def refuse_weights_in_the_loss(
    names: Sequence[str], gradients: Sequence[Tensor | None], loss_fn: Loss, outputs: Any, targets: Any
) -> None:
    """∂loss by the parameters of the network that was copied: the loss function reads them, or the network still does.

    A function keeps what it was made with, and copying a network copies no function. So one that the network made of
    its own weights, as some packages tie a head to an embedding, reads those of the network that was copied.
    """
    read = [name for name, gradient in zip(names, gradients, strict=True) if gradient is not None]
    if not read:
        return
    with torch.enable_grad():
        of_constants = mean_loss(loss_fn, map_tensors(outputs, lambda t: t.detach()), targets)
    if of_constants.requires_grad:
        raise CannotMeasure(
            f"loss_fn reads parameter {read[0]!r} by itself, not through the outputs, as a penalty does: leave it "
            "out of loss_fn (a weight decay belongs in the optimiser)"
        )
    raise CannotMeasure(
        f"a copy of the network still reads parameter {read[0]!r} of the original, by a function that was made with "
        "the network, such as a lambda for a head tied to an embedding: share the parameter between two modules, or "
        "use it in forward()"
    )


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


def refuse_cut_gradient(snapshot: Snapshot, unreached: Sequence[str]) -> None:
    """Refuses taps that change the loss although the backward pass does not reach them."""
    if not unreached:
        return
    names = {name for tap in snapshot.taps if tap.name in unreached for name in tap.parameter_names}
    generator = torch.Generator().manual_seed(2)
    directions = _Directions(snapshot.network)
    step = {
        name: 10 * DIFFERENCE_STEPS[snapshot.dtype] * _size(parameter) * directions(name, None, generator)
        for name, parameter in snapshot.network.named_parameters()
        if name in names
    }
    losses = Losses(snapshot)
    change = losses.moved(step)[0] - losses.before
    if abs(change) > losses.rounding():
        raise CannotMeasure(
            f"the loss depends on tap {unreached[0]!r}, but no gradient reaches it: something after it is detached or "
            "runs under no_grad; leave it out by requires_grad_(False) or take the detach() away"
        )


def refuse_wrong_backward(snapshot: Snapshot, by_name: Mapping[str, Tensor | None]) -> None:
    """Refuses a gradient that does not predict the change of the loss along a step.

    The prediction is the mean of the slopes at both ends of the step (trapezoid rule), which is exact but for third
    derivatives and kinks. The direction of the step is part gradient and part noise. Its length in each parameter is
    relative to the norm of the parameter, such that all parameters have similar shares in the change as far as
    precision allows. A disagreement is tried again at shorter steps, and then in the other precision: with shorter
    steps still by a copy in double precision, or with the longer steps of single precision, which parts of a network
    in double precision may compute in. It vanishes if its cause was curvature, a kink or rounding, and stays if the
    backward pass is not the derivative of the forward pass.
    """
    disagreement = _disagreement(snapshot, by_name, snapshot.dtype)
    if disagreement and snapshot.dtype == torch.float64 and not _disagreement(snapshot, by_name, torch.float32):
        return
    if disagreement and snapshot.dtype != torch.float64:
        doubled = _in_double_precision(snapshot)
        if doubled is not None and not _disagreement(*doubled, torch.float64):
            _refuse_rounded_gradient(by_name, doubled[1])
            return
    if disagreement:
        raise CannotMeasure(
            f"the loss changes by {disagreement}: the backward pass is not the derivative of the forward pass (a "
            "custom autograd function, a surrogate, detach() or rounding), so it gives no gradient"
        )


def _refuse_rounded_gradient(by_name: Mapping[str, Tensor | None], exact: Mapping[str, Tensor | None]) -> None:
    """Refuses a gradient that is mostly rounding, as behind a normalisation of numbers that hardly differ."""
    least = SAME * sum(_norm(gradient) ** 2 for gradient in exact.values() if gradient is not None) ** 0.5
    for name, there in exact.items():
        here = by_name.get(name)
        if here is None or there is None:
            continue
        difference, size = _norm(here - there), max(_norm(here), _norm(there))
        if difference > max(IN_DOUBLE * size, least):
            raise CannotMeasure(
                f"rounding hides the gradient from the network's data type: that of {name!r} is off by "
                f"{difference / size:.0%} in single precision alone; call network.double() and give the batch in "
                "float64"
            )


def _in_double_precision(snapshot: Snapshot) -> tuple[Snapshot, dict[str, Tensor | None]] | None:
    """The snapshot and its gradients in double precision, as far as `_disagreement` asks; None where that fails."""
    try:
        network = copy.deepcopy(snapshot.network).double()
        inputs, targets = map_tensors(snapshot.inputs, _doubled), map_tensors(snapshot.targets, _doubled)
        parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        with torch.enable_grad(), buffers_kept(network):
            outputs = forward(network, inputs)
            loss = mean_loss(snapshot.loss_fn, outputs, targets)
            gradients = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
    except Exception:  # Of what holds numbers in single precision, and of what cannot be copied.
        return None
    exact: dict[str, Tensor | None] = dict(zip(parameters, gradients, strict=True))
    taps = tuple(replace(tap, outputs=tap.outputs.double()) for tap in snapshot.taps)
    changed = {"network": network, "inputs": inputs, "targets": targets, "taps": taps}
    return replace(snapshot, outputs=map_tensors(outputs, lambda t: t.detach()), **changed), exact


def _disagreement(snapshot: Snapshot, by_name: Mapping[str, Tensor | None], precision: torch.dtype) -> str:
    """In words, how the loss changes other than the gradient predicts; empty where it does not."""
    losses = Losses(snapshot, precision)
    parameters = {n: p.detach() for n, p in snapshot.network.named_parameters() if p.requires_grad}
    sizes = {name: _size(parameter) for name, parameter in parameters.items()}
    norms = {name: 0.0 if gradient is None else _norm(gradient) for name, gradient in by_name.items()}
    known = {name: gradient for name, gradient in by_name.items() if gradient is not None and norms[name] > 0}
    worth = {name: sizes[name] * norms[name] for name in known}
    if not worth:
        return ""
    directions = _Directions(snapshot.network)
    least = max(min(worth.values()), LEAST_SHARE[precision] * max(worth.values()))
    for shorter in SHRINKING:
        generator = torch.Generator().manual_seed(3)
        step = {}
        for name in parameters:
            share = min(1.0, least / worth[name]) if name in worth else 1.0
            length = shorter * DIFFERENCE_STEPS[precision] * share * sizes[name]
            step[name] = directions(name, by_name.get(name), generator).mul_(length)
        after, slopes = losses.moved(step, tuple(known))
        before = {name: _dot(known[name], step[name]) for name in known}
        predicted = sum(before[name] + slopes[name] for name in known) / 2
        summed = sum(abs(before[name]) + abs(slopes[name]) for name in known) / 2
        noise = losses.rounding(after)
        if shorter < 1 and summed < LEAST_CHANGE * noise:
            break  # Rounding would hide a disagreement, so that of the longer step stands.
        change = after - losses.before
        found = f"{change:.3g} along a small step in the weights where the gradient says {predicted:.3g}"
        if abs(change - predicted) <= CURVED * summed + noise:
            return ""
    return found + _worst(losses, known, step)


def _worst(losses: Losses, known: Mapping[str, Tensor], step: Mapping[str, Tensor]) -> str:
    """For the message: the parameter for which a step in it alone is furthest from its prediction."""
    errors = {}
    for name in list(known)[:PARAMETERS_SEARCHED]:
        after, slopes = losses.moved({name: step[name]}, (name,))
        errors[name] = abs(after - losses.before - (_dot(known[name], step[name]) + slopes[name]) / 2)
    return f", most at {max(errors, key=lambda name: errors[name])!r}"


class Losses:
    """Losses at moved weights. The loss function is evaluated in double precision where it accepts that.

    precision: of the activations, at best that of the network's data type.
    """

    def __init__(self, snapshot: Snapshot, precision: torch.dtype | None = None):
        self._snapshot = snapshot
        self._precision = precision or snapshot.dtype
        outputs, targets = snapshot.outputs, snapshot.targets
        self._double = False
        self._targets = targets
        self.before = self._first_value(outputs)
        # The loss of wrong outputs, for how much may cancel in one that is nearly zero.
        try:
            self._typical = abs(self._value(map_tensors(outputs, lambda t: -t if t.is_floating_point() else t)))
        except Exception:
            self._typical = 0.0
        pairs = zip(snapshot.exact_gradients or (), snapshot.taps, strict=False)
        self._worth = sum(float((gradient * tap.outputs).abs_().sum()) for gradient, tap in pairs)

    def _first_value(self, outputs: Any) -> float:
        """The loss, in double precision from then on if the loss function accepts that."""
        if self._snapshot.dtype != torch.float64:
            targets, self._targets, self._double = self._targets, map_tensors(self._targets, _doubled), True
            try:
                return self._value(outputs)
            except Exception:
                self._targets, self._double = targets, False
        return self._value(outputs)

    def _value(self, outputs: Any) -> float:
        outputs = map_tensors(outputs, lambda t: t.detach())
        outputs = map_tensors(outputs, _doubled) if self._double else outputs
        return float(self._snapshot.loss_fn(outputs, self._targets).detach().double())

    def rounding(self, after: float = 0.0) -> float:
        """The largest error of a difference of two losses by rounding."""
        eps = torch.finfo(self._precision).eps
        loss_precision = torch.finfo(torch.float64).eps if self._double else eps
        typical = self._typical / 8 if np.isfinite(self._typical) else 0.0
        # A gradient at the outputs that is a small difference, as that of a saturated softmax, is rounded too.
        activations = self._worth + DIFFERENCE_STEPS[self._precision] * typical
        return ROUNDINGS * eps * activations + ROUNDINGS_OF_LOSS * loss_precision * max(
            abs(self.before), abs(after), typical
        )

    def moved(self, step: Mapping[str, Tensor], along: Sequence[str] = ()) -> tuple[float, dict[str, float]]:
        """The loss at moved parameters and, for the parameters named, the slopes along the step there."""
        snapshot, parameters = self._snapshot, dict(self._snapshot.network.named_parameters())
        with torch.enable_grad():
            moved = {name: parameters[name].detach() + change for name, change in step.items()}
            for name in along:
                moved[name].requires_grad_()
            buffers = {name: buffer.clone() for name, buffer in snapshot.network.named_buffers()}
            outputs = functionally_called(snapshot.network, {**moved, **buffers}, snapshot.inputs)
            gradients: Sequence[Tensor | None] = ()
            if along:
                loss = mean_loss(snapshot.loss_fn, outputs, snapshot.targets)
                gradients = torch.autograd.grad(loss, [moved[name] for name in along], allow_unused=True)
        # What was rounded into a moved parameter is the step that was made.
        slopes = {
            name: 0.0 if gradient is None else _dot(gradient, moved[name].detach() - parameters[name].detach())
            for name, gradient in zip(along, gradients, strict=True)
        }
        return self._value(outputs), slopes


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _size(parameter: Tensor) -> float:
    """The norm of a parameter; for a parameter of zeros that of small entries."""
    return max(_norm(parameter.detach()), 1e-2 * parameter.numel() ** 0.5)


class _Directions:
    """Directions in which a step moves parameters: a random unit vector plus the unit vector along the gradient.

    Rows of an embedding that pad stay: autograd calls their gradient zero, as training leaves them where they are,
    although the loss of a batch in which they occur depends on them.
    """

    def __init__(self, network: torch.nn.Module):
        self._parameters = dict(network.named_parameters())
        padding = {
            id(module.weight): module.padding_idx
            for module in network.modules()
            if isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag) and module.padding_idx is not None
        }
        self._still = {name: padding[id(p)] for name, p in self._parameters.items() if id(p) in padding}

    def __call__(self, name: str, gradient: Tensor | None, generator: torch.Generator) -> Tensor:
        direction = _direction(self._parameters[name].detach(), gradient, generator)
        if name in self._still:
            direction[self._still[name]] = 0
        return direction


def _direction(parameter: Tensor, gradient: Tensor | None, generator: torch.Generator) -> Tensor:
    """A random unit vector plus the unit vector along the gradient."""
    direction = torch.rand(parameter.shape, generator=generator).sub_(0.5).to(parameter)
    direction /= direction.norm()
    length = 0.0 if gradient is None else _norm(gradient)
    if gradient is None or length == 0:
        return direction
    if SHORTEST <= length <= LONGEST:
        return direction.add_(gradient, alpha=1 / length)
    # Divided first by the largest entry: the squares of small numbers are zero.
    scaled = gradient / gradient.abs().max()
    return direction.add_(scaled / scaled.norm())


def _norm(tensor: Tensor) -> float:
    size = float(torch.linalg.vector_norm(tensor))
    if SHORTEST <= size <= LONGEST:
        return size
    largest = float(tensor.abs().max())
    return largest * float((tensor / largest).norm()) if largest > 0 else 0.0


def _dot(first: Tensor, second: Tensor) -> float:
    if not all(SHORTEST <= float(torch.linalg.vector_norm(part)) <= LONGEST for part in (first, second)):
        first, second = first.double(), second.double()
    return float(torch.dot(first.flatten(), second.flatten()))


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
    directions_of = _Directions(snapshot.network)
    moves = {
        name: step * _size(p) * directions_of(name, None, generator) for name, p in parameters.items() if name in tapped
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
