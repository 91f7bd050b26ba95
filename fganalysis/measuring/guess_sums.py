"""What is kept of guesses that are drawn in blocks: sums over groups of guesses, and two numbers for each guess."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.guesses import ActivationEstimates, Estimates, Sums
from fganalysis.results import schema


@dataclass(frozen=True)
class BlockSums:
    """What is kept of a block besides its scalars.

    Attributes:
        size: number of guesses. total: their sum, for each tap. kept: for each metric, the sums that it needs.
    """

    size: int
    total: Sums
    kept: list[Sums]


class GroupSums:
    """Running sums of guesses in a fixed number of disjoint groups; block i belongs to group i modulo that number."""

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
        for sums, more in zip(of_group, [block.total, *block.kept], strict=True):
            for total, part in zip(sums, more, strict=True):
                total.add_(part)

    def means(self) -> list[Sums]:
        """The mean guess of every group. It is computed in place, so no block can be added afterwards."""
        return [tuple(t.div_(int(n)) for t in total) for total, n in zip(self.totals, self.sizes, strict=True)]


class GuessScalars:
    """⟨ĝ, g⟩ and ‖ĝ‖² of every guess, (space, layer, guess), in tensors that are allocated before any block is drawn.

    If each block allocated small arrays, the memory of the threads that draw blocks could not be returned. The tensors
    are on the snapshot's device, so that the host does not wait for a GPU at every block.
    """

    def __init__(self, guess: Estimates, snapshot: Snapshot, n_guesses: int):
        shape = (len(schema.SPACES), len(snapshot.layers), n_guesses)
        numbers = torch.empty((2, *shape), dtype=torch.float64, device=snapshot.device)
        self.inner_products, self.squared_norms = numbers
        self._known = np.zeros(shape[:2], dtype=bool)
        self._known[schema.SPACES.index("weight")] = True
        if isinstance(guess, ActivationEstimates):
            self._known[:] = [bool(layer.taps) for layer in snapshot.weights]

    def write(self, guesses: Estimates, snapshot: Snapshot, start: int, seed: int) -> None:
        """Writes the scalars of a block whose first guess has the number ``start``.

        Raises:
            ValueError: on the CPU, as `refuse_infinite` does for the guesses of the block. On other devices the caller
                asks once, after the last block.
        """
        stop = start + len(guesses)
        self.inner_products[..., start:stop], self.squared_norms[..., start:stop] = guesses.inner_products(snapshot)
        if snapshot.device.type == "cpu":
            self.refuse_infinite(seed, start, stop)

    def refuse_infinite(self, seed: int, start: int, stop: int) -> None:
        """Raises ValueError for a guess, numbered from start to stop, that is NaN, infinite or too long to square."""
        norms = self.squared_norms[..., start:stop].cpu().numpy()
        if not np.isfinite(norms[self._known]).all():
            raise ValueError(f"the estimator made a guess that is NaN, infinite or too long to square (seed {seed})")
