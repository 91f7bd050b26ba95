"""The taps, layers and snapshot that are made of a recorded pass and a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from fganalysis.capturing.batch import (
    differentiable,
    gradients_at_outputs,
    map_tensors,
    tensors_in,
)
from fganalysis.capturing.elementwise import elementwise_derivative, linear_next
from fganalysis.capturing.packing import Packing
from fganalysis.capturing.planning import Plan
from fganalysis.capturing.recorded_graph import RecordedGraph
from fganalysis.capturing.recording import Recorded, Site, constant
from fganalysis.capturing.rows import Layout, Owners
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import UNTAPPED, Autodiff, Layer, Tap
from fganalysis.capturing.upstream import UpstreamJacobian
from fganalysis.capturing.weight_maps.kinds import Kind


def _with_units(kind: Kind, unit_axes: tuple[int, ...]) -> Kind:
    """The same kernel where a plan knows other units than the kind's own."""
    return kind if unit_axes == kind.layout.unit_axes else kind.with_layout(Layout(kind.layout.shape, unit_axes))


def untapped_parameters(recording: Recorded, plan: Plan) -> dict[str, Tensor]:
    """Trainable parameters of no tap, by name."""
    tapped = {id(p) for _, module in plan.modules(recording.network) for p in module.parameters()}
    named = recording.network.named_parameters()
    return {name: p for name, p in named if p.requires_grad and id(p) not in tapped}


def snapshot_of(
    recording: Recorded,
    plan: Plan,
    at_taps: Sequence[Tensor | None] | None,
    untapped: Mapping[str, Tensor | None],
    autodiff: Autodiff,
    step: int = 0,
    in_training: bool = True,
) -> Snapshot:
    """The snapshot of a recorded pass. at_taps: gradients at the taps; untapped: of the parameters of no tap."""
    kinds = [_with_units(kind, tap.unit_axes) for kind, tap in zip(recording.kinds, plan.taps, strict=True)]
    parameters = dict(recording.network.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    packings = [
        kind.packing.renamed(_full_names(site, names)) for site, kind in zip(recording.sites, kinds, strict=True)
    ]
    weights = {name: parameter.detach() for name, parameter in parameters.items()}
    layers, layer_of = _layers(recording.sites, packings, weights, list(untapped))
    taps = []
    for index, (site, kind, known) in enumerate(zip(recording.sites, kinds, plan.taps, strict=True)):
        derivative = upstream = None
        if known.elementwise:
            whole = elementwise_derivative(recording, index, known.following, checked=False)
            linear = linear_next(recording, known.following)
            if whole is not None and linear is not None and kind.layout.units == linear[1].shape[1]:
                derivative = kind.layout.rows(whole.detach())
                upstream = UpstreamJacobian(linear[1], derivative)
        packing = packings[index]
        linear_here = type(site.call.module).forward is torch.nn.Linear.forward
        given = [*site.call.arguments, *site.call.keywords.values()]
        taps.append(
            Tap(
                *site.key,
                layer=layer_of[index],
                outputs=kind.layout.rows(site.output.detach()),
                layout=kind.layout,
                owners=None if known.order is None else Owners(recording.n_examples, kind.layout.n_rows, known.order),
                weights=kind.weights,
                packing=packing,
                weight=packing.packed(weights),
                arriving=given[0].detach().flatten(0, -2) if linear_here and given[0].ndim > 1 else None,
                following=known.following,
                branches=known.branches,
                derivative=derivative,
                upstream=upstream,
            )
        )
    exact = None
    if at_taps is not None:
        # A tap that the loss does not depend on has a gradient of zero.
        exact = tuple(
            tap.layout.rows(torch.zeros_like(site.output) if gradient is None else gradient).detach()
            for tap, site, gradient in zip(taps, recording.sites, at_taps, strict=True)
        )
    return Snapshot(
        recording.network,
        recording.loss_fn,
        recording.inputs,
        recording.targets,
        map_tensors(recording.outputs, constant),
        recording.loss.detach(),
        recording.n_examples,
        tuple(taps),
        layers,
        exact,
        {
            name: torch.zeros_like(parameters[name]) if gradient is None else gradient.detach()
            for name, gradient in untapped.items()
        },
        autodiff=autodiff,
        step=step,
        in_training=in_training,
        mean_loss=plan.mean_loss,
        interaction=plan.interaction,
        plan=plan,
        graph=None if at_taps is None else _graph(recording),
    )


def _graph(recording: Recorded) -> RecordedGraph:
    gradients = partial(gradients_at_outputs, recording.loss_fn, recording.outputs, recording.targets)
    arriving = []
    for site in recording.sites:
        given = tensors_in((site.call.arguments, site.call.keywords))
        arriving.append(tuple({id(tensor): tensor for tensor in given if tensor.requires_grad}.values()))
    return RecordedGraph(
        tuple(recording.outputs_at_taps),
        tuple(arriving),
        differentiable(recording.outputs),
        recording.loss,
        gradients,
    )


def _full_names(site: Site, names: Mapping[int, str]) -> dict[str, str]:
    """The names in the network of a module's trainable parameters; of a shared one the first."""
    return {name: names[id(p)] for name, p in site.call.module.named_parameters() if p.requires_grad}


def _layers(
    sites: Sequence[Site], packings: Sequence[Packing], weights: Mapping[str, Tensor], untapped: Sequence[str]
) -> tuple[tuple[Layer, ...], list[int]]:
    """Taps that share a parameter make one layer; parameters of no tap are the last one. And the layer of each tap."""
    groups: list[list[int]] = []
    for index, packing in enumerate(packings):
        joined = [index]
        for group in [g for g in groups if any(set(packings[i].names) & set(packing.names) for i in g)]:
            groups.remove(group)
            joined = [*group, *joined]
        groups.append(sorted(joined))
    groups.sort()
    layers = []
    for group in groups:
        packing = packings[group[0]]
        if any(packings[index] != packing for index in group):
            everything = dict.fromkeys(name for index in group for name in packings[index].names)
            packing = Packing.flat({name: tuple(weights[name].shape) for name in everything})
        layers.append(Layer(sites[group[0]].call.name, tuple(group), packing, packing.packed(weights)))
    if untapped:
        packing = Packing.flat({name: tuple(weights[name].shape) for name in untapped})
        layers.append(Layer(UNTAPPED, (), packing, packing.packed(weights)))
    of_tap = {index: number for number, group in enumerate(groups) for index in group}
    return tuple(layers), [of_tap[index] for index in range(len(sites))]
