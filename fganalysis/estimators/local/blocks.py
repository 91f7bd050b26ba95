"""Blocks of any network: what a head stands behind, and the way from a guess there back to the taps.

By default a block ends where the next tap begins, and a guess is made at the tap. Where modules are named, a block ends
with a named module, and a guess at its output is pulled back to every tap that stands between the block before and it.
Taps behind the last block have the exact gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fganalysis.capturing import planning, recording
from fganalysis.capturing.batch import buffers_kept
from fganalysis.capturing.between import Arrival, arrivals, by_example, from_examples, graph_of
from fganalysis.capturing.calls import Calls
from fganalysis.capturing.forward_mode import LOCK, tap_modules
from fganalysis.capturing.graph import sources
from fganalysis.capturing.precision import plainly
from fganalysis.capturing.pulling import Pull
from fganalysis.capturing.rows import Layout, Owners
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.local.reading import Reading, placed

WHAT_FOR = "a local loss"


@dataclass(frozen=True, eq=False)
class Block:
    """A block with a head behind it.

    Attributes:
        reading: of its output by the head.
        taps: the indices of the taps whose guesses come from it.
        pull: (guess, example, number) at its output → (guess, row, unit) at each of these taps.
        gradient: of the network's loss at its output, (example, number); None where guesses are made at the tap.
    """

    reading: Reading
    taps: tuple[int, ...]
    pull: Callable[[Tensor], list[Tensor]]
    gradient: Tensor | None = None


def between_taps(snapshot: Snapshot) -> list[Block]:
    """A block for every tap with a next one, which ends with what arrives there.

    Raises:
        ValueError: as `arrivals` and `reading_of`; several tensors that arrive together.
    """
    blocks = []
    for index, arrival in enumerate(arrivals(snapshot, WHAT_FOR)):
        if arrival is None:
            continue
        if len(arrival.tensors) > 1:
            raise ValueError(
                f"a head behind tap {arrival.tap.name!r} would read {len(arrival.tensors)} tensors, as so many of its "
                f"arrive at tap {arrival.following.name!r}: name blocks with one output"
            )
        shape, owners = tuple(arrival.tensors[0].shape), arrival.owners[0]
        reading = placed(snapshot, arrival.tap.name, arrival.values, shape, owners, arrival.following.layout)
        blocks.append(Block(reading, (index,), partial(_pulled, arrival)))
    return blocks


def _pulled(arrival: Arrival, numbers: Tensor) -> list[Tensor]:
    return [arrival.pulled(numbers)]


def behind_modules(snapshot: Snapshot, names: Sequence[str]) -> list[Block]:
    """A block for every named module, which ends with its output.

    Raises:
        ValueError: as `arrivals` and `reading_of`; a module that is not in the network, is not called once, contains
            another block, or has no tap before it.
    """
    graph_of(snapshot)
    if snapshot.interaction:
        raise ValueError(f"{snapshot.interaction}, so there is {WHAT_FOR} for no example: use feedback_alignment")
    recorded, plan, at_taps = _recorded(snapshot, names)
    ends = sorted(_site(recorded, name) for name in names)
    outputs = [recorded.sites[end].output for end in ends]
    gradients = torch.autograd.grad(recorded.loss, outputs, retain_graph=True, allow_unused=True)
    blocks, taken = [], set[int]()
    for end, output, gradient in zip(ends, outputs, gradients, strict=True):
        name, shape, known = recorded.sites[end].call.name, tuple(output.shape), plan.taps[end]
        taps = tuple(sorted(sources(output, at_taps, passing=True) - taken))
        taken |= set(taps)
        if not taps:
            raise ValueError(f"blocks: no tap stands before {name!r} and behind the block before it: leave it out")
        owners = _of_numbers(Layout(shape, known.unit_axes), known, snapshot.n_examples)
        if owners is None:
            raise ValueError(f"the output of {name!r} has not as many numbers for every example: choose other blocks")
        alike = [layout for index in taps if len((layout := snapshot.taps[index].layout).shape) == len(shape)]
        like = alike[-1] if alike else Layout(shape)
        reading = placed(snapshot, name, by_example(output.detach(), shape, owners), shape, owners, like)
        at_output = torch.zeros_like(output) if gradient is None else gradient
        pull = partial(_pulled_to_taps, snapshot, taps, Pull(output, [at_taps[i] for i in taps]), shape, owners)
        blocks.append(Block(reading, taps, pull, by_example(at_output, shape, owners)))
    return blocks


def _recorded(snapshot: Snapshot, names: Sequence[str]) -> tuple[recording.Recorded, planning.Plan, list[Tensor]]:
    """A pass in which the modules are recorded as taps are, what is known of them, and the outputs of the taps."""
    network = snapshot.network
    known = dict(network.named_modules())
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"blocks: the network has no module {unknown[0]!r}")
    kept: dict[tuple[str, int, int], Tensor] = {}

    def leaving(name: str, number: int, place: int, output: Tensor) -> Tensor:
        kept[name, number, place] = output
        return output.clone()

    modules = [(name, known[name]) for name in names]
    with LOCK, plainly(snapshot.device), buffers_kept(network):
        with Calls(tap_modules(snapshot), leaving):
            recorded = recording.recorded(network, snapshot.loss_fn, snapshot.inputs, snapshot.targets, modules)
        key, later = ("blocks", tuple(names)), snapshot.plan.later
        if key not in later or not later[key].fits(recorded):
            later[key] = planning.plan_of(recorded)
    return recorded, later[key], [kept[tap.name, tap.number, tap.place] for tap in snapshot.taps]


def _site(recorded: recording.Recorded, name: str) -> int:
    """Where the output of the module is among what was recorded: the first tensor that it returns."""
    found = {index: site for index, site in enumerate(recorded.sites) if site.call.name == name}
    n_calls = len({site.call.number for site in found.values()})
    if n_calls != 1:
        how = f"is called {n_calls} times" if n_calls else "is not called, or contains another block"
        raise ValueError(f"blocks: {name!r} {how}, and a head stands behind a single output")
    return min(found)


def _of_numbers(layout: Layout, known: planning.TapPlan, n_examples: int) -> Owners | None:
    """The example of every number, from that of every row."""
    if known.order is None:
        return None
    rows = Owners(n_examples, layout.n_rows, known.order).examples
    examples = layout.whole(rows[:, None].expand(-1, layout.units)).flatten()
    counts = examples.bincount(minlength=n_examples)
    if bool((counts != counts[0]).any()):
        return None
    first = Owners(n_examples, len(examples))
    return first if torch.equal(first.examples, examples) else Owners(n_examples, len(examples), examples)


def _pulled_to_taps(
    snapshot: Snapshot, taps: tuple[int, ...], pull: Pull, shape: tuple[int, ...], owners: Owners, numbers: Tensor
) -> list[Tensor]:
    pulled = pull(from_examples(numbers, shape, owners))
    return [snapshot.taps[index].layout.rows(part).to(numbers.dtype) for index, part in zip(taps, pulled, strict=True)]
