"""What is found out about a network once: whose the rows are, which tap comes next, what stands between the two."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fganalysis.capturing import graph, refusals
from fganalysis.capturing.batch import (
    along_examples,
    differentiable,
    gradients_at_outputs,
)
from fganalysis.capturing.elementwise import elementwise_derivative
from fganalysis.capturing.examples import Ownership, Seen, example_weights, ownership
from fganalysis.capturing.recording import Modules, Recorded, Rolled, rolled


@dataclass(frozen=True)
class TapPlan:
    """What is known of a tap beforehand. order: None for a tap whose rows belong to no example.

    by_row: see `Ownership`.
    """

    key: tuple[str, int, int]
    unit_axes: tuple[int, ...]
    order: Literal["example first", "example last"] | Tensor | None
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
        elementwise = elementwise_derivative(recording, index, following, checked=True) is not None
        taps.append(
            TapPlan(
                site.key,
                whose.layout.unit_axes,
                order,
                following,
                elementwise,
                len(downstream[index]) > 1,
                whose.by_row,
            )
        )
    interaction = _why_interacting(recording.network, interacting[-1]) if interacting else ""
    chain = graph.is_chain(downstream, recording.outputs_at_taps, recording.loss)
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
        by_number = along_examples(weights.to(gradient), output)
        if by_number is None:
            return None
        cotangents.append(gradient * by_number)
        used.append(output)
    if not used:
        return None
    pulled = torch.autograd.grad(used, recording.outputs_at_taps, cotangents, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(output) if part is None else part
        for part, output in zip(pulled, recording.outputs_at_taps, strict=True)
    ]
