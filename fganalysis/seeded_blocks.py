"""What every block of guesses has of its own, whoever draws it: a generator, and a thread that computes alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from fganalysis.snapshot import Snapshot


@dataclass(frozen=True)
class Seeds:
    """Generators for blocks, from (seed, step, estimator, block) by `numpy.random.SeedSequence`.

    Attributes:
        seed: the caller's. step: the snapshot's. name: the estimator's label. device: where noise is drawn.
    """

    seed: int
    step: int
    name: str
    device: torch.device

    @classmethod
    def of(cls, seed: int, snapshot: Snapshot, name: str) -> Seeds:
        return cls(seed, snapshot.step, name, snapshot.outputs.device)

    def generator(self, *block: int) -> torch.Generator:
        """A block's own: ``block`` is its number, or several, as look and number."""
        digest = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big")
        sequence = np.random.SeedSequence((self.seed, self.step, digest), spawn_key=block)
        return torch.Generator(self.device).manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)


def full_precision(snapshot: Snapshot) -> torch.autocast:
    """A context in which guesses keep the snapshot's data type, whatever `torch.autocast` the caller is in."""
    return torch.autocast(snapshot.outputs.device.type, enabled=False)


def one_torch_thread() -> None:
    """Lets the calling thread compute with one torch thread: for workers, which would fight over the cores."""
    # Asked first: the first question makes a thread copy the process-wide number, which would undo the setting.
    torch.get_num_threads()
    torch.set_num_threads(1)
