"""What a network, its loss and a batch must be to be measured; each refusal is one sentence with the way out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fganalysis.arguments import check_callable, check_choice, check_kind, described
from fganalysis.capturing.snapshot import CannotMeasure, NonFiniteActivations, Snapshot
from fganalysis.capturing.tap import Loss


def refuse_bad_arguments(network: object, loss_fn: object, inputs: object, targets: object, autodiff: object) -> None:
    """What can be known before a forward pass."""
    check_kind("network", network, torch.nn.Module, "a torch.nn.Module")
    if isinstance(network, torch.jit.ScriptModule):
        raise CannotMeasure("the network is scripted, and takes no hooks: give the module that it was scripted from")
    if isinstance(network, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        raise CannotMeasure("the network is wrapped for several devices: give the module inside, network.module")
    check_callable("loss_fn", loss_fn, "a function of (outputs, targets)")
    check_kind("inputs", inputs, Tensor, "a tensor (example, …)")
    check_kind("targets", targets, Tensor, "a tensor (example, …)")
    check_choice("autodiff", autodiff, ("reverse", "forward"))
    assert isinstance(inputs, Tensor) and isinstance(targets, Tensor) and isinstance(network, torch.nn.Module)
    for name, tensor in (("inputs", inputs), ("targets", targets)):
        if tensor.ndim < 1:
            raise CannotMeasure(f"{name} must have a dimension of examples, got a tensor without dimensions")
        if tensor.is_meta or tensor.layout != torch.strided:
            raise CannotMeasure(f"{name} must be a dense tensor with numbers in it, got one on {tensor.device}")
    if inputs.shape[0] < 1:
        raise CannotMeasure("the batch is empty: inputs have no examples")
    if inputs.shape[0] != targets.shape[0]:
        raise CannotMeasure(f"inputs have {inputs.shape[0]} examples but targets {targets.shape[0]}")
    _refuse_bad_modules(network)
    for name, parameter in network.named_parameters():
        if isinstance(parameter, torch.nn.parameter.UninitializedParameter):
            raise CannotMeasure(f"parameter {name!r} has no shape yet: run the network once before it is captured")
        if parameter.is_complex():
            raise CannotMeasure(f"parameter {name!r} is complex: only real networks can be measured")
        if parameter.device != inputs.device or targets.device != inputs.device:
            raise CannotMeasure(
                f"parameter {name!r} is on {parameter.device}, inputs on {inputs.device} and targets on "
                f"{targets.device}: move them to one device"
            )


def _refuse_bad_modules(network: torch.nn.Module) -> None:
    """Modules that let examples interact, draw noise or compute a weight from other parameters."""
    batch_norms = (torch.nn.modules.batchnorm._BatchNorm,)
    dropouts = (torch.nn.modules.dropout._DropoutNd,)
    for name, module in network.named_modules():
        if isinstance(module, batch_norms) and (module.training or not module.track_running_stats):
            raise CannotMeasure(
                f"{name!r} is BatchNorm in training mode, so examples interact: call network.eval() first"
            )
        if isinstance(module, dropouts) and module.training and module.p > 0:
            raise CannotMeasure(
                f"{name!r} is dropout in training mode, so the loss is random: call network.eval() first"
            )
        computed = isinstance(module, torch.nn.Linear) and "weight" not in module._parameters
        if computed and any(parameter.requires_grad for parameter in module.parameters()):
            raise CannotMeasure(
                f"the weight of {name!r} is computed from other parameters (weight_norm, a parametrization, "
                "pruning), which is not supported: make it an ordinary weight first, for instance by "
                "torch.nn.utils.parametrize.remove_parametrizations"
            )


def forward(network: torch.nn.Module, inputs: Tensor) -> Tensor:
    """The outputs; a forward pass that fails, or returns no tensor with a row an example, is said in one sentence."""
    try:
        outputs = network(inputs)
    except (CannotMeasure, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in network.parameters()})
        raise CannotMeasure(
            f"the network's forward pass fails on inputs of shape {tuple(inputs.shape)} and "
            f"{_kind(inputs)} (its parameters are {' and '.join(kinds)}): call network(inputs) to see why"
        ) from error
    if not isinstance(outputs, Tensor):
        raise CannotMeasure(
            f"the network must return one tensor (example, …), got {described(outputs)}: wrap it in a module that does"
        )
    if outputs.ndim < 1 or outputs.shape[0] != inputs.shape[0]:
        raise CannotMeasure(
            f"the network must return a row for each of {inputs.shape[0]} examples, got the shape "
            f"{tuple(outputs.shape)}"
        )
    return outputs


def mean_loss(loss_fn: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss, one number; a loss function that fails is said in one sentence, with the cause where it is known."""
    place = outputs.device
    if outputs.is_cuda and _class_beyond(targets, outputs) is not None:
        # There a bad index is an assertion on the device, after which nothing runs in the process: ask on the CPU.
        outputs, targets = outputs.cpu(), targets.cpu()
    try:
        loss = loss_fn(outputs, targets)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        bad = _class_beyond(targets, outputs)
        if bad is not None and works(loss_fn, outputs, targets.clamp(0, outputs.shape[1] - 1)):
            message = f"targets must be class indices from 0 to {outputs.shape[1] - 1}, got {bad}"
            raise CannotMeasure(message) from error
        raise CannotMeasure(
            f"loss_fn fails on outputs of shape {tuple(outputs.shape)} and {_kind(outputs)} with targets of shape "
            f"{tuple(targets.shape)} and {_kind(targets)}: call it on them to see why"
        ) from error
    if not isinstance(loss, Tensor):
        raise CannotMeasure(f"loss_fn must return a tensor of one number, got {described(loss)}")
    if loss.ndim != 0:
        raise CannotMeasure(
            f"loss_fn must return one number, the mean over examples, got the shape {tuple(loss.shape)}"
        )
    if loss.is_complex():
        raise CannotMeasure("loss_fn must return a real number, got a complex one")
    return loss.to(place)


def works(loss_fn: Loss, outputs: Tensor, targets: Tensor) -> bool:
    try:
        loss_fn(outputs, targets)
    except Exception:
        return False
    return True


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _class_beyond(targets: Tensor, outputs: Tensor) -> int | None:
    """A target that is no index of an output unit, where targets are integers, one an example."""
    if targets.ndim != 1 or targets.is_floating_point() or outputs.ndim != 2 or not len(targets):
        return None
    least, most = int(targets.min()), int(targets.max())
    if least < 0:
        return least
    return most if most >= outputs.shape[1] else None


def refuse_infinite_loss(loss: Tensor) -> None:
    """A loss that is NaN or infinite though the activations are finite."""
    if not bool(torch.isfinite(loss)):
        raise NonFiniteActivations(
            f"the loss is {float(loss.detach()):g} on this batch, though all activations are finite: look at the "
            "targets and loss_fn"
        )


def refuse_loss_without_gradient(loss: Tensor) -> None:
    """A loss that does not depend on the weights by any differentiable way."""
    if not loss.requires_grad:
        raise CannotMeasure(
            "the loss has no gradient: nothing between the weights and the loss may be detached, rounded or an argmax"
        )


def differentiated(loss: Tensor, wanted: Sequence[Tensor]) -> list[Tensor | None]:
    """∂loss by each tensor, None where it does not depend on it; the graph stays."""
    try:
        return list(torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise CannotMeasure(
            "the backward pass of the loss fails: call loss_fn(network(inputs), targets).backward() to see why"
        ) from error


def refuse_useless_gradient(snapshot: Snapshot) -> None:
    """A gradient that is NaN or infinite though the loss is finite, or zero: nothing can be relative to it."""
    for tap, gradient in zip(snapshot.taps, snapshot.gradients, strict=True):
        if not bool(torch.isfinite(gradient).all()):
            raise NonFiniteActivations(
                f"the gradient at tap {tap.name!r} is NaN or infinite, though the loss is finite: look for the root or "
                "the logarithm of a zero in the network or the loss"
            )
    if not any(bool(gradient.any()) for gradient in snapshot.gradients):
        raise CannotMeasure(
            "the gradient is zero at every tap on this batch, so nothing can be measured relative to it"
        )


def refuse_loss_that_is_no_mean(snapshot: Snapshot) -> None:
    """Splits the batch unevenly: a mean over examples is the weighted mean of the parts' losses."""
    n, loss = snapshot.n_examples, snapshot.loss.double()
    for cut in sorted({1, n // 2, n - 1} - {0, n}):
        parts = []
        for rows in (slice(0, cut), slice(cut, n)):
            length = len(range(*rows.indices(n)))
            try:
                part = snapshot.loss_fn(snapshot.outputs[rows], snapshot.targets[rows]).detach()
            except Exception as error:
                raise CannotMeasure(
                    f"loss_fn is not a mean over examples: it works on the batch of {n} but fails on {length} of it"
                ) from error
            parts.append(part.double() * length / n)
        size = max(float(sum(part.abs() for part in parts)), float(loss.abs()))
        if not bool(torch.isfinite(sum(parts, loss))) or abs(float(sum(parts, -loss))) > 1e-4 * size:
            raise CannotMeasure(_why_no_mean(snapshot))


def _why_no_mean(snapshot: Snapshot) -> str:
    outputs, targets = snapshot.outputs.shape, snapshot.targets.shape
    if len(outputs) == 2 and outputs[1] == 1 and len(targets) == 1:
        return (
            f"loss_fn is not a mean over examples: outputs {tuple(outputs)} and targets {tuple(targets)} may be "
            "compared all with all, so give targets.unsqueeze(1) or outputs.squeeze(1)"
        )
    return (
        "loss_fn is not a mean over examples: use reduction='mean' without class weights, and no loss that compares "
        "examples with each other"
    )
