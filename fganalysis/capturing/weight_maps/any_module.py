"""Module map: the local vector–Jacobian product of any module, for what has no kernel of its own.

The module alone is run again on what arrived at it, with a graph to its own weights; Ĝ is pulled back through that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fganalysis.capturing.packing import Packing
from fganalysis.capturing.pulling import Pull
from fganalysis.capturing.rows import Layout

# Autograd graphs and functional_call put tensors into one shared module, so threads take turns.
LOCK = threading.RLock()


@dataclass(frozen=True, eq=False)
class ModuleMap:
    """``output(weights)`` runs the module: weights by name → the output tensor that the guesses are at."""

    output: Callable[[Mapping[str, Tensor]], Tensor]
    weights: Mapping[str, Tensor]
    packing: Packing
    layout: Layout
    cheap = False

    @cached_property
    def _pull(self) -> Pull:
        with torch.enable_grad():
            weights = {name: weight.detach().requires_grad_() for name, weight in self.weights.items()}
            return Pull(self.output(weights), list(weights.values()))

    def gradients(self, guesses: Tensor) -> Tensor:
        with LOCK:
            parts = self._pull(self.layout.whole(guesses))
        return self.packing.packed(dict(zip(self.weights, parts, strict=True))).to(guesses.dtype)

    def image(self, guesses: Tensor) -> Tensor:
        return self.gradients(guesses)

    def along(self, weights: Tensor) -> Tensor:
        """By forward mode. Raises what the module raises where it has none."""
        at, names = dict(self.weights), list(self.weights)

        def output(*values: Tensor) -> Tensor:
            return self.output(dict(zip(names, values, strict=True)))

        moved = []
        with LOCK, torch.no_grad():
            for change in weights.to(next(iter(at.values())).dtype):
                changes = self.packing.unpacked(change)
                tangents = tuple(changes[name] for name in names)
                moved.append(torch.func.jvp(output, tuple(at.values()), tangents)[1])
        return self.layout.rows(torch.stack(moved)).to(weights.dtype)

    def of_rows(self, rows: Tensor) -> ModuleMap:
        raise ValueError(
            "a module without a kernel of its own is in the network, and its rows cannot be taken apart: "
            "Subsampled needs Linear, convolution, embedding and normalisation modules only"
        )
