"""Without a caller's autocast or inference mode, which give other numbers under the same label."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fganalysis.capturing.snapshot import Snapshot


def full_precision(snapshot: Snapshot) -> torch.autocast:
    """A context in which guesses keep the snapshot's data type, whatever `torch.autocast` the caller is in."""
    return torch.autocast(snapshot.outputs.device.type, enabled=False)


@contextmanager
def plainly(device: torch.device) -> Iterator[None]:
    """Without a caller's autocast, which gives other numbers under the same label, and outside inference mode."""
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        yield
