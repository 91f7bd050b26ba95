"""A batch: one tensor, a tuple of arguments or a dict of keyword arguments, and outputs of any form."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fganalysis.capturing.rows import Owners


def called(network: torch.nn.Module, inputs: Any) -> Any:
    """What the network returns: a tuple is its arguments, a dict its keyword arguments."""
    if isinstance(inputs, tuple):
        return network(*inputs)
    if isinstance(inputs, dict):
        return network(**inputs)
    return network(inputs)


def functionally_called(network: torch.nn.Module, tensors: Any, inputs: Any) -> Any:
    """As `called`, with other parameters and buffers, as `torch.func.functional_call` takes them."""
    if isinstance(inputs, tuple):
        return torch.func.functional_call(network, tensors, inputs)
    if isinstance(inputs, dict):
        return torch.func.functional_call(network, tensors, (), inputs)
    return torch.func.functional_call(network, tensors, (inputs,))


def tensors_in(thing: Any, _seen: frozenset[int] = frozenset()) -> Iterator[Tensor]:
    """The tensors in tuples, lists, mappings, dataclasses and the attributes of other objects, in a fixed order."""
    if isinstance(thing, Tensor):
        yield thing
        return
    if id(thing) in _seen or thing is None or isinstance(thing, str | bytes | int | float | type):
        return
    seen = _seen | {id(thing)}
    if isinstance(thing, Mapping):
        parts = list(thing.values())
    elif isinstance(thing, tuple | list):
        parts = list(thing)
    elif dataclasses.is_dataclass(thing):
        parts = [getattr(thing, part.name) for part in dataclasses.fields(thing)]
    else:
        parts = list(vars(thing).values()) if hasattr(thing, "__dict__") else []
    for part in parts:
        yield from tensors_in(part, seen)


def replaced(thing: Any, by_id: Mapping[int, Tensor]) -> Any:
    """The same structure with other tensors in the place of those named by their `id`."""
    if isinstance(thing, Tensor):
        return by_id.get(id(thing), thing)
    if isinstance(thing, tuple) and hasattr(thing, "_fields"):
        return type(thing)(*(replaced(part, by_id) for part in thing))
    if isinstance(thing, tuple | list):
        return type(thing)(replaced(part, by_id) for part in thing)
    if isinstance(thing, Mapping):
        parts = {key: replaced(part, by_id) for key, part in thing.items()}
        return parts if type(thing) is dict else _rebuilt(thing, parts)
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        parts = {part.name: replaced(getattr(thing, part.name), by_id) for part in dataclasses.fields(thing)}
        return _rebuilt(thing, parts)
    if hasattr(thing, "__dict__") and any(True for _ in tensors_in(thing)):
        return _rebuilt(thing, {key: replaced(part, by_id) for key, part in vars(thing).items()})
    return thing


def _rebuilt(thing: Any, parts: Mapping[Any, Any]) -> Any:
    """A copy of an object with other fields, without running what makes it."""
    made = copy.copy(thing)
    for key, part in parts.items():
        if isinstance(made, dict):
            dict.__setitem__(made, key, part)
        if hasattr(thing, "__dict__") and isinstance(key, str) and key in vars(thing):
            object.__setattr__(made, key, part)
    return made


def map_tensors(thing: Any, function: Any) -> Any:
    """The same structure with ``function`` of every tensor."""
    return replaced(thing, {id(tensor): function(tensor) for tensor in tensors_in(thing)})


@contextmanager
def buffers_kept(network: torch.nn.Module) -> Iterator[None]:
    """A context after which the network's buffers are what they were, whatever a forward pass wrote to them."""
    kept = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, before in kept:
            if buffer.shape != before.shape:
                buffer.data = before
            # Not in place for autograd: a graph may still need what it saved of an unchanged buffer.
            elif not torch.equal(buffer, before):
                buffer.data.copy_(before)


def differentiable(outputs: Any) -> tuple[Tensor, ...]:
    """The floating-point tensors among a network's outputs."""
    return tuple(tensor for tensor in tensors_in(outputs) if tensor.is_floating_point())


def output_owners(tensor: Tensor, n_examples: int) -> tuple[int, Owners] | None:
    """The axis of a network's output that examples are along, and how; None where no axis can be.

    The first axis that has as many places as there are examples, otherwise the first one if it has a multiple.
    """
    sizes = list(tensor.shape)
    for axis, size in enumerate(sizes):
        if size == n_examples:
            return axis, Owners(n_examples, size)
    if sizes and sizes[0] > 0 and sizes[0] % n_examples == 0:
        return 0, Owners(n_examples, sizes[0])
    return None


def first_examples(thing: Any, n_examples: int, most: int) -> Any | None:
    """The first examples of a batch, at most ``most``; tensors without an axis of examples serve all of them.

    None where it is not known which axis of a tensor that is: two have as many places as there are examples, or the
    first one a multiple of them.
    """
    if n_examples <= most:
        return thing
    parts: dict[int, Tensor] = {}
    for tensor in tensors_in(thing):
        axes = [axis for axis, size in enumerate(tensor.shape) if size == n_examples]
        if len(axes) > 1 or (not axes and tensor.ndim and tensor.shape[0] % n_examples == 0):
            return None
        if axes:
            parts[id(tensor)] = tensor.narrow(axes[0], 0, most)
    return replaced(thing, parts)


def along_examples(by_example: Tensor, tensor: Tensor) -> Tensor | None:
    """Numbers of each example, (example,), in a shape that multiplies an output example by example; None as above."""
    found = output_owners(tensor, len(by_example))
    if found is None:
        return None
    axis, owners = found
    return owners.spread(by_example).view([-1 if i == axis else 1 for i in range(tensor.ndim)])


def by_example(tensor: Tensor, n_examples: int) -> Tensor | None:
    """An output with its examples first, (example, …); None where no axis can be that of examples."""
    found = output_owners(tensor, n_examples)
    if found is None:
        return None
    axis, owners = found
    moved = tensor.movedim(axis, 0)
    return moved if owners.is_plain else moved.unflatten(0, (n_examples, -1))


def gradients_at_outputs(loss_fn: Callable[[Any, Any], Tensor], outputs: Any, targets: Any) -> list[Tensor]:
    """∂L/∂o for every floating-point output tensor, by the loss function alone.

    Not the gradient in the network's graph: where one output is computed from another, that counts the first twice.
    """
    with torch.enable_grad():
        leaves = {id(t): t.detach().clone().requires_grad_() for t in differentiable(outputs)}
        loss = loss_fn(replaced(outputs, leaves), targets)
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.values(), gradients, strict=True)
    return [torch.zeros_like(leaf) if gradient is None else gradient for leaf, gradient in pairs]
