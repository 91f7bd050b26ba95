"""Recording and planning in forward mode, which takes no backward pass and keeps no graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fganalysis.capturing import refusals
from fganalysis.capturing.batch import (
    map_tensors,
)
from fganalysis.capturing.calls import Call, Calls
from fganalysis.capturing.elementwise import PROBE_SEED, linear_next
from fganalysis.capturing.examples import Seen, example_weights, ownership
from fganalysis.capturing.forward_mode import LOCK
from fganalysis.capturing.planning import Plan, TapPlan
from fganalysis.capturing.recording import Modules, Recorded, Site, rolled, sites_of
from fganalysis.capturing.tap import Loss


def recorded_in_forward_mode(
    network: torch.nn.Module, loss_fn: Loss, inputs: Any, targets: Any, modules: Modules
) -> Recorded:
    """A pass without a graph: φ' is the tangent of ones that left a tap, as it arrives at the next.

    ``modules`` are taps, from `leaves` or a plan. φ' is known between two Linear modules that follow each other; a
    second pass with other tangents shows whether the map is elementwise (`plan_by_forward_mode`).
    """
    sites, outputs, tangents = _tangents_pass(network, inputs, modules, torch.ones_like)
    with torch.no_grad():
        loss = refusals.mean_loss(loss_fn, outputs, targets)
    n_examples = refusals.n_examples(inputs, targets)
    return Recorded(network, loss_fn, inputs, targets, sites, outputs, loss, n_examples, modules, tangents)


def _tangents_pass(
    network: torch.nn.Module, inputs: Any, modules: Modules, tangent: Any
) -> tuple[list[Site], Any, list[Tensor | None]]:
    """Sites, outputs without tangents, and tangents as they arrive at the next tap; None of another shape."""

    def leaving(name: str, number: int, place: int, output: Tensor) -> Tensor:
        return forward_ad.make_dual(output.clone(), tangent(output))

    arrived: list[Tensor | None] = []

    def arriving(name: str, number: int, given: Any) -> Any:
        arguments, keywords = given
        tensors = [part for part in (*arguments, *keywords.values()) if isinstance(part, Tensor)]
        arrived_here.append(forward_ad.unpack_dual(tensors[0]).tangent if len(tensors) == 1 else None)
        return tuple(map_tensors(list(arguments), primal)), map_tensors(dict(keywords), primal)

    def primal(tensor: Tensor) -> Tensor:
        return forward_ad.unpack_dual(tensor).primal

    arrived_here: list[Tensor | None] = []
    with LOCK, torch.no_grad(), forward_ad.dual_level():
        with Calls(modules, leaving, arriving) as calls:
            outputs = map_tensors(refusals.forward(network, inputs), lambda t: primal(t).detach())
        sites = sites_of(calls, network)
        detached_calls = {
            id(call): Call(
                call.name,
                call.module,
                call.number,
                map_tensors(call.arguments, lambda t: primal(t).detach()),
                map_tensors(call.keywords, lambda t: primal(t).detach()),
                {place: primal(tensor).detach() for place, tensor in call.outputs.items()},
            )
            for call in calls.all
        }
        sites = [Site(detached_calls[id(site.call)], site.place) for site in sites]
        by_tap = {}
        for (name, number), part in zip(calls.order, arrived_here, strict=True):
            by_tap[name, number] = None if part is None else part.detach().clone()
    for site, after in zip(sites, [*sites[1:], None], strict=True):
        part = None if after is None else by_tap[after.call.name, after.call.number]
        arrived.append(part if part is not None and part.shape == site.output.shape else None)
    return sites, outputs, arrived


def plan_by_forward_mode(recording: Recorded) -> Plan:
    """`plan_of` without a backward pass: owners from the rolled batch, elementwise maps from a second tangent."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    drawn: list[Tensor] = []

    def draw(output: Tensor) -> Tensor:
        drawn.append(torch.rand(output.shape, generator=generator, dtype=output.dtype).to(output.device) + 0.5)
        return drawn[-1]

    _, _, again = _tangents_pass(recording.network, recording.inputs, recording.modules, draw)
    assert recording.tangents is not None
    seen = rolled(recording)
    weights = example_weights(recording.n_examples, recording.sites[0].output)
    taps = []
    for index, site in enumerate(recording.sites):
        first, second = recording.tangents[index], again[index]
        chained = first is not None and second is not None and linear_next(recording, index + 1) is not None
        if first is not None and second is not None and chained:
            chained = torch.allclose(second, first * drawn[index], rtol=1e-3, atol=1e-5)
        kind = recording.kinds[index]
        observed = Seen(site.output, None if seen is None else seen.at_taps[index], None, None)
        whose = ownership(observed, kind.layout, recording.n_examples, weights)
        order = None if whose.owners is None else whose.owners.order
        taps.append(TapPlan(site.key, whose.layout.unit_axes, order, index + 1 if chained else None, bool(chained)))
    # A tangent that comes around a tap would have shown.
    return Plan(tuple(taps), recording.n_examples, all(tap.elementwise for tap in taps[:-1]))
