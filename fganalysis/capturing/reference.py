"""What guesses are compared with: the protocol that a `Snapshot` and a `fganalysis.measuring.truth.Truth` share.

A block of guesses knows how it is compared with the exact gradient that its reference holds
(`fganalysis.estimators.guesses.Estimates`). Everything behind it, that is sums over groups of guesses, intervals,
verdicts and tables, takes from the reference what stands here and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch


class Reference(Protocol):
    """An exact gradient in layers, in one or more spaces."""

    @property
    def step(self) -> int:
        """The training step, which the seeds of the noise take in."""

    @property
    def spaces(self) -> tuple[str, ...]:
        """The spaces in which guesses may be compared with the gradient."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers, without "all"."""

    @property
    def device(self) -> torch.device:
        """Where guesses are made."""

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the gradient."""

    @property
    def one_thread(self) -> bool:
        """Whether guesses must be drawn by one thread."""

    @property
    def facts(self) -> Mapping[str, object]:
        """Attributes of every result that belong to the reference alone."""
