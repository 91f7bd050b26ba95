"""Contexts that turn off the caller's autocast and inference mode, as they would change the numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fganalysis.capturing.attention import unfused_attention
from fganalysis.capturing.snapshot import Snapshot


def full_precision(snapshot: Snapshot) -> torch.autocast:
    """A context without the caller's `torch.autocast`, so that guesses have the data type of the snapshot."""
    return torch.autocast(snapshot.device.type, enabled=False)


@contextmanager
def plainly(device: torch.device) -> Iterator[None]:
    """A context without the caller's autocast, inference mode and fused attention."""
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False), unfused_attention():
        yield
