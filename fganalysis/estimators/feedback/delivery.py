"""Errors of the outputs that are delivered to every tap at once, at what the next tap reads.

    e_b (number at the output taps)  →  B_l e_b (number that arrives at the next tap)  →  guess at tap l, pulled back

On a chain of Linear modules with a row an example e_b is the gradient at the last tap's units, what arrives is φ(s_l),
and pulling back is a product with φ'. On other networks all rows of an example are one vector, at the output taps and
where they are delivered (`fganalysis.capturing.between`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.capturing.between import VECTORS_AT_ONCE, Arrival, arrivals, graph_of
from fganalysis.capturing.forward_mode import LOCK
from fganalysis.capturing.pulling import Pull
from fganalysis.capturing.rows import Owners
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Tap
from fganalysis.estimators.feedback.matrices import changes_along_a_chain, output_error, repeated
from fganalysis.estimators.guesses import ActivationEstimates

LARGEST_MATRIX = 2**26  # Numbers of a feedback matrix: 256 MiB in single precision.


def is_plain_chain(snapshot: Snapshot) -> bool:
    """Whether the network is a chain of Linear modules on a row an example."""
    return snapshot.is_chain and all(tap.owners is not None and tap.owners.is_plain for tap in snapshot.taps)


def hidden_taps(snapshot: Snapshot) -> list[Tap]:
    """The taps that errors are delivered to: those with a next tap downstream."""
    if is_plain_chain(snapshot):
        return list(snapshot.taps[:-1])
    return [tap for tap in snapshot.taps if tap.following is not None]


def places(snapshot: Snapshot) -> list[Arrival]:
    """What arrives at the next tap of every hidden tap, of a network that is no plain chain.

    Raises:
        ValueError: examples that interact, or no numbers of each example alone.
    """
    return [arrival for arrival in arrivals(snapshot, "an error to deliver") if arrival is not None]


def sizes(snapshot: Snapshot) -> list[tuple[int, int]]:
    """Of every hidden tap how many numbers of an example are delivered, and of how many its error consists.

    Raises:
        ValueError: as `places` and `error_by_example`; so many that their matrix would be too large.
    """
    hidden = hidden_taps(snapshot)
    if is_plain_chain(snapshot):
        return [(tap.units, snapshot.taps[-1].units) for tap in hidden]
    n_errors = sum(owners.rows_each * tap.units for tap, owners in _output_owners(snapshot))
    found = [(place.n_numbers, n_errors) for place in places(snapshot)]
    for tap, (n_numbers, _) in zip(hidden, found, strict=True):
        if n_numbers * n_errors > LARGEST_MATRIX:
            raise ValueError(
                f"the feedback matrix of tap {tap.name!r}, {n_numbers} numbers that arrive at the next tap by "
                f"{n_errors} of the error, is too large (at most {LARGEST_MATRIX} numbers): use feedback_alignment"
            )
    return found


def error_by_example(snapshot: Snapshot) -> Tensor:
    """e, (example, number at the output taps), loss per unit of activation.

    Raises:
        ValueError: rows of an output tap that belong to no example, or examples with different numbers of them.
    """
    if is_plain_chain(snapshot):
        return output_error(snapshot)
    return _by_example(snapshot, {id(tap): at for tap, at in zip(snapshot.taps, snapshot.gradients, strict=True)})


def _output_owners(snapshot: Snapshot) -> list[tuple[Tap, Owners]]:
    found = []
    for tap in snapshot.taps:
        if tap.following is not None:
            continue
        if tap.owners is None or tap.owners.rows_each * tap.owners.n_examples != tap.owners.n_rows:
            why = snapshot.interaction or f"tap {tap.name!r} has not as many rows for every example alone"
            raise ValueError(f"{why}, so there is an error to deliver for no example: use feedback_alignment")
        found.append((tap, tap.owners))
    return found


def _by_example(snapshot: Snapshot, at_output_taps: Mapping[int, Tensor]) -> Tensor:
    """(…, row, unit) by the `id` of the output tap → (…, example, number at the output taps)."""
    parts = [owners.by_example(at_output_taps[id(tap)]).flatten(-2) for tap, owners in _output_owners(snapshot)]
    return torch.cat(parts, dim=-1)


def delivered(snapshot: Snapshot, vectors: Sequence[Tensor], n_guesses: int) -> ActivationEstimates:
    """Guesses from vectors (1 or guess, example, number) at what follows every hidden tap; e at the output taps."""
    if is_plain_chain(snapshot):
        pairs = zip(vectors, snapshot.upstream, strict=True)
        return repeated([*(v * jacobian.derivative for v, jacobian in pairs), output_error(snapshot)], n_guesses)
    pulled = iter([place.pulled(vector) for place, vector in zip(places(snapshot), vectors, strict=True)])
    at_taps = zip(snapshot.taps, snapshot.gradients, strict=True)
    return repeated([gradient if tap.following is None else next(pulled) for tap, gradient in at_taps], n_guesses)


def output_changes(snapshot: Snapshot, directions: Sequence[Tensor]) -> Tensor:
    """d, the derivative of the outputs along perturbations of what arrives at the next tap of all hidden taps together.

    directions: (guess, example, number) for every hidden tap. Returns (guess, example, number at the output taps).

    Raises:
        ValueError: something on the way that has no second backward pass.
    """
    if is_plain_chain(snapshot):
        return changes_along_a_chain(snapshot, directions)
    forth: _Forth = snapshot.remember("output changes", lambda: _Forth.of(snapshot))
    at_once = max(1, VECTORS_AT_ONCE // max(tap.outputs.numel() for tap in snapshot.taps))
    split = zip(*(direction.split(at_once) for direction in directions), strict=True)
    return torch.cat([_by_example(snapshot, forth.product(part)) for part in split])


@dataclass(frozen=True, eq=False)
class _Forth:
    """Products with 𝒥, by a backward pass through the backward pass: 𝒥ᵀc is linear in c.

    unique: what arrives, each tensor once. taps: the output taps, whose outputs c are like.
    """

    places: Sequence[Arrival]
    unique: Sequence[Tensor]
    taps: Sequence[Tap]
    pull: Pull

    @classmethod
    def of(cls, snapshot: Snapshot) -> _Forth:
        graph, found = graph_of(snapshot), places(snapshot)
        unique = list({id(tensor): tensor for place in found for tensor in place.tensors}.values())
        ends = [index for index, tap in enumerate(snapshot.taps) if tap.following is None]
        outputs = [graph.at_taps[index] for index in ends]
        with LOCK, torch.inference_mode(False), torch.enable_grad():
            cotangents = [torch.zeros_like(output, requires_grad=True) for output in outputs]
            try:
                parts = torch.autograd.grad(outputs, unique, cotangents, create_graph=True, allow_unused=True)
            except RuntimeError as error:
                raise ValueError(
                    "something between the taps has no second backward pass, which the change of the outputs along a "
                    "perturbation takes: use direct_feedback, which needs none"
                ) from error
            flat = [torch.zeros_like(t) if part is None else part for t, part in zip(unique, parts, strict=True)]
            pulled = torch.cat([part.flatten() for part in flat])
        return cls(found, unique, [snapshot.taps[index] for index in ends], Pull(pulled, cotangents))

    def product(self, directions: Sequence[Tensor]) -> dict[int, Tensor]:
        """(guess, example, number) a hidden tap → (guess, row, unit) by the `id` of the output tap."""
        sums: dict[int, Tensor] = {}
        for place, direction in zip(self.places, directions, strict=True):
            for tensor, part in zip(place.tensors, place.whole(direction), strict=True):
                sums[id(tensor)] = sums[id(tensor)] + part if id(tensor) in sums else part
        changes = self.pull(torch.cat([sums[id(tensor)].flatten(1) for tensor in self.unique], dim=1))
        return {id(tap): tap.layout.rows(change) for tap, change in zip(self.taps, changes, strict=True)}
