"""Checks at capture that the gradient, with which everything is compared, is right.

Three comparisons: the gradient put together from the taps with autograd's; a second forward pass with the first; a
difference of losses with the slope of the gradient. `fganalysis.capturing.examples` compares the gradient of an example
with and without the other examples.
Each failure is one sentence with the cause and the way out. Tolerances allow for rounding and for kinks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fganalysis.capturing.batch import buffers_kept, differentiable, map_tensors
from fganalysis.capturing.calls import Calls
from fganalysis.capturing.errors import CannotMeasure
from fganalysis.capturing.examples import SAME, same
from fganalysis.capturing.forward_mode import tap_modules
from fganalysis.capturing.moved_losses import DIFFERENCE_STEPS, Directions, Losses, dot, doubled, norm_of, size_of
from fganalysis.capturing.refusals import forward, mean_loss
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layer, Loss
from fganalysis.capturing.weight_maps.matrix import MatrixMap

# Tolerances, tuned as those of `fganalysis.capturing.moved_losses` are: tests/unit/capturing/test_capture_checks.py has
# networks that must be refused and networks that must not.
SHRINKING = (
    1.0,
    0.1,
    0.01,
)  # Factors of the step, tried in turn: a disagreement by curvature vanishes.
CURVED = 0.01  # A difference of losses may miss the prediction by this part of the summed sizes of all changes.
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
            difference, size = norm_of(assembled - exact), max(norm_of(assembled), norm_of(exact))
            if difference <= SAME * size:
                continue
            # What is left of a sum over examples that cancels, as before a batch mean is subtracted, is rounding.
            if difference > SAME * size + _rounding_of_sums(snapshot, layer):
                raise CannotMeasure(
                    f"the gradient of {name!r} has norm {norm_of(exact):.3g}, where the module of its own alone gives "
                    f"{norm_of(assembled):.3g}: the parameter is used elsewhere too (by hand, in a penalty of the "
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


def refuse_cut_gradient(snapshot: Snapshot, unreached: Sequence[str]) -> None:
    """Refuses taps that change the loss although the backward pass does not reach them."""
    if not unreached:
        return
    names = {name for tap in snapshot.taps if tap.name in unreached for name in tap.parameter_names}
    generator = torch.Generator().manual_seed(2)
    directions = Directions(snapshot.network)
    step = {
        name: 10 * DIFFERENCE_STEPS[snapshot.dtype] * size_of(parameter) * directions(name, None, generator)
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
    steps still by a copy in double precision, or with the longer steps of single precision where parts of a network in
    double precision compute in that. It vanishes if its cause was curvature, a kink or rounding, and stays if the
    backward pass is not the derivative of the forward pass.
    """
    disagreement = _disagreement(snapshot, by_name, snapshot.dtype)
    if disagreement and snapshot.dtype == torch.float64 and _computes_in_single_precision(snapshot):
        disagreement = _disagreement(snapshot, by_name, torch.float32)
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


class _Lowest(TorchFunctionMode):
    """Sees whether a function of torch returns numbers of less than double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.single = False

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, Tensor) and result.is_floating_point() and result.dtype != torch.float64:
            self.single = True
        return result


def _computes_in_single_precision(snapshot: Snapshot) -> bool:
    """Whether some part does although the weights are double, as the softmax of many packages' attention."""
    with torch.no_grad(), buffers_kept(snapshot.network), _Lowest() as lowest:
        forward(snapshot.network, snapshot.inputs)
    return lowest.single


def _refuse_rounded_gradient(by_name: Mapping[str, Tensor | None], exact: Mapping[str, Tensor | None]) -> None:
    """Refuses a gradient that is mostly rounding, as behind a normalisation of numbers that hardly differ."""
    least = SAME * sum(norm_of(gradient) ** 2 for gradient in exact.values() if gradient is not None) ** 0.5
    for name, there in exact.items():
        here = by_name.get(name)
        if here is None or there is None:
            continue
        difference, size = norm_of(here - there), max(norm_of(here), norm_of(there))
        if difference > max(IN_DOUBLE * size, least):
            raise CannotMeasure(
                f"single precision does not resolve the gradient: that of {name!r} is off by {difference / size:.0%} "
                "by rounding alone; call network.double() and give the batch in float64"
            )


def _in_double_precision(snapshot: Snapshot) -> tuple[Snapshot, dict[str, Tensor | None]] | None:
    """The snapshot and its gradients in double precision, as far as `_disagreement` asks; None where that fails."""
    try:
        network = copy.deepcopy(snapshot.network).double()
        inputs, targets = map_tensors(snapshot.inputs, doubled), map_tensors(snapshot.targets, doubled)
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
    sizes = {name: size_of(parameter) for name, parameter in parameters.items()}
    norms = {name: 0.0 if gradient is None else norm_of(gradient) for name, gradient in by_name.items()}
    known = {name: gradient for name, gradient in by_name.items() if gradient is not None and norms[name] > 0}
    worth = {name: sizes[name] * norms[name] for name in known}
    if not worth:
        return ""
    directions = Directions(snapshot.network)
    least = max(min(worth.values()), LEAST_SHARE[precision] * max(worth.values()))
    for shorter in SHRINKING:
        generator = torch.Generator().manual_seed(3)
        step = {}
        for name in parameters:
            share = min(1.0, least / worth[name]) if name in worth else 1.0
            length = shorter * DIFFERENCE_STEPS[precision] * share * sizes[name]
            step[name] = directions(name, by_name.get(name), generator).mul_(length)
        after, slopes = losses.moved(step, tuple(known))
        before = {name: dot(known[name], step[name]) for name in known}
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
        errors[name] = abs(after - losses.before - (dot(known[name], step[name]) + slopes[name]) / 2)
    return f", most at {max(errors, key=lambda name: errors[name])!r}"
