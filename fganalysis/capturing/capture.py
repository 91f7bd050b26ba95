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
from dataclasses import replace
from typing import Any

import torch

from fganalysis.arguments import LARGEST_SEED, check_whole
from fganalysis.capturing import (
    assembling,
    forward_mode_checks,
    gradient_checks,
    loss_parts,
    planning,
    recording,
    refusals,
    tangents,
)
from fganalysis.capturing.batch import buffers_kept, map_tensors
from fganalysis.capturing.calls import Taps
from fganalysis.capturing.planning import Plan
from fganalysis.capturing.precision import plainly
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Autodiff, Loss


def capture(
    network: torch.nn.Module,
    loss_fn: Loss,
    inputs: Any,
    targets: Any,
    *,
    taps: Taps = None,
    autodiff: Autodiff = "reverse",
    step: int = 0,
) -> Snapshot:
    """Freezes a copy of ``network`` on a copy of one batch, and checks that it can be measured.

    Checked: the gradient put together from the taps is autograd's; two forward passes agree; the losses along a random
    direction change as the gradient says; which example every row of a tap belongs to, and whether an example's loss
    depends on another's activations; whether the loss is a sum of parts that examples do not share. Together the checks
    cost two forward and two backward passes. Frozen parameters (``requires_grad=False``) are constants. Trainable
    parameters of no tap are a layer of their own, ``untapped``, for which only guesses at the weights are made.

    Args:
        network: any module.
        loss_fn: ``loss_fn(outputs, targets)`` → one number: a mean over examples, over tokens, or any sum of parts that
            examples do not share. The outputs are what the network returns.
        inputs: a tensor (example, …), a tuple of arguments, or a dict of keyword arguments.
        targets: a tensor or any structure of tensors.
        taps: the modules whose outputs guesses may perturb: a list of names, patterns ('blocks.*') or modules, whole
            blocks too. None for every module that owns trainable parameters.
        autodiff: "reverse" or "forward", see `Snapshot`.
        step: recorded as the ``step`` of every result.

    Raises:
        ValueError: in one sentence with the cause and the way out, where a check fails or an argument is wrong.
    """
    refusals.refuse_bad_arguments(network, loss_fn, inputs, targets, autodiff)
    check_whole("step", step, 0, LARGEST_SEED)
    step = int(step)
    with plainly(refusals.device_of(network)):
        inputs, targets = (map_tensors(part, lambda t: t.detach().clone()) for part in (inputs, targets))
        copied_network = copied(network)
        owners = recording.chosen(uncompiled(network), copied_network, taps)
        return _checked(copied_network, loss_fn, inputs, targets, autodiff, owners, step, original=network)


def checked_for_training(
    network: torch.nn.Module, loss_fn: Loss, inputs: Any, targets: Any, *, autodiff: Autodiff
) -> Snapshot:
    """What `capture` checks, on the network itself; without a backward pass in forward mode."""
    refusals.refuse_bad_arguments(network, loss_fn, inputs, targets, autodiff)
    owners = recording.chosen(network, network, None)
    with plainly(refusals.device_of(network)):
        if autodiff == "reverse":
            return _checked(network, loss_fn, inputs, targets, autodiff, owners)
        taps = recording.leaves(network, inputs, owners)
        recorded = tangents.recorded_in_forward_mode(network, loss_fn, inputs, targets, taps)
        plan = tangents.plan_by_forward_mode(recorded)
        snapshot = assembling.snapshot_of(recorded, plan, None, _unknown(recorded, plan), autodiff)
        refusals.refuse_infinite_loss(snapshot.loss)
        forward_mode_checks.refuse_weights_in_the_loss_unseen(snapshot)
        snapshot = loss_parts.with_parts_of_the_loss(snapshot)
        gradient_checks.refuse_random_forward_pass(snapshot)
        forward_mode_checks.refuse_wrong_slopes_in_forward_mode(snapshot)
        forward_mode_checks.refuse_interacting_examples_in_forward_mode(snapshot)
        return snapshot


def checked_view(view: torch.nn.Module, network: torch.nn.Module, loss_fn: Loss, inputs: Any, targets: Any) -> Snapshot:
    """What `capture` checks, on a view of a network that shares its weights with it, without a copy."""
    refusals.refuse_bad_arguments(view, loss_fn, inputs, targets, "reverse")
    with plainly(refusals.device_of(view)):
        return _checked(view, loss_fn, inputs, targets, "reverse", recording.chosen(view, view, None), original=network)


def freeze(
    network: torch.nn.Module,
    loss_fn: Loss,
    inputs: Any,
    targets: Any,
    *,
    autodiff: Autodiff,
    step: int,
    plan: Plan | None = None,
) -> Snapshot:
    """`capture` without its checks and without copies: for training loops, which check once.

    ``plan``: what the checked snapshot of the same network has found out, `Snapshot.plan`; found out again without it.
    """
    refusals.refuse_bad_arguments(network, loss_fn, inputs, targets, autodiff)
    modules = recording.chosen(network, network, None) if plan is None else plan.modules(network)
    with plainly(refusals.device_of(network)):
        if autodiff == "forward":
            modules = modules if plan is not None else recording.leaves(network, inputs, modules)
            recorded = tangents.recorded_in_forward_mode(network, loss_fn, inputs, targets, modules)
            if plan is None or not plan.fits(recorded):
                found = tangents.plan_by_forward_mode(recorded)
                plan = found if plan is None else plan.renewed(found)
            return assembling.snapshot_of(recorded, plan, None, _unknown(recorded, plan), autodiff, step)
        recorded = recording.recorded(network, loss_fn, inputs, targets, modules)
        if plan is not None:
            recorded = plan.of_its_taps(recorded)
        refusals.refuse_loss_without_gradient(recorded.loss, network)
        if plan is None or not plan.fits(recorded):
            found = planning.plan_of(recorded)
            plan = found if plan is None else plan.renewed(found)
        untapped = assembling.untapped_parameters(recorded, plan)
        gradients = torch.autograd.grad(
            recorded.loss, [*recorded.outputs_at_taps, *untapped.values()], allow_unused=True, retain_graph=True
        )
        at_taps, rest = gradients[: len(recorded.sites)], gradients[len(recorded.sites) :]
        return assembling.snapshot_of(recorded, plan, at_taps, dict(zip(untapped, rest, strict=True)), autodiff, step)


def _checked(
    network: torch.nn.Module,
    loss_fn: Loss,
    inputs: Any,
    targets: Any,
    autodiff: Autodiff,
    modules: recording.Modules,
    step: int = 0,
    original: torch.nn.Module | None = None,
) -> Snapshot:
    """``original`` is the network that ``network`` is a copy of, which the loss function may know; None in training."""
    with buffers_kept(network):
        recorded = recording.recorded(network, loss_fn, inputs, targets, modules)
    refusals.refuse_infinite_loss(recorded.loss)
    refusals.refuse_loss_without_gradient(recorded.loss, network)
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    outside = {name: p for name, p in original.named_parameters() if p.requires_grad} if original is not None else {}
    wanted = [*recorded.outputs_at_taps, *parameters.values(), *outside.values()]
    gradients = iter(refusals.differentiated(recorded.loss, wanted))
    at_taps = [next(gradients) for _ in recorded.sites]
    by_name = {name: next(gradients) for name in parameters}
    gradient_checks.refuse_weights_in_the_loss(
        list(outside), list(gradients), loss_fn, recorded.outputs, recorded.targets
    )
    recorded, at_taps = recording.without_unused(recorded, at_taps)
    seen = recording.rolled(recorded)
    found = planning.ownerships(recorded, at_taps, seen)
    plan = planning.planned(recorded, found)
    untapped = {name: by_name[name] for name in assembling.untapped_parameters(recorded, plan)}
    snapshot = assembling.snapshot_of(recorded, plan, at_taps, untapped, "reverse", step, in_training=original is None)
    refusals.refuse_useless_gradient(snapshot, by_name)
    snapshot = loss_parts.with_parts_of_the_loss(snapshot)
    if not recording.rolls_as_found(recorded, found, seen):
        gradient_checks.refuse_random_forward_pass(snapshot)
    gradient_checks.refuse_other_gradient(snapshot, by_name)
    reached = [site.call.name for site, gradient in zip(recorded.sites, at_taps, strict=True) if gradient is None]
    gradient_checks.refuse_cut_gradient(snapshot, reached)
    gradient_checks.refuse_wrong_backward(snapshot, by_name)
    if autodiff == "forward":
        snapshot = replace(snapshot, autodiff="forward")
        forward_mode_checks.refuse_dropped_tangents(snapshot)
    return snapshot


def copied(network: torch.nn.Module) -> torch.nn.Module:
    """A copy that training or a caller's changes do not reach.

    Raises:
        ValueError: a network that cannot be copied, as one that holds a tensor that was computed from its weights.
    """
    network = uncompiled(network)
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


def uncompiled(network: torch.nn.Module) -> torch.nn.Module:
    """What torch.compile wraps; the compiled code is another way to the same numbers."""
    # Importing the compiler just to ask takes seconds, and no network is compiled before it is imported.
    compiler = sys.modules.get("torch._dynamo")
    if compiler is not None and isinstance(network, compiler.OptimizedModule):
        inner: torch.nn.Module = network._orig_mod
        return inner
    return network


def _unknown(recorded: recording.Recorded, plan: Plan) -> dict[str, None]:
    """The parameters of no tap, without the gradients that forward mode does not take."""
    return dict.fromkeys(assembling.untapped_parameters(recorded, plan))
