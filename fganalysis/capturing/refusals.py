"""What a network, its loss and a batch must be to be measured; each refusal is one sentence with the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fganalysis.arguments import check_callable, check_choice, check_kind, described
from fganalysis.capturing.batch import called, differentiable, tensors_in
from fganalysis.capturing.errors import CannotMeasure, NonFiniteActivations
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Loss


def refuse_bad_arguments(network: object, loss_fn: object, inputs: object, targets: object, autodiff: object) -> None:
    """What can be known before a forward pass."""
    check_kind("network", network, torch.nn.Module, "a torch.nn.Module")
    if isinstance(network, torch.jit.ScriptModule):
        raise CannotMeasure("the network is scripted, and takes no hooks: give the module that it was scripted from")
    if isinstance(network, torch.nn.Module):
        _refuse_scripted_modules(network)
    if isinstance(network, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        raise CannotMeasure("the network is wrapped for several devices: give the module inside, network.module")
    check_callable("loss_fn", loss_fn, "a function of (outputs, targets)")
    check_kind("inputs", inputs, (Tensor, tuple, dict), "a tensor (example, …), a tuple or a dict of them")
    check_kind("targets", targets, (Tensor, tuple, list, dict), "a tensor (example, …), a tuple, list or dict of them")
    check_choice("autodiff", autodiff, ("reverse", "forward"))
    assert isinstance(network, torch.nn.Module)
    for name, part in (("inputs", inputs), ("targets", targets)):
        tensors = list(tensors_in(part))
        if not tensors:
            raise CannotMeasure(f"{name} must hold a tensor, got {described(part)}")
        for tensor in tensors:
            if tensor.ndim < 1 and tensor is part:
                raise CannotMeasure(f"{name} must have a dimension of examples, got a tensor without dimensions")
            if tensor.is_meta or tensor.layout != torch.strided:
                raise CannotMeasure(f"{name} must be a dense tensor with numbers in it, got one on {tensor.device}")
    n_examples(inputs, targets)
    _refuse_bad_modules(network)
    for name, parameter in network.named_parameters():
        if isinstance(parameter, torch.nn.parameter.UninitializedParameter):
            raise CannotMeasure(f"parameter {name!r} has no shape yet: run the network once before it is captured")
        if parameter.is_complex() and parameter.requires_grad:
            raise CannotMeasure(
                f"parameter {name!r} is complex, and only real networks can be measured: train its real and imaginary "
                "parts as two parameters, or freeze it by requires_grad_(False)"
            )
        places = [next(tensors_in(part)).device for part in (inputs, targets)]
        if any(place != parameter.device for place in places):
            raise CannotMeasure(
                f"parameter {name!r} is on {parameter.device}, inputs on {places[0]} and targets on {places[1]}: move "
                "them to one device"
            )


def _refuse_scripted_modules(network: torch.nn.Module) -> None:
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and any(p.requires_grad for p in module.parameters()):
            raise CannotMeasure(
                f"{name!r} is scripted, and takes no hooks: put the module that it was scripted from in its place"
            )


def _refuse_quantised_modules(network: torch.nn.Module) -> None:
    """For networks without a gradient: modules whose weights are whole numbers have none, and pass none on."""
    for name, module in network.named_modules():
        if ".quantized" in type(module).__module__ and hasattr(module, "weight"):
            raise CannotMeasure(
                f"{name!r} has quantised weights, which have no gradient and pass none on: give the network as it was "
                "before it was quantised"
            )


def device_of(network: torch.nn.Module) -> torch.device:
    """Where the network's parameters are."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def n_examples(inputs: object, targets: object) -> int:
    """The number of examples: of the targets where the inputs have as many, else of the inputs.

    Raises:
        CannotMeasure: an empty batch, or inputs and targets of different numbers of examples.
    """
    sizes = [len(tensor) for tensor in tensors_in(inputs) if tensor.ndim]
    asked = [len(tensor) for tensor in tensors_in(targets) if tensor.ndim]
    if not sizes:
        raise CannotMeasure("inputs must have a dimension of examples, got tensors without dimensions")
    if not all(sizes) or not all(asked):
        raise CannotMeasure("the batch is empty: inputs have no examples")
    # Sequences may come with their positions first, (position, example, …).
    seconds = [tensor.shape[1] for tensor in tensors_in(inputs) if tensor.ndim > 2]
    number = asked[0] if asked and asked[0] in (*sizes, *seconds) else sizes[0]
    if asked and asked[0] % number:
        raise CannotMeasure(f"inputs have {number} examples but targets {asked[0]}")
    return number


def _refuse_bad_modules(network: torch.nn.Module) -> None:
    """Modules that draw noise or compute a weight from other parameters in a way that hides them."""
    dropouts = (torch.nn.modules.dropout._DropoutNd,)
    for name, module in network.named_modules():
        if isinstance(module, dropouts) and module.training and module.p > 0:
            raise CannotMeasure(
                f"{name!r} is dropout in training mode, so the loss is random: call network.eval() first"
            )
        if isinstance(module, torch.jit.ScriptModule):
            continue
        hidden = [key for key in module._parameters if key.endswith(("_g", "_v", "_orig"))]
        computed = any(key.rpartition("_")[0] not in module._parameters for key in hidden)
        if computed and not torch.nn.utils.parametrize.is_parametrized(module):
            raise CannotMeasure(
                f"the weight of {name!r} is computed from other parameters (weight_norm, a parametrization, "
                "pruning), which is not supported: make it an ordinary weight first, for instance by "
                "torch.nn.utils.parametrize.remove_parametrizations"
            )


def forward(network: torch.nn.Module, inputs: Any) -> Any:
    """The outputs; a forward pass that fails, or returns nothing to differentiate, is said in one sentence."""
    try:
        outputs = called(network, inputs)
    except (CannotMeasure, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in network.parameters()})
        shown = " and ".join(f"{tuple(t.shape)} and {_kind(t)}" for t in list(tensors_in(inputs))[:3])
        raise CannotMeasure(
            f"the network's forward pass fails on inputs of shape {shown} (its parameters are {' and '.join(kinds)}): "
            "call network(inputs) to see why"
        ) from error
    if not differentiable(outputs):
        raise CannotMeasure(
            f"the network must return floating-point tensors, got {described(outputs)}: wrap it in a module that does"
        )
    return outputs


def refuse_bad_taps(taps: Sequence[tuple[str, Tensor]], network: torch.nn.Module) -> None:
    """Taps that cannot be measured, (name, output) each."""
    if not taps:
        _refuse_quantised_modules(network)
        raise CannotMeasure(
            "the network has no tap: no module with a trainable parameter was called in the forward pass"
        )
    dtypes = {output.dtype for _, output in taps}
    for name, output in taps:
        if output.dtype not in (torch.float32, torch.float64):
            raise CannotMeasure(
                f"tap {name!r} has activations of {_kind(output)}, and only float32 and float64 are measured: call "
                "network.float(), give the batch in float32 and turn autocast off inside forward()"
            )
        if not _finite(output.detach()):
            raise NonFiniteActivations(f"tap {name!r} has NaN or infinite activations")
    if len(dtypes) > 1:
        raise CannotMeasure("taps have activations of float32 and of float64: use one data type throughout")


def _finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite: of NaN the extremes are NaN. Much faster than `torch.isfinite`."""
    return not tensor.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def mean_loss(loss_fn: Loss, outputs: Any, targets: Any) -> Tensor:
    """The loss, one number; a loss function that fails is said in one sentence, with the cause where it is known."""
    place = differentiable(outputs)[0].device
    if place.type != "cpu" and _class_beyond(targets, outputs) is not None:
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
            f"loss_fn fails on outputs {_shown(outputs)} with targets {_shown(targets)}: call it on them to see why"
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


def _shown(part: Any) -> str:
    return f"of shape {tuple(part.shape)} and {_kind(part)}" if isinstance(part, Tensor) else f"({described(part)})"


def works(loss_fn: Loss, outputs: Any, targets: Any) -> bool:
    try:
        loss_fn(outputs, targets)
    except Exception:
        return False
    return True


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _class_beyond(targets: Any, outputs: Any) -> int | None:
    """A target that is no index of an output unit, where targets are integers, one an example."""
    if not isinstance(targets, Tensor) or not isinstance(outputs, Tensor):
        return None
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


def refuse_loss_without_gradient(loss: Tensor, network: torch.nn.Module) -> None:
    """A loss that does not depend on the weights by any differentiable way."""
    if not loss.requires_grad:
        _refuse_quantised_modules(network)
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


def refuse_useless_gradient(snapshot: Snapshot, by_name: Mapping[str, Tensor | None]) -> None:
    """A gradient that is NaN or infinite though the loss is finite, or zero: nothing can be relative to it."""
    named = [
        *((f"tap {tap.name!r}", gradient) for tap, gradient in zip(snapshot.taps, snapshot.gradients, strict=True)),
        *((f"parameter {name!r}", gradient) for name, gradient in by_name.items() if gradient is not None),
    ]
    for where, gradient in named:
        if not _finite(gradient):
            raise NonFiniteActivations(
                f"the gradient at {where} is NaN or infinite, though the loss is finite: look for the root or "
                "the logarithm of a zero in the network or the loss"
            )
    refuse_zero_gradient(snapshot)


def refuse_zero_gradient(snapshot: Snapshot) -> None:
    """Refuses a batch to whose gradient nothing can be relative, such as one that a huge step has saturated."""
    if not any(bool(gradient.any()) for gradient in snapshot.gradients):
        _refuse_quantised_modules(snapshot.network)
        raise CannotMeasure(
            "the gradient is zero at every tap on this batch, so nothing can be measured relative to it"
        )
