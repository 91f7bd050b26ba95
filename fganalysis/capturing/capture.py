"""capture(): freezes a network on one batch, and takes nothing of it on trust.

A capture is one forward pass, which records the taps, and one backward pass, which gives the exact gradient; the checks
of `fganalysis.capturing.gradient_checks` take two more of each. Reverse mode needs no forward mode: φ', the derivative
of what stands between two taps, is pulled back from the next tap's input to this tap's output alone.

Training loops check once (`checked_for_training`) and then only `freeze`. In forward mode they take no backward pass:
there φ' is a tangent that leaves a tap and arrives at the next.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fganalysis.arguments import LARGEST_SEED, check_whole
from fganalysis.capturing import gradient_checks, refusals
from fganalysis.capturing.forward_mode import LOCK
from fganalysis.capturing.hooks import TapHooks, trained
from fganalysis.capturing.precision import plainly
from fganalysis.capturing.snapshot import CannotMeasure, NonFiniteActivations, Snapshot
from fganalysis.capturing.tap import Autodiff, Loss, Tap
from fganalysis.capturing.upstream import UpstreamJacobian

PROBE_SEED = 0


@dataclass(frozen=True)
class Recorded:
    """One forward pass with its graph: what arrived at the taps and left them, the outputs and the loss."""

    hooks: TapHooks
    outputs: Tensor
    loss: Tensor


def capture(
    network: torch.nn.Module,
    loss_fn: Loss,
    inputs: Tensor,
    targets: Tensor,
    *,
    autodiff: Autodiff = "reverse",
    step: int = 0,
) -> Snapshot:
    """Freezes a copy of ``network`` on a copy of one batch, and checks that it can be measured.

    Checked: the gradient put together from the taps is autograd's; two forward passes agree; the losses along a random
    direction change as the gradient says; no example's loss depends on another's activations; the loss is a mean over
    examples. Together the checks cost two forward and two backward passes. Frozen parameters (``requires_grad=False``)
    are constants. Trainable parameters outside the Linear modules are named in `Snapshot.untapped_parameters`.

    Args:
        network: any module whose weights sit in Linear modules applied once each to (example, input) arrays.
        loss_fn: ``loss_fn(outputs, targets)`` → the mean over examples of a per-example loss.
        inputs: (example, …). targets: (example, …).
        autodiff: "reverse" or "forward", see `Snapshot`.
        step: recorded as the ``step`` of every result.

    Raises:
        ValueError: in one sentence with the cause and the way out, where a check fails or an argument is wrong.
    """
    refusals.refuse_bad_arguments(network, loss_fn, inputs, targets, autodiff)
    check_whole("step", step, 0, LARGEST_SEED)
    with plainly(inputs.device):
        inputs, targets = inputs.detach().clone(), targets.detach().clone()
        snapshot = _checked(copied(network), loss_fn, inputs, targets, autodiff, original=network)
    return replace(snapshot, in_training=False, step=int(step))


def checked_for_training(
    network: torch.nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, *, autodiff: Autodiff
) -> Snapshot:
    """What `capture` checks, on the network itself; without a backward pass in forward mode."""
    refusals.refuse_bad_arguments(network, loss_fn, inputs, targets, autodiff)
    with plainly(inputs.device):
        if autodiff == "reverse":
            return _checked(network, loss_fn, inputs, targets, autodiff)
        snapshot = _by_tangents(network, loss_fn, inputs, targets, 0)
        refusals.refuse_infinite_loss(snapshot.loss)
        gradient_checks.refuse_weights_in_the_loss_unseen(snapshot)
        refusals.refuse_loss_that_is_no_mean(snapshot)
        elementwise = _only_elementwise(snapshot)
        gradient_checks.refuse_wrong_slopes_in_forward_mode(snapshot)
        gradient_checks.refuse_interacting_examples_in_forward_mode(snapshot)
        return replace(snapshot, taps=elementwise)


def freeze(
    network: torch.nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, *, autodiff: Autodiff, step: int
) -> Snapshot:
    """`capture` without its checks and without copies: for training loops, which check once.

    Whether backpropagation runs through the upstream Jacobians alone is still looked at in every step, on a few
    examples: on all of them it costs a third of a backpropagation step.
    """
    refusals.refuse_bad_arguments(network, loss_fn, inputs, targets, autodiff)
    with plainly(inputs.device):
        if autodiff == "forward":
            return _by_tangents(network, loss_fn, inputs, targets, step)
        recorded = _record(network, loss_fn, inputs, targets)
        derivatives = _pulled_back(recorded, random=False)
        refusals.refuse_loss_without_gradient(recorded.loss)
        gradients = torch.autograd.grad(recorded.loss, recorded.hooks.outputs, allow_unused=True)
        return _snapshot(network, loss_fn, inputs, targets, recorded, derivatives, gradients, step=step)


def _checked(
    network: torch.nn.Module,
    loss_fn: Loss,
    inputs: Tensor,
    targets: Tensor,
    autodiff: Autodiff,
    original: torch.nn.Module | None = None,
) -> Snapshot:
    """``original`` is the network that ``network`` is a copy of, which the loss function may know."""
    recorded = _record(network, loss_fn, inputs, targets)
    refusals.refuse_infinite_loss(recorded.loss)
    refusals.refuse_loss_without_gradient(recorded.loss)
    derivatives = _pulled_back(recorded, random=True)
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    outside = {name: p for name, p in original.named_parameters() if p.requires_grad} if original is not None else {}
    wanted = [*recorded.hooks.outputs, recorded.outputs, *parameters.values(), *outside.values()]
    gradients = iter(refusals.differentiated(recorded.loss, wanted))
    at_taps, at_outputs = [next(gradients) for _ in recorded.hooks.outputs], next(gradients)
    by_name = {name: next(gradients) for name in parameters}
    gradient_checks.refuse_weights_in_the_loss(list(outside), list(gradients))
    snapshot = _snapshot(network, loss_fn, inputs, targets, recorded, derivatives, at_taps)
    refusals.refuse_useless_gradient(snapshot)
    snapshot = _with_upstream_where_it_is(snapshot, recorded)
    refusals.refuse_loss_that_is_no_mean(snapshot)
    gradient_checks.refuse_random_forward_pass(snapshot)
    gradient_checks.refuse_other_gradient(snapshot, by_name)
    gradient_checks.refuse_interacting_examples(snapshot, recorded.outputs, at_outputs, recorded.hooks.outputs)
    reached = [name for name, gradient in zip(recorded.hooks.modules, at_taps, strict=True) if gradient is None]
    gradient_checks.refuse_cut_gradient(snapshot, [name for name, _ in reached])
    gradient_checks.refuse_wrong_backward(snapshot, by_name)
    if autodiff == "forward":
        snapshot = replace(snapshot, autodiff="forward")
        gradient_checks.refuse_dropped_tangents(snapshot)
    return snapshot


def _with_upstream_where_it_is(snapshot: Snapshot, recorded: Recorded) -> Snapshot:
    """Without the upstream Jacobian where backpropagation does not run through it alone.

    An example whose gradient is zero does not show it: where there are such, another φ' is pulled back too.
    """
    again: list[Tensor | None] = []
    if any(not bool(gradient.any(1).all()) for gradient in snapshot.gradients):
        again = _pulled_back(recorded, random=True, seed=PROBE_SEED + 1)
    taps = []
    for index, tap in enumerate(snapshot.taps):
        chained = tap.upstream is None or snapshot.runs_through(index)
        if again and chained and tap.derivative is not None:
            other = again[index]
            chained = other is not None and torch.allclose(tap.derivative, other, rtol=1e-3, atol=1e-5)
        taps.append(tap if chained else replace(tap, upstream=None, derivative=None))
    return replace(snapshot, taps=tuple(taps), _memory={})


def copied(network: torch.nn.Module) -> torch.nn.Module:
    """A copy that training or a caller's changes do not reach.

    Raises:
        ValueError: a network that cannot be copied, as one that holds a tensor that was computed from its weights.
    """
    # What torch.compile wraps; the compiled code is another way to the same numbers. Importing the compiler just to ask
    # takes seconds, and no network is compiled before it is imported.
    compiler = sys.modules.get("torch._dynamo")
    if compiler is not None and isinstance(network, compiler.OptimizedModule):
        network = network._orig_mod
    try:
        copy_of = copy.deepcopy(network)
    except Exception as error:
        raise ValueError(
            f"the network, a {type(network).__name__}, cannot be copied by copy.deepcopy: remove from its modules what "
            "is computed from the weights (as weight_norm leaves it there), locks, files and generators"
        ) from error
    for module in copy_of.modules():
        module._compiled_call_impl = None
    return copy_of


def _record(network: torch.nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor) -> Recorded:
    with torch.enable_grad():
        with TapHooks(network) as hooks:
            outputs = refusals.forward(network, inputs)
        _refuse_bad_taps(hooks, inputs.shape[0])
        loss = refusals.mean_loss(loss_fn, outputs, targets)
    return Recorded(hooks, outputs, loss)


def _refuse_bad_taps(hooks: TapHooks, n_examples: int) -> None:
    if not hooks.modules:
        raise CannotMeasure(
            "the network has no tap: no torch.nn.Linear with a trainable weight or bias was reached by the forward pass"
        )
    owners: dict[int, str] = {}
    for (name, module), inputs, outputs in zip(hooks.modules, hooks.inputs, hooks.outputs, strict=True):
        if inputs.ndim != 2:
            raise CannotMeasure(
                f"tap {name!r} gets inputs of shape {tuple(inputs.shape)}: only (example, input) is supported"
            )
        if len(inputs) != n_examples:
            raise CannotMeasure(
                f"tap {name!r} gets {len(inputs)} rows where the batch has {n_examples} examples: only a row an "
                "example is supported"
            )
        if outputs.dtype not in (torch.float32, torch.float64):
            raise CannotMeasure(
                f"tap {name!r} has activations of {outputs.dtype}: only float32 and float64 are supported"
            )
        if not torch.isfinite(outputs.detach()).all():
            raise NonFiniteActivations(f"tap {name!r} has NaN or infinite activations")
        for leaf, there in zip(("weight", "bias"), trained(module), strict=True):
            parameter = module._parameters.get(leaf)
            if there and id(parameter) in owners:
                raise CannotMeasure(
                    f"taps {owners[id(parameter)]!r} and {name!r} share one {leaf}, which is not supported: give each "
                    f"a {leaf} of its own, or leave both out by requires_grad_(False)"
                )
            owners[id(parameter)] = name


def _pulled_back(recorded: Recorded, random: bool, seed: int = PROBE_SEED) -> list[Tensor | None]:
    """φ' of every tap but the last, (example, unit), or None where the next tap reads something of another shape.

    J of an elementwise map is diagonal, so that Jᵀr over r is φ' for every r. A ``random`` r, made of powers of two, by
    which products and quotients are exact, gives something else where units mix; the gradients then disagree.
    """
    generator = torch.Generator().manual_seed(seed)
    derivatives: list[Tensor | None] = []
    for left, arrived in zip(recorded.hooks.outputs[:-1], recorded.hooks.inputs[1:], strict=True):
        if arrived.shape != left.shape or not arrived.requires_grad:
            derivatives.append(None)
            continue
        cotangent = torch.ones_like(arrived)
        if random:
            exponents = torch.randint(-2, 3, arrived.shape, generator=generator)
            cotangent = torch.exp2(exponents.to(arrived.dtype)).to(arrived.device)
        (pulled,) = torch.autograd.grad(arrived, left, cotangent, retain_graph=True, allow_unused=True)
        derivatives.append(None if pulled is None else pulled / cotangent if random else pulled)
    return [*derivatives, None]


def _snapshot(
    network: torch.nn.Module,
    loss_fn: Loss,
    inputs: Tensor,
    targets: Tensor,
    recorded: Recorded,
    derivatives: list[Tensor | None],
    gradients: Sequence[Tensor | None],
    step: int = 0,
) -> Snapshot:
    # A tap that the loss does not depend on has a gradient of zero.
    exact = tuple(
        torch.zeros_like(output) if gradient is None else gradient
        for output, gradient in zip(recorded.hooks.outputs, gradients, strict=True)
    )
    return Snapshot(
        network,
        loss_fn,
        inputs,
        targets,
        recorded.outputs.detach(),
        recorded.loss.detach(),
        _taps(recorded.hooks, [tensor.detach() for tensor in recorded.hooks.inputs], derivatives),
        tuple(gradient.detach() for gradient in exact),
        step=step,
        in_training=True,
    )


def _taps(hooks: TapHooks, inputs: list[Tensor], derivatives: list[Tensor | None]) -> tuple[Tap, ...]:
    taps = []
    for index, (name, module) in enumerate(hooks.modules):
        arriving, derivative = inputs[index], derivatives[index]
        has_weight, has_bias = trained(module)
        columns = [arriving] if has_weight else []
        weights = [module.weight.detach()] if has_weight else []
        if has_bias:
            columns.append(arriving.new_ones(arriving.shape[0], 1))
            weights.append(module.bias.detach().unsqueeze(1))
        upstream = None
        if index + 1 < len(hooks.modules) and derivative is not None:
            upstream = UpstreamJacobian(hooks.modules[index + 1][1].weight.detach(), derivative)
        taps.append(
            Tap(
                name,
                arriving,
                torch.cat(columns, dim=1) if len(columns) > 1 else columns[0],
                hooks.outputs[index].detach(),
                torch.cat(weights, dim=1) if len(weights) > 1 else weights[0],
                has_weight,
                has_bias,
                derivative,
                upstream,
            )
        )
    return tuple(taps)


def _by_tangents(network: torch.nn.Module, loss_fn: Loss, inputs: Tensor, targets: Tensor, step: int) -> Snapshot:
    """A snapshot without a backward pass: φ' is the tangent of ones that left the tap, as it arrives at the next."""
    outputs, hooks, arrived, derivatives = _tangents_pass(network, inputs, torch.ones_like)
    with torch.no_grad():
        loss = refusals.mean_loss(loss_fn, outputs, targets)
    taps = _taps(hooks, arrived, derivatives)
    return Snapshot(
        network, loss_fn, inputs, targets, outputs, loss, taps, None, autodiff="forward", step=step, in_training=True
    )


def _tangents_pass(
    network: torch.nn.Module, inputs: Tensor, tangent: Callable[[Tensor], Tensor]
) -> tuple[Tensor, TapHooks, list[Tensor], list[Tensor | None]]:
    """Outputs, hooks, inputs without tangents, and tangents as they arrive at the next tap; None of another shape."""

    def leaving(output: Tensor) -> Tensor:
        return forward_ad.make_dual(output.clone(), tangent(output))

    def arriving(tensor: Tensor) -> Tensor:
        return forward_ad.unpack_dual(tensor).primal

    with LOCK, torch.no_grad(), forward_ad.dual_level():
        with TapHooks(network, arriving, leaving) as hooks:
            outputs = forward_ad.unpack_dual(refusals.forward(network, inputs)).primal
        _refuse_bad_taps(hooks, inputs.shape[0])
        arrived = [forward_ad.unpack_dual(tensor) for tensor in hooks.inputs]
    derivatives: list[Tensor | None] = []
    for left, (_, after) in zip(hooks.outputs[:-1], arrived[1:], strict=True):
        derivatives.append(after.detach() if after is not None and after.shape == left.shape else None)
    return outputs.detach(), hooks, [primal.detach() for primal, _ in arrived], [*derivatives, None]


def _only_elementwise(snapshot: Snapshot) -> tuple[Tap, ...]:
    """The taps, without the upstream Jacobian where the map to the next tap is not elementwise: J r must be φ' ⊙ r."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    drawn: list[Tensor] = []

    def draw(output: Tensor) -> Tensor:
        drawn.append(torch.rand(output.shape, generator=generator, dtype=output.dtype).to(output.device) + 0.5)
        return drawn[-1]

    outputs, hooks, _, tangents = _tangents_pass(snapshot.network, snapshot.inputs, draw)
    gradient_checks.refuse_different_passes(snapshot, hooks, outputs)
    taps = []
    for tap, along, tangent in zip(snapshot.taps, drawn, tangents, strict=True):
        if tap.derivative is not None and tangent is not None:
            elementwise = torch.allclose(tangent, tap.derivative * along, rtol=1e-3, atol=1e-5)
            tap = tap if elementwise else replace(tap, upstream=None, derivative=None)
        taps.append(tap)
    return tuple(taps)
