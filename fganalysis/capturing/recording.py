"""One recorded pass of a network, and the taps, layers and snapshot that are made of it.

What costs more than a step, as whose a row is and what stands between two taps, is found out once and kept in a `Plan`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from fganalysis.capturing import graph, refusals
from fganalysis.capturing.batch import (
    buffers_kept,
    differentiable,
    gradients_at_outputs,
    map_tensors,
    output_owners,
    tensors_in,
)
from fganalysis.capturing.calls import Call, Calls, Taps, owners
from fganalysis.capturing.examples import Ownership, Seen, example_weights, ownership, rolls
from fganalysis.capturing.forward_mode import LOCK
from fganalysis.capturing.packing import Packing
from fganalysis.capturing.recorded_graph import RecordedGraph
from fganalysis.capturing.rows import Layout, Owners
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import UNTAPPED, Autodiff, Layer, Loss, Tap
from fganalysis.capturing.upstream import UpstreamJacobian
from fganalysis.capturing.weight_maps.kinds import Called, Kind, kind_of

PROBE_SEED = 0
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
        return [_called_kind(site) for site in self.sites]

    @cached_property
    def derivatives(self) -> dict[tuple[int, int | None], Tensor | None]:
        """What `_elementwise` found, by tap and following tap."""
        return {}


@dataclass(frozen=True)
class TapPlan:
    """What is known of a tap beforehand. order: None for a tap whose rows belong to no example.

    by_row: see `Ownership`.
    """

    key: tuple[str, int, int]
    unit_axes: tuple[int, ...]
    order: Literal["example first", "example last"] | Tensor | None
    shared: bool
    following: int | None
    elementwise: bool
    branches: bool = False
    by_row: bool = False


@dataclass(frozen=True)
class Plan:
    """What is found out about a network once.

    chain: see `graph.is_chain`. later: what is found out when an estimator first asks for it.
    """

    taps: tuple[TapPlan, ...]
    n_examples: int
    chain: bool
    mean_loss: bool = True
    interaction: str = ""
    later: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def modules(self, network: torch.nn.Module) -> Modules:
        return [(name, network.get_submodule(name)) for name in dict.fromkeys(tap.key[0] for tap in self.taps)]

    def of_its_taps(self, recorded: Recorded) -> Recorded:
        """Without tensors that the loss was found not to depend on. A tap may be called more often than it was."""
        known = {(name, place) for name, _, place in (tap.key for tap in self.taps)}
        sites = [site for site in recorded.sites if (site.call.name, site.place) in known]
        return replace(recorded, sites=sites)

    def fits(self, recorded: Recorded) -> bool:
        """Whether it says what rows belong to in a batch of this size, of the same taps."""
        fixed = any(isinstance(tap.order, Tensor) for tap in self.taps)
        same = [tap.key for tap in self.taps] == [site.key for site in recorded.sites]
        of_any_batch = not any(tap.by_row for tap in self.taps)
        return same and of_any_batch and not (fixed and self.n_examples != recorded.n_examples)

    def renewed(self, found: Plan) -> Plan:
        """``found`` about another batch, with what was checked about the loss."""
        return replace(found, mean_loss=self.mean_loss, interaction=self.interaction or found.interaction)


def chosen(original: torch.nn.Module, network: torch.nn.Module, taps: Taps) -> Modules:
    """What may be a tap, in ``network``, a copy of the one that the caller knows."""
    return [(name, network.get_submodule(name)) for name, _ in owners(original, taps)]


def recorded(network: torch.nn.Module, loss_fn: Loss, inputs: Any, targets: Any, modules: Modules) -> Recorded:
    """A forward pass with its graph."""
    with torch.enable_grad():
        with Calls(modules) as calls:
            outputs = refusals.forward(network, inputs)
        sites = _sites(calls, network)
        loss = refusals.mean_loss(loss_fn, outputs, targets)
    n_examples = refusals.n_examples(inputs, targets)
    return Recorded(network, loss_fn, inputs, targets, sites, outputs, loss, n_examples, modules)


def _sites(calls: Calls, network: torch.nn.Module) -> list[Site]:
    sites = [Site(call, place) for call in calls.all for place in call.outputs]
    refusals.refuse_bad_taps([(site.call.name, site.output) for site in sites], network)
    return sites


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
    return Rolled([by_key[site.key].detach() for site in recording.sites], map_tensors(outputs, _constant))


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


def plan_of(recording: Recorded) -> Plan:
    """Finds out whose rows are and what stands between taps, from a recorded pass with its graph."""
    exact = refusals.differentiated(recording.loss, recording.outputs_at_taps)
    return planned(recording, ownerships(recording, exact, rolled(recording)))


def ownerships(recording: Recorded, exact: Sequence[Tensor | None], seen: Rolled | None) -> list[Ownership]:
    """Whose the rows of every tap are. exact: the gradients at the taps. seen: from `rolled`."""
    n_examples = recording.n_examples
    weights = example_weights(n_examples, recording.sites[0].output)
    pulled = _weighted(recording, weights)
    found = []
    for index, (site, kind) in enumerate(zip(recording.sites, recording.kinds, strict=True)):
        observed = Seen(
            site.output.detach(),
            None if seen is None else seen.at_taps[index],
            None if pulled is None else exact[index],
            None if pulled is None else pulled[index],
        )
        found.append(ownership(observed, kind.layout, n_examples, weights))
    return found


def planned(recording: Recorded, found: Sequence[Ownership]) -> Plan:
    """The plan of a recorded pass, of which it is known whose rows are."""
    downstream = graph.downstream(recording.outputs_at_taps)
    interacting = [
        site.call.name
        for site, whose in zip(recording.sites, found, strict=True)
        if whose.owners is None and not whose.shared
    ]
    taps = []
    for index, (site, whose) in enumerate(zip(recording.sites, found, strict=True)):
        following = downstream[index][0] if downstream[index] else None
        order = None if whose.owners is None else whose.owners.order
        elementwise = _elementwise(recording, index, following, checked=True) is not None
        taps.append(
            TapPlan(
                site.key,
                whose.layout.unit_axes,
                order,
                whose.shared,
                following,
                elementwise,
                len(downstream[index]) > 1,
                whose.by_row,
            )
        )
    interaction = _why_interacting(recording.network, interacting[-1]) if interacting else ""
    chain = graph.is_chain(recording.outputs_at_taps, recording.loss)
    return Plan(tuple(taps), recording.n_examples, chain, interaction=interaction)


def _why_interacting(network: torch.nn.Module, tap: str) -> str:
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and (
            module.training or not module.track_running_stats
        ):
            return f"{name!r} is BatchNorm in training mode (network.eval() changes that) and examples interact"
    return f"examples interact between tap {tap!r} and the outputs, or the tap is called on some of them alone"


def _weighted(recording: Recorded, weights: Tensor) -> list[Tensor] | None:
    """The gradients at the taps, where each example's part at the outputs is multiplied by a number of its own."""
    if recording.n_examples == 1:
        return None
    cotangents, used = [], []
    outputs = differentiable(recording.outputs)
    gradients = gradients_at_outputs(recording.loss_fn, recording.outputs, recording.targets)
    for output, gradient in zip(outputs, gradients, strict=True):
        if not output.requires_grad or not bool(gradient.any()):
            continue
        found = output_owners(output, recording.n_examples)
        if found is None:
            return None
        axis, whose = found
        shape = [1] * output.ndim
        shape[axis] = -1
        cotangents.append(gradient * whose.spread(weights.to(gradient)).view(shape))
        used.append(output)
    if not used:
        return None
    pulled = torch.autograd.grad(used, recording.outputs_at_taps, cotangents, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(output) if part is None else part
        for part, output in zip(pulled, recording.outputs_at_taps, strict=True)
    ]


def _called_kind(site: Site) -> Kind:
    """The kernel of a site."""
    call, place = site.call, site.place
    arguments, keywords = (map_tensors(part, _constant) for part in (call.arguments, call.keywords))
    trained = tuple(name for name, parameter in call.module.named_parameters() if parameter.requires_grad)

    def read(weights: Mapping[str, Tensor]) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in call.module.named_buffers()}
        result = torch.func.functional_call(call.module, {**buffers, **weights}, arguments, keywords)
        leaf: Tensor = pytree.tree_leaves(result)[place]
        return leaf

    return kind_of(Called(call.module, arguments, keywords, tuple(site.output.shape), trained, read))


def _with_units(kind: Kind, unit_axes: tuple[int, ...]) -> Kind:
    """The same kernel where a plan knows other units than the kind's own."""
    return kind if unit_axes == kind.layout.unit_axes else kind.with_layout(Layout(kind.layout.shape, unit_axes))


def _constant(tensor: Tensor) -> Tensor:
    return tensor.detach()


def _linear_next(recording: Recorded, following: int | None) -> tuple[Tensor, Tensor] | None:
    """What arrives at the next tap, with its graph, and its weight, where it is a Linear module."""
    if following is None:
        return None
    call = recording.sites[following].call
    given = [*call.arguments, *call.keywords.values()]
    if type(call.module).forward is not torch.nn.Linear.forward or len(given) != 1 or not isinstance(given[0], Tensor):
        return None
    return given[0], cast(torch.nn.Linear, call.module).weight.detach()


def _elementwise(recording: Recorded, index: int, following: int | None, checked: bool) -> Tensor | None:
    """φ' of what stands between a tap and the next, in the shape of its output; None unless it is elementwise.

    J of an elementwise map is diagonal, so that Jᵀr over r is φ' for every r. With ``checked`` two r show whether it
    is: one of ones, and one of random powers of two, by which products and quotients are exact.
    """
    if recording.tangents is not None:
        return recording.tangents[index]
    if (index, following) not in recording.derivatives:
        recording.derivatives[index, following] = _pulled_derivative(recording, index, following, checked)
    return recording.derivatives[index, following]


def _pulled_derivative(recording: Recorded, index: int, following: int | None, checked: bool) -> Tensor | None:
    arrived = _linear_next(recording, following)
    output = recording.sites[index].output
    if arrived is None or arrived[0].shape != output.shape or not arrived[0].requires_grad:
        return None
    (pulled,) = torch.autograd.grad(
        arrived[0], output, torch.ones_like(arrived[0]), retain_graph=True, allow_unused=True
    )
    if pulled is None or not checked:
        return pulled
    cotangent = _powers(tuple(output.shape)).to(output)
    (again,) = torch.autograd.grad(arrived[0], output, cotangent, retain_graph=True, allow_unused=True)
    expected = again / cotangent
    error = (pulled - expected).abs_().sub_(expected.abs_(), alpha=1e-3)
    return pulled if bool(error.max() <= 1e-5) else None


@lru_cache(maxsize=64)
def _powers(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(PROBE_SEED)
    return torch.exp2(torch.randint(-2, 3, shape, generator=generator).float())


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
    names = {id(parameter): name for name, parameter in recording.network.named_parameters()}
    layers, layer_of = _layers(recording, kinds, names)
    taps = []
    for index, (site, kind, known) in enumerate(zip(recording.sites, kinds, plan.taps, strict=True)):
        derivative = upstream = None
        if known.elementwise:
            whole = _elementwise(recording, index, known.following, checked=False)
            linear = _linear_next(recording, known.following)
            if whole is not None and linear is not None and kind.layout.units == linear[1].shape[1]:
                derivative = kind.layout.rows(whole.detach())
                upstream = UpstreamJacobian(linear[1], derivative)
        packing = kind.packing.renamed(_full_names(site, names))
        by_name = {name: recording.network.get_parameter(name).detach() for name in packing.names}
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
                weight=packing.packed(by_name),
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
    parameters = dict(recording.network.named_parameters())
    return Snapshot(
        recording.network,
        recording.loss_fn,
        recording.inputs,
        recording.targets,
        map_tensors(recording.outputs, _constant),
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
    recording: Recorded, kinds: Sequence[Kind], names: Mapping[int, str]
) -> tuple[tuple[Layer, ...], list[int]]:
    """Taps that share a parameter make one layer; parameters of no tap are the last one. And the layer of each tap."""
    packings = [
        kind.packing.renamed(_full_names(site, names)) for site, kind in zip(recording.sites, kinds, strict=True)
    ]
    groups: list[list[int]] = []
    for index, packing in enumerate(packings):
        joined = [index]
        for group in [g for g in groups if any(set(packings[i].names) & set(packing.names) for i in g)]:
            groups.remove(group)
            joined = [*group, *joined]
        groups.append(sorted(joined))
    groups.sort()
    parameters = {name: p.detach() for name, p in recording.network.named_parameters()}
    layers = []
    for group in groups:
        packing = packings[group[0]]
        if any(packings[index] != packing for index in group):
            everything = dict.fromkeys(name for index in group for name in packings[index].names)
            packing = Packing.flat({name: tuple(parameters[name].shape) for name in everything})
        layers.append(Layer(recording.sites[group[0]].call.name, tuple(group), packing, packing.packed(parameters)))
    tapped = {name for packing in packings for name in packing.names}
    untapped = {
        name: tuple(p.shape)
        for name, p in recording.network.named_parameters()
        if p.requires_grad and name not in tapped
    }
    if untapped:
        packing = Packing.flat(untapped)
        layers.append(Layer(UNTAPPED, (), packing, packing.packed(parameters)))
    of_tap = {index: number for number, group in enumerate(groups) for index in group}
    return tuple(layers), [of_tap[index] for index in range(len(recording.sites))]


def leaves(network: torch.nn.Module, inputs: Any, modules: Modules) -> Modules:
    """Those of the modules that are taps: they call no other of them."""
    with torch.no_grad(), Calls(modules) as calls:
        refusals.forward(network, inputs)
    names = dict.fromkeys(call.name for call in calls.all)
    return [(name, network.get_submodule(name)) for name in names]


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
        sites = _sites(calls, network)
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
        chained = first is not None and second is not None and _linear_next(recording, index + 1) is not None
        if first is not None and second is not None and chained:
            chained = torch.allclose(second, first * drawn[index], rtol=1e-3, atol=1e-5)
        kind = recording.kinds[index]
        observed = Seen(site.output, None if seen is None else seen.at_taps[index], None, None)
        whose = ownership(observed, kind.layout, recording.n_examples, weights)
        order = None if whose.owners is None else whose.owners.order
        taps.append(
            TapPlan(
                site.key, whose.layout.unit_axes, order, whose.shared, index + 1 if chained else None, bool(chained)
            )
        )
    # A tangent that comes around a tap would have shown.
    return Plan(tuple(taps), recording.n_examples, all(tap.elementwise for tap in taps[:-1]))
