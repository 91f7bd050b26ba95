"""What is kept of guesses that are drawn in blocks: sums over groups of guesses, and two numbers for each guess."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fganalysis.capturing.reference import Reference
from fganalysis.estimators.guesses import Estimates, Sums


@dataclass(frozen=True)
class BlockSums:
    """What is kept of a block besides its scalars.

    Attributes:
        size: number of guesses. total: their sum, for each tap. kept: for each metric, the sums that it needs.
    """

    size: int
    total: Sums
    kept: list[Sums]

    def all_sums(self) -> list[Sums]:
        """The total and the sums of each metric."""
        return [self.total, *self.kept]


class GroupSums:
    """Running sums of guesses in a fixed number of disjoint groups."""

    def __init__(self, n_groups: int, block: BlockSums):
        """``block`` gives the shapes. The sums are allocated here, once, and not by the threads that draw blocks.

        totals: the sum of the guesses of each group. kept: for each metric, its sums for each group.
        """
        self.sizes = np.zeros(n_groups, dtype=np.int64)
        self.totals: list[Sums] = [tuple(map(torch.zeros_like, block.total)) for _ in range(n_groups)]
        self.kept: list[list[Sums]] = [
            [tuple(map(torch.zeros_like, sums)) for _ in range(n_groups)] for sums in block.kept
        ]

    def all_sums(self) -> list[list[Sums]]:
        """The totals and the sums of each metric, a list over groups each."""
        return [self.totals, *self.kept]

    def add(self, group: int, block: BlockSums) -> None:
        self.sizes[group] += block.size
        of_group = [sums[group] for sums in self.all_sums()]
        for sums, more in zip(of_group, block.all_sums(), strict=True):
            for total, part in zip(sums, more, strict=True):
                total.add_(part)

    def means(self) -> list[Sums]:
        """The mean guess of every group. It is computed in place, so no block can be added afterwards."""
        return [tuple(t.div_(int(n)) for t in total) for total, n in zip(self.totals, self.sizes, strict=True)]


class GuessScalars:
    """⟨ĝ, g⟩ and ‖ĝ‖² of every guess, (space, layer, guess), in tensors that are allocated before any block is drawn.

    If each block allocated small arrays, the memory of the threads that draw blocks could not be returned. The tensors
    are on the reference's device, so that the host does not wait for a GPU at every block.
    """

    def __init__(self, guess: Estimates, reference: Reference, n_guesses: int):
        shape = (len(reference.spaces), len(reference.layers), n_guesses)
        numbers = torch.empty((2, *shape), dtype=torch.float64, device=reference.device)
        self.inner_products, self.squared_norms = numbers
        self._known = guess.known(reference)

    def write(self, guesses: Estimates, reference: Reference, start: int, seed: int) -> None:
        """Writes the scalars of a block whose first guess has the number ``start``.

        Raises:
            ValueError: on the CPU, as `refuse_infinite` does for the guesses of the block. On other devices the caller
                asks once, after the last block.
        """
        stop = start + len(guesses)
        self.inner_products[..., start:stop], self.squared_norms[..., start:stop] = guesses.inner_products(reference)
        if reference.device.type == "cpu":
            self.refuse_infinite(seed, start, stop)

    def refuse_infinite(self, seed: int, start: int, stop: int) -> None:
        """Raises ValueError for a guess, numbered from start to stop, that is NaN, infinite or too long to square."""
        norms = self.squared_norms[..., start:stop].cpu().numpy()
        if not np.isfinite(norms[self._known]).all():
            raise ValueError(f"the estimator made a guess that is NaN, infinite or too long to square (seed {seed})")


@dataclass(frozen=True)
class Kept:
    """All that is kept of guesses: sums over their groups, and the scalars of each."""

    groups: GroupSums
    scalars: GuessScalars

    def tensors(self, n_guesses: int | None = None) -> dict[str, Tensor]:
        """All of it by name, on the CPU: scalars, (space, layer, guess), of all or the first guesses, and sums."""
        named = {
            "inner_products": self.scalars.inner_products[..., :n_guesses].cpu().contiguous(),
            "squared_norms": self.scalars.squared_norms[..., :n_guesses].cpu().contiguous(),
            "sizes": torch.from_numpy(self.groups.sizes),
        }
        for name, parts in self._sums():
            named[name] = torch.stack([part.cpu() for part in parts])
        return named

    def shapes(self, n_groups: int, n_guesses: int) -> dict[str, tuple[int, ...]]:
        """The shapes that `tensors` would have of so many groups and guesses."""
        scalars = (*self.scalars.inner_products.shape[:-1], n_guesses)
        sums = {name: (n_groups, *parts[0].shape) for name, parts in self._sums()}
        return {"inner_products": scalars, "squared_norms": scalars, "sizes": (n_groups,)} | sums

    def take(
        self, tensors: Mapping[str, Tensor], groups: slice = slice(None), guesses: slice | Tensor | None = None
    ) -> None:
        """Takes what `tensors` has given: that of some groups, and of guesses, by default as many as there are."""
        if guesses is None:
            guesses = slice(tensors["inner_products"].shape[-1])
        device = self.scalars.inner_products.device
        self.scalars.inner_products[..., guesses] = tensors["inner_products"].to(device)
        self.scalars.squared_norms[..., guesses] = tensors["squared_norms"].to(device)
        self.groups.sizes[groups] = tensors["sizes"].numpy()
        for name, parts in self._sums():
            for part, stored in zip(parts[groups], tensors[name], strict=True):
                part.copy_(stored)

    def _sums(self) -> Iterator[tuple[str, list[Tensor]]]:
        """Every sum by name, a tensor for each group."""
        for number, of_groups in enumerate(self.groups.all_sums()):
            for place in range(len(of_groups[0])):
                yield f"sums.{number}.{place}", [of_group[place] for of_group in of_groups]
