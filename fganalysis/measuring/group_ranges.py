"""Which blocks and guesses are in which groups: block i of a sample belongs to group i modulo the number of groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fganalysis.measuring.blocks import MOST_GROUPS

# That memory may leave; even ones are then at least 5, where there are as many blocks, and intervals take 4.
FEWEST_GROUPS = 8


def even_groups(n_blocks: int, most: int = MOST_GROUPS) -> int:
    """As many groups as leave all with the same number of blocks, or one less: intervals take them for equal."""
    return -(-n_blocks // -(-n_blocks // most))


def fitting_groups(n_blocks: int, most: int, room: int, each: int) -> int:
    """`even_groups` of which each takes bytes of some room: fewer where it is short, down to `FEWEST_GROUPS`."""
    return even_groups(n_blocks, int(np.clip(room // each, min(FEWEST_GROUPS, most), most)))


@dataclass(frozen=True)
class GroupRange:
    """Consecutive groups of a sample, whose blocks and guesses have numbers of their own, in their order.

    Attributes:
        first, stop: the groups. n_groups: of the sample.
    """

    first: int
    stop: int
    n_groups: int

    @classmethod
    def part(cls, part: int, n_parts: int, n_groups: int) -> GroupRange:
        """One of so many ranges, nearly as long as each other, that have all groups between them."""
        return cls(part * n_groups // n_parts, (part + 1) * n_groups // n_parts, n_groups)

    def __len__(self) -> int:
        return self.stop - self.first

    def block(self, number: int) -> int:
        """The number that a block of the range has in the sample."""
        return number // len(self) * self.n_groups + self.first + number % len(self)

    def n_blocks(self, n_blocks: int) -> int:
        """How many blocks of the sample are in the range."""
        rounds, rest = divmod(n_blocks, self.n_groups)
        return rounds * len(self) + min(max(rest - self.first, 0), len(self))

    def n_guesses(self, n_guesses: int, block_size: int) -> int:
        """How many guesses of the sample, whose last block may be cut short, are in the range."""
        n_blocks = -(-n_guesses // block_size)
        has_last = self.first <= (n_blocks - 1) % self.n_groups < self.stop
        return self.n_blocks(n_blocks) * block_size - has_last * (n_blocks * block_size - n_guesses)

    def guesses(self, n_guesses: int, block_size: int) -> NDArray[np.int64]:
        """The numbers that the guesses of the range have in the sample, (guess,)."""
        rounds, places = np.divmod(np.arange(self.n_blocks(-(-n_guesses // block_size))), len(self))
        blocks = rounds * self.n_groups + self.first + places
        numbers = (blocks[:, None] * block_size + np.arange(block_size)).ravel()
        return numbers[numbers < n_guesses]
