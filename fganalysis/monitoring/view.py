"""A view of a network in training, in evaluation mode and on the same weights, and contexts that leave no trace.

The view has modules of its own around tensors that share the memory of the network's parameters. So measuring on it
changes no mode, no ``.grad`` and no buffer of the network, calls none of its hooks, and copies no weights.
"""

from __future__ import annotations

import copy
import json
import random
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from fganalysis.capturing.errors import CannotMeasure

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# What says of each of these hooks how it is called.
OPTIONS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


def evaluated_view(network: nn.Module) -> nn.Module:
    """The network's modules again, in evaluation mode, around its own weights; buffers are copied, hooks left out.

    Raises:
        CannotMeasure: a network whose modules cannot be copied by `copy.deepcopy`.
    """
    kept: dict[int, object] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        for parameter in network.parameters()
    }
    for module in network.modules():
        # Hooks are the user's: copied, they would record or change what belongs to the training.
        kept |= {id(vars(module)[name]): OrderedDict() for name in (*HOOKS, *OPTIONS) if name in vars(module)}
    try:
        view = copy.deepcopy(network, kept)
    except Exception as error:
        raise CannotMeasure(
            f"the network, a {type(network).__name__}, cannot be copied by copy.deepcopy: remove from its modules what "
            "is computed from the weights, locks, files and generators"
        ) from error
    for module in view.modules():
        module._compiled_call_impl = None
        # Where accelerate trains in mixed precision it puts autocast around forward, and keeps here what it was.
        if (forward := vars(module).pop("_original_forward", None)) is not None:
            module.forward = forward
        # Not by eval(): some packages' layers merge their adapters into the weights there, which are the network's.
        module.training = False
    return view


def n_hooks(network: nn.Module) -> int:
    """Forward and backward hooks of the network's modules, which a view is without; not those of this package."""
    hooks = [hook for module in network.modules() for name in HOOKS for hook in vars(module).get(name, {}).values()]
    return sum(not str(getattr(hook, "__module__", "")).startswith(f"{__package__}.") for hook in hooks)


def other_in_training(network: nn.Module) -> list[str]:
    """Modules, by name, that compute something else in training mode, in which they are: dropout, batch statistics."""
    found = []
    for name, module in network.named_modules():
        drops = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        averages = isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
        between = isinstance(module, nn.RNNBase | nn.MultiheadAttention) and module.dropout > 0
        if module.training and (drops or averages or between):
            found.append(name)
    return found


def left_out_of(network: nn.Module) -> dict[str, Any]:
    """What a view of the network is without, as attributes of a result; empty where that is nothing."""
    others, hooks = other_in_training(network), n_hooks(network)
    return ({"other_in_training": json.dumps(others)} if others else {}) | ({"hooks_left_out": hooks} if hooks else {})


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """A context after which the global generators of torch, of its device, of NumPy and Python are what they were."""
    states = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def versions(network: nn.Module) -> list[int]:
    """A number for each parameter that grows with every change in place, by whichever tensor shares its memory."""
    return [parameter._version for parameter in network.parameters()]
