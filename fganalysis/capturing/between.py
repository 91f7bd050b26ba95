"""What arrives at the next tap, and the way back from there to a tap's outputs.

    a_l = what the next tap downstream is called with, as a function of s_l        pulled back: (∂a_l/∂s_l)ᵀ v

On a chain of Linear modules a_l = φ(s_l), and the way back is a product with φ'. A guess of the gradient at a_l, pulled
back, is a guess of the gradient at s_l, of that part which passes through a_l. Derivatives by a_l are those by the
tensor: where a skip path starts at the same tensor, they include it.

Numbers are grouped by example: of all tensors that arrive together (…, example, number).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fganalysis.capturing.examples import Seen, example_weights, ownership
from fganalysis.capturing.forward_mode import LOCK
from fganalysis.capturing.graph import sources
from fganalysis.capturing.pulling import Pull
from fganalysis.capturing.recorded_graph import RecordedGraph
from fganalysis.capturing.rows import Layout, Owners
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Tap

PROBE_SEED = 0
VECTORS_AT_ONCE = 2**22  # Numbers of the vectors that are pulled back at once.


@dataclass(frozen=True, eq=False)
class Arrival:
    """What arrives at the tap ``following``, the next one downstream of ``tap``, from that tap.

    output: of the tap, with its graph. tensors: that arrive and depend on it. owners: the example of each number.
    """

    tap: Tap
    following: Tap
    output: Tensor
    tensors: tuple[Tensor, ...]
    owners: tuple[Owners, ...]

    @property
    def n_numbers(self) -> int:
        """Numbers that arrive, of an example."""
        return sum(owners.rows_each for owners in self.owners)

    @cached_property
    def values(self) -> Tensor:
        """What arrives, (example, number)."""
        return self.by_example([tensor.detach() for tensor in self.tensors])

    def by_example(self, tensors: Sequence[Tensor]) -> Tensor:
        """(…, *shape) of each tensor that arrives → (…, example, number)."""
        parts = []
        for tensor, like, owners in zip(tensors, self.tensors, self.owners, strict=True):
            parts.append(by_example(tensor, tuple(like.shape), owners))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]

    def whole(self, numbers: Tensor) -> list[Tensor]:
        """The inverse of `by_example`."""
        pieces = numbers.split([owners.rows_each for owners in self.owners], dim=-1)
        return [
            from_examples(piece, tuple(like.shape), owners)
            for piece, like, owners in zip(pieces, self.tensors, self.owners, strict=True)
        ]

    @cached_property
    def _back(self) -> Pull:
        return Pull(_joined(self.tensors), [self.output])

    def pulled(self, numbers: Tensor) -> Tensor:
        """(guess, example, number) at what arrives → (guess, row, unit) at the tap."""
        at_once = max(1, VECTORS_AT_ONCE // max(self.output.numel(), numbers[0].numel()))
        parts = []
        for part in numbers.split(at_once):
            cotangents = self.whole(part)
            flat = cotangents[0] if len(cotangents) == 1 else torch.cat([c.flatten(1) for c in cotangents], dim=1)
            parts.append(self.tap.layout.rows(self._back(flat)[0]))
        return torch.cat(parts).to(numbers.dtype)


def by_example(tensor: Tensor, shape: tuple[int, ...], owners: Owners) -> Tensor:
    """(…, *shape) → (…, example, number), given the example of each number."""
    return owners.by_example(Layout(shape).rows(tensor)).squeeze(-1)


def from_examples(numbers: Tensor, shape: tuple[int, ...], owners: Owners) -> Tensor:
    """The inverse of `by_example`."""
    return Layout(shape).whole(owners.from_examples(numbers.unsqueeze(-1)))


def arrivals(snapshot: Snapshot, what_for: str) -> tuple[Arrival | None, ...]:
    """What arrives at the next tap downstream of every tap; None for an output tap.

    what_for: what an example needs numbers alone for, as the refusals say it.

    Raises:
        ValueError: a snapshot without a graph, examples that interact, or numbers that serve several of them.
    """
    graph = graph_of(snapshot)
    if snapshot.interaction:
        raise ValueError(f"{snapshot.interaction}, so there is {what_for} for no example: use feedback_alignment")
    with LOCK:
        made: tuple[Arrival | None, ...] = snapshot.remember(
            "arrivals", lambda: tuple(_arrival(snapshot, graph, index, what_for) for index in range(len(snapshot.taps)))
        )
    return made


def arriving_gradients(snapshot: Snapshot, places: Sequence[Arrival]) -> list[Tensor]:
    """∂L/∂a, (example, number), at all places of the network where taps' outputs arrive; loss per unit of activation.

    By one backward pass for all of them.
    """

    def make() -> list[Tensor]:
        tensors = list({id(tensor): tensor for place in places for tensor in place.tensors}.values())
        loss = graph_of(snapshot).loss
        parts = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True) if tensors else ()
        by_id = {
            id(tensor): torch.zeros_like(tensor) if part is None else part
            for tensor, part in zip(tensors, parts, strict=True)
        }
        return [place.by_example([by_id[id(tensor)] for tensor in place.tensors]) for place in places]

    with LOCK:
        made: list[Tensor] = snapshot.remember("arriving gradients", make)
    return made


def owners_of(tap: Tap) -> Owners:
    """The example of each row of an output tap.

    Raises:
        ValueError: rows that serve several examples.
    """
    if tap.owners is None:
        raise ValueError(f"tap {tap.name!r} at the outputs has rows that serve several examples: choose other taps")
    return tap.owners


def graph_of(snapshot: Snapshot) -> RecordedGraph:
    """The snapshot's graph.

    Raises:
        ValueError: there is none, without a backward pass or on a part of a batch.
    """
    if snapshot.graph is not None:
        return snapshot.graph
    if snapshot.exact_gradients is None:
        raise ValueError(
            "the network is no chain of Linear modules, so this guess takes a backward pass between its taps: use "
            "autodiff='reverse'"
        )
    raise ValueError(
        "the network is no chain of Linear modules, so what stands between its taps is unknown on a part of the batch: "
        "use all of it"
    )


def _arrival(snapshot: Snapshot, graph: RecordedGraph, index: int, what_for: str) -> Arrival | None:
    tap = snapshot.taps[index]
    if tap.following is None:
        return None
    following = snapshot.taps[tap.following]
    tensors = tuple(
        tensor
        for tensor in graph.arriving[tap.following]
        if tensor.is_floating_point() and index in sources(tensor, graph.at_taps)
    )
    if not tensors:
        raise ValueError(
            f"nothing that tap {following.name!r} is called with is a tensor that depends on tap {tap.name!r}, so "
            f"there is {what_for} at no place between the two: choose other taps"
        )
    found = tuple(_known_owners(snapshot, graph, tap.following, tensor) for tensor in tensors)
    owners = tuple(part for part in found if part is not None and part.rows_each * part.n_examples == part.n_rows)
    if len(owners) < len(tensors):
        raise ValueError(
            f"what arrives at tap {following.name!r} has not as many numbers for every example alone, so there is "
            f"{what_for} for no example: choose other taps"
        )
    return Arrival(tap, following, graph.at_taps[index], tensors, owners)


def _known_owners(snapshot: Snapshot, graph: RecordedGraph, index: int, tensor: Tensor) -> Owners | None:
    """`_owners`, found out once for a network and a size of the batch: it takes longer than a training step."""
    place = [id(other) for other in graph.arriving[index]].index(id(tensor))
    known, key = snapshot.plan.later, ("arriving", index, place, tuple(tensor.shape), snapshot.n_examples)
    if key not in known:
        known[key] = _owners(snapshot, graph, index, tensor)
    owners: Owners | None = known[key]
    return owners


def _owners(snapshot: Snapshot, graph: RecordedGraph, index: int, tensor: Tensor) -> Owners | None:
    """The example of every number of a tensor that arrives at a tap whose rows' examples are known."""
    tap, output = snapshot.taps[index], graph.at_taps[index]
    if tap.owners is None:
        return None
    weights = example_weights(snapshot.n_examples, output.detach())
    generator = torch.Generator().manual_seed(PROBE_SEED)
    cotangent = torch.randn(output.shape, generator=generator, dtype=output.dtype).to(output.device)
    weighted = tap.layout.whole(tap.layout.rows(cotangent) * tap.owners.spread(weights)[:, None])
    pull = Pull(output, [tensor])
    (plain,), (pulled,) = ([part[0] for part in pull(c.unsqueeze(0))] for c in (cotangent, weighted))
    seen = Seen(tensor.detach(), None, plain, pulled)
    return ownership(seen, Layout(tuple(tensor.shape)), snapshot.n_examples, weights).owners


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    if len(tensors) == 1:
        return tensors[0]
    with torch.inference_mode(False), torch.enable_grad():
        return torch.cat([tensor.flatten() for tensor in tensors])
