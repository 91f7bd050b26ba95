"""Contexts that turn off the caller's autocast and inference mode, as they would change the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fganalysis.capturing.attention import unfused_attention
from fganalysis.capturing.snapshot import Snapshot

# Norms of vectors whose squares and products single precision sums without loss: what is below 2⁻¹²⁶ and counts as zero
# is then too little to matter among 2³⁰ terms, and no sum exceeds 2¹²⁷.
SHORTEST, LONGEST = 2.0**-36, 2.0**60


def full_precision(snapshot: Snapshot) -> torch.autocast:
    """A context without the caller's `torch.autocast`, so that guesses have the data type of the snapshot."""
    return torch.autocast(snapshot.device.type, enabled=False)


@contextmanager
def plainly(device: torch.device) -> Iterator[None]:
    """A context without the caller's autocast, inference mode and fused attention."""
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False), unfused_attention():
        yield
