"""One recorded pass of a network: the taps that were called, with their graphs, and the same of the rolled batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fganalysis.capturing import refusals
from fganalysis.capturing.batch import (
    buffers_kept,
    differentiable,
    map_tensors,
    output_owners,
)
from fganalysis.capturing.calls import Call, Calls, Taps, owners
from fganalysis.capturing.examples import Ownership, rolls
from fganalysis.capturing.rows import Layout
from fganalysis.capturing.tap import Loss
from fganalysis.capturing.weight_maps.kinds import Called, Kind, kind_of

Modules = list[tuple[str, torch.nn.Module]]


@dataclass(frozen=True)
class Site:
    """One tensor that a tap returns."""

    call: Call
    place: int

    @property
    def key(self) -> tuple[str, int, int]:
        return self.call.name, self.call.number, self.place

    @property
    def output(self) -> Tensor:
        return self.call.outputs[self.place]


@dataclass(frozen=True)
class Recorded:
    """One pass: the sites with their graphs, the outputs and the loss. tangents: φ' by site, in forward mode."""

    network: torch.nn.Module
    loss_fn: Loss
    inputs: Any
    targets: Any
    sites: list[Site]
    outputs: Any
    loss: Tensor
    n_examples: int
    modules: Modules
    tangents: list[Tensor | None] | None = None

    @property
    def outputs_at_taps(self) -> list[Tensor]:
        return [site.output for site in self.sites]

    @cached_property
    def kinds(self) -> list[Kind]:
        """The kernel of every site."""
        return [called_kind(site) for site in self.sites]

    @cached_property
    def derivatives(self) -> dict[tuple[int, int | None], Tensor | None]:
        """What `elementwise_derivative` found, by tap and following tap."""
        return {}


def chosen(original: torch.nn.Module, network: torch.nn.Module, taps: Taps) -> Modules:
    """What may be a tap, in ``network``, a copy of the one that the caller knows."""
    return [(name, network.get_submodule(name)) for name, _ in owners(original, taps)]


def recorded(network: torch.nn.Module, loss_fn: Loss, inputs: Any, targets: Any, modules: Modules) -> Recorded:
    """A forward pass with its graph."""
    with torch.enable_grad():
        with Calls(modules) as calls:
            outputs = refusals.forward(network, inputs)
        sites = sites_of(calls, network)
        loss = refusals.mean_loss(loss_fn, outputs, targets)
    n_examples = refusals.n_examples(inputs, targets)
    return Recorded(network, loss_fn, inputs, targets, sites, outputs, loss, n_examples, modules)


def sites_of(calls: Calls, network: torch.nn.Module) -> list[Site]:
    sites = [Site(call, place) for call in calls.all for place in call.outputs]
    refusals.refuse_bad_taps([(site.call.name, site.output) for site in sites], network)
    return sites


def leaves(network: torch.nn.Module, inputs: Any, modules: Modules) -> Modules:
    """Those of the modules that are taps: they call no other of them."""
    with torch.no_grad(), Calls(modules) as calls:
        refusals.forward(network, inputs)
    names = dict.fromkeys(call.name for call in calls.all)
    return [(name, network.get_submodule(name)) for name in names]


def without_unused(recording: Recorded, at_taps: Sequence[Tensor | None]) -> tuple[Recorded, list[Tensor | None]]:
    """Without tensors that a tap returns beside its first one and that the loss does not depend on."""
    kept = [
        (site, gradient)
        for site, gradient in zip(recording.sites, at_taps, strict=True)
        if gradient is not None or site.place == min(site.call.outputs)
    ]
    return replace(recording, sites=[site for site, _ in kept]), [gradient for _, gradient in kept]


@dataclass(frozen=True)
class Rolled:
    """The taps' outputs and the network's, of the batch with its examples rolled by one place."""

    at_taps: list[Tensor]
    outputs: Any


def rolled(recording: Recorded) -> Rolled | None:
    """A forward pass of the rolled batch; None where other taps are called. What it writes to buffers is put back."""
    n_examples = recording.n_examples

    def roll(tensor: Tensor) -> Tensor:
        # Along the first axis with as many places as examples.
        return tensor.roll(1, tensor.shape.index(n_examples)) if n_examples in tensor.shape else tensor

    with torch.no_grad(), buffers_kept(recording.network), Calls(recording.modules) as calls:
        outputs = refusals.forward(recording.network, map_tensors(recording.inputs, roll))
    by_key = {(call.name, call.number, place): tensor for call in calls.all for place, tensor in call.outputs.items()}
    if not all(site.key in by_key for site in recording.sites):
        return None
    return Rolled([by_key[site.key].detach() for site in recording.sites], map_tensors(outputs, constant))


def rolls_as_found(recording: Recorded, found: Sequence[Ownership], seen: Rolled | None) -> bool:
    """Whether the pass of the rolled batch is the recorded one, rolled: it is not where a forward pass is random."""
    if seen is None:
        return False
    for site, whose, other in zip(recording.sites, found, seen.at_taps, strict=True):
        if not whose.rolls and not rolls(site.output.detach(), other, whose.layout, whose.owners):
            return False
    for output, other in zip(differentiable(recording.outputs), differentiable(seen.outputs), strict=True):
        owned = output_owners(output, recording.n_examples)
        if owned is None:
            continue
        axis, owners = owned
        layout = Layout(tuple(output.shape), tuple(i for i in range(output.ndim) if i != axis))
        if not rolls(output.detach(), other, layout, owners):
            return False
    return True


def called_kind(site: Site) -> Kind:
    """The kernel of a site."""
    call, place = site.call, site.place
    arguments, keywords = (map_tensors(part, constant) for part in (call.arguments, call.keywords))
    trained = tuple(name for name, parameter in call.module.named_parameters() if parameter.requires_grad)

    def read(weights: Mapping[str, Tensor]) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in call.module.named_buffers()}
        result = torch.func.functional_call(call.module, {**buffers, **weights}, arguments, keywords)
        leaf: Tensor = pytree.tree_leaves(result)[place]
        return leaf

    return kind_of(Called(call.module, arguments, keywords, tuple(site.output.shape), trained, read))


def constant(tensor: Tensor) -> Tensor:
    return tensor.detach()
