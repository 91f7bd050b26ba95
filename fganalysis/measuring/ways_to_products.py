"""Ways to multiply the curvature of a loss by a direction, and the difference of gradients that judges them.

Directions and products are by parameter name. See `fganalysis.measuring.second_derivatives` for which way is used when.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp

from fganalysis.capturing.batch import differentiable, functionally_called, map_tensors, replaced
from fganalysis.capturing.moved_losses import doubled
from fganalysis.capturing.snapshot import Snapshot

Matrix = Literal["hessian", "gauss_newton"]
MATRICES_OF_CURVATURE = ("hessian", "gauss_newton")
ProductWay = Literal["forward over reverse", "without fused kernels", "reverse over reverse", "reverse one by one"]
WAYS: tuple[ProductWay, ...] = (
    "forward over reverse",
    "without fused kernels",
    "reverse over reverse",
    "reverse one by one",
)
Parts = dict[str, Tensor]  # By parameter name.
Times = Callable[[Parts], Parts]


@dataclass(frozen=True, eq=False)
class Functions:
    """Loss and outputs as functions of the trained parameters. parameters: where the curvature is taken."""

    network: torch.nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    inputs: Any
    targets: Any
    parameters: Parts

    @classmethod
    def of(cls, snapshot: Snapshot) -> Functions:
        return cls._of(snapshot.network, snapshot, snapshot.inputs, snapshot.targets)

    @classmethod
    def in_double_precision(cls, snapshot: Snapshot) -> Functions:
        network = copy.deepcopy(snapshot.network).double()
        return cls._of(network, snapshot, map_tensors(snapshot.inputs, doubled), map_tensors(snapshot.targets, doubled))

    @classmethod
    def _of(cls, network: torch.nn.Module, snapshot: Snapshot, inputs: Any, targets: Any) -> Functions:
        names = [name for layer in snapshot.weights for name in layer.parameter_names]
        parameters = {name: network.get_parameter(name).detach() for name in names}
        return cls(network, snapshot.loss_fn, inputs, targets, parameters)

    def outputs(self, parameters: Parts) -> Any:
        # What a forward pass writes to a buffer must not reach the next one.
        fresh = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        return functionally_called(self.network, (parameters, fresh), self.inputs)

    def loss(self, parameters: Parts) -> Tensor:
        return self.loss_fn(self.outputs(parameters), self.targets)

    def leaves(self, parameters: Parts, kept: list[Any]) -> tuple[Tensor, ...]:
        """The floating-point outputs alone; ``kept`` gets the whole, for `loss_of`."""
        kept[:] = [self.outputs(parameters)]
        return differentiable(kept[0])

    def loss_of(self, kept: Any, leaves: Sequence[Tensor]) -> Tensor:
        by_id = {id(old): new for old, new in zip(differentiable(kept), leaves, strict=True)}
        return self.loss_fn(replaced(kept, by_id), self.targets)


def _forward_over_reverse(functions: Functions, kind: Matrix, along: Parts) -> Parts:
    at = functions.parameters
    if kind == "hessian":
        return jvp(grad(functions.loss), (at,), (along,))[1]
    kept: list[Any] = []
    pulled: Any = vjp(partial(functions.leaves, kept=kept), at)
    values, pull = pulled
    moved = jvp(partial(functions.leaves, kept=[]), (at,), (along,))[1]
    curved = jvp(grad(partial(functions.loss_of, kept[0])), (values,), (moved,))[1]
    back: tuple[Parts] = pull(curved)
    return back[0]


def _reverse_over_reverse(functions: Functions, kind: Matrix, along: Parts) -> Parts:
    at = functions.parameters
    if kind == "hessian":
        return grad(lambda moved: _slope(grad(functions.loss)(moved), along))(at)
    kept: list[Any] = []
    pulled: Any = vjp(partial(functions.leaves, kept=kept), at)
    values, pull = pulled
    # The pullback is linear in what it pulls, and its own pullback pushes ``along`` forward.
    pushed: Any = vjp(lambda cotangents: pull(cotangents)[0], tuple(map(torch.zeros_like, values)))
    moved = pushed[1](along)[0]
    gradient = grad(partial(functions.loss_of, kept[0]))
    curved = grad(lambda leaves: _inner(gradient(leaves), moved))(values)
    back: tuple[Parts] = pull(curved)
    return back[0]


def _slope(gradient: Parts, along: Parts) -> Tensor:
    return _inner([gradient[name] for name in along], along.values())


def _reverse_one_by_one(functions: Functions, kind: Matrix, along: Parts) -> Parts:
    with torch.enable_grad():
        at = {name: value.detach().clone().requires_grad_() for name, value in functions.parameters.items()}
        if kind == "hessian":
            return _slope_pulled(functions.loss(at), at, along)
        kept: list[Any] = []
        values = [value for value in functions.leaves(at, kept) if value.requires_grad]
        # The pullback of zero cotangents is linear in them, and its derivative by them pushes ``along`` forward.
        cotangents = [torch.zeros_like(value, requires_grad=True) for value in values]
        pulled = torch.autograd.grad(values, list(at.values()), cotangents, create_graph=True, allow_unused=True)
        slope = _inner(pulled, along.values())
        moved = torch.autograd.grad(slope, cotangents, retain_graph=True, materialize_grads=True)
        still = [value.detach().requires_grad_() for value in values]
        by_id = {id(old): new for old, new in zip(values, still, strict=True)}
        loss = functions.loss_fn(replaced(kept[0], by_id), functions.targets)
        curved = _slope_pulled(loss, dict(enumerate(still)), dict(enumerate(moved)))
        found = torch.autograd.grad(values, list(at.values()), list(curved.values()), materialize_grads=True)
        return dict(zip(at, found, strict=True))


def _slope_pulled(loss: Tensor, at: dict[Any, Tensor], along: dict[Any, Tensor]) -> dict[Any, Tensor]:
    """The gradient of the slope of a loss along a direction."""
    first = torch.autograd.grad(loss, list(at.values()), create_graph=True, allow_unused=True)
    slope = _inner(first, along.values())
    if not slope.requires_grad:
        return {name: torch.zeros_like(value) for name, value in at.items()}
    return dict(zip(at, torch.autograd.grad(slope, list(at.values()), materialize_grads=True), strict=True))


def _inner(first: Sequence[Tensor | None], second: Any) -> Tensor:
    products = [(a * b).sum() for a, b in zip(first, second, strict=True) if a is not None]
    return torch.stack(products).sum() if products else torch.zeros(())


def gradient_change(functions: Functions, kind: Matrix, along: Parts, step: float) -> Parts:
    """(∇L(θ + hv) − ∇L(θ − hv))/2h; of the Gauss–Newton matrix with the difference of the outputs in J v."""
    ends = [{name: v + sign * step * along[name] for name, v in functions.parameters.items()} for sign in (1, -1)]
    if kind == "hessian":
        above, below = (gradient_at(functions, end) for end in ends)
        return {name: (above[name] - below[name]) / (2 * step) for name in above}
    with torch.no_grad():
        above_values, below_values = (functions.leaves(end, []) for end in ends)
    moved = [(a - b) / (2 * step) for a, b in zip(above_values, below_values, strict=True)]
    with torch.enable_grad():
        at = {name: value.detach().clone().requires_grad_() for name, value in functions.parameters.items()}
        kept: list[Any] = []
        values = functions.leaves(at, kept)
        still = {place: value.detach().requires_grad_() for place, value in enumerate(values)}
        loss = functions.loss_of(kept[0], list(still.values()))
        curved = _slope_pulled(loss, still, dict(enumerate(moved)))
        used = [place for place, value in enumerate(values) if value.requires_grad]
        found = torch.autograd.grad(
            [values[i] for i in used], list(at.values()), [curved[i] for i in used], materialize_grads=True
        )
    return dict(zip(at, found, strict=True))


def gradient_at(functions: Functions, parameters: Parts) -> Parts:
    """The gradient of the loss at these parameters."""
    with torch.enable_grad():
        at = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        found = torch.autograd.grad(functions.loss(at), list(at.values()), materialize_grads=True)
    return dict(zip(at, found, strict=True))


@contextmanager
def without_fused_kernels() -> Iterator[None]:
    """A context without cuDNN and oneDNN."""
    # Their own context managers read settings of TF32 that are not one number while `plainly` holds them.
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.mkldnn)
    before = [backend.enabled for backend in backends]
    for backend in backends:
        backend.enabled = False
    try:
        yield
    finally:
        for backend, enabled in zip(backends, before, strict=True):
            backend.enabled = enabled


def product(functions: Functions, kind: Matrix, way: ProductWay) -> Times:
    """The product with the curvature, made in this way."""
    makes = {"reverse over reverse": _reverse_over_reverse, "reverse one by one": _reverse_one_by_one}
    return partial(makes.get(way, _forward_over_reverse), functions, kind)
