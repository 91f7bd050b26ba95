"""Contexts that turn off the caller's autocast and inference mode, as they would change the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fganalysis.capturing.snapshot import Snapshot


def full_precision(snapshot: Snapshot) -> torch.autocast:
    """A context without the caller's `torch.autocast`, so that guesses have the data type of the snapshot."""
    return torch.autocast(snapshot.device.type, enabled=False)


@contextmanager
def plainly(device: torch.device) -> Iterator[None]:
    """A context without the caller's autocast and inference mode."""
    fast = torch.backends.mha.get_fastpath_enabled()
    # Fused attention of whole encoder layers calls no submodules, so that no tap is seen.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
