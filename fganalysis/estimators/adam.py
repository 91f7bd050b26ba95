"""Adam as a function of its state, for feedback matrices and auxiliary heads, which learn beside the network.

    m ← β₁m + (1−β₁)g,   v ← β₂v + (1−β₂)g²,   x ← x − rate · m̂/(√v̂ + ε),   m̂ = m/(1−β₁ᵗ),  v̂ = v/(1−β₂ᵗ)

The results are those of torch.optim.Adam. A step returns a new state, so that an estimator can hold the state as a
field and return a new estimator. Source: Kingma & Ba 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.arguments import check_kind, described

BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True, eq=False)
class AdamState:
    """The ``values`` x with the running moments m (``first``) and v (``second``) after ``step`` steps."""

    values: tuple[Tensor, ...]
    first: tuple[Tensor, ...]
    second: tuple[Tensor, ...]
    step: int = 0

    @classmethod
    def at(cls, values: Sequence[Tensor]) -> AdamState:
        """Before the first step: both moments are zero."""
        # Separate zeros for each, as safetensors refuses tensors that share memory.
        first, second = (tuple(torch.zeros_like(value) for value in values) for _ in range(2))
        return cls(tuple(values), first, second)

    def moved(self, gradients: Sequence[Tensor], rate: float) -> AdamState:
        """The state after one step. gradients: of shapes that broadcast to those of the values."""
        step = self.step + 1
        first = tuple(torch.lerp(m, g, 1 - BETAS[0]) for m, g in zip(self.first, gradients, strict=True))
        second = tuple(
            torch.mul(v, BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            for v, g in zip(self.second, gradients, strict=True)
        )
        to_mean, to_square = 1 - BETAS[0] ** step, 1 - BETAS[1] ** step
        # In place on temporary arrays: with large heads, allocating new ones takes longer than the arithmetic.
        values = tuple(
            torch.addcdiv(value, m, (v / to_square).sqrt_().add_(EPSILON), value=-rate / to_mean)
            for value, m, v in zip(self.values, first, second, strict=True)
        )
        return AdamState(values, first, second, step)

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, for a checkpoint."""
        named = {"values": self.values, "first": self.first, "second": self.second}
        tensors = {f"{name}.{index}": value for name, group in named.items() for index, value in enumerate(group)}
        return tensors | {"step": torch.tensor(self.step)}

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor]) -> AdamState:
        """The state from what `tensors` returned. Raises ValueError for missing tensors."""
        values, first, second = (numbered(tensors, name) for name in ("values", "first", "second"))
        if "step" not in tensors or not len(values) == len(first) == len(second) > 0:
            raise ValueError(f"the state is not that of an Adam optimiser: it holds {', '.join(sorted(tensors))}")
        return cls(values, first, second, int(tensors["step"]))


def check_optimiser(optimiser: object) -> None:
    """Raises ValueError for a state that is neither None nor an `AdamState`."""
    if optimiser is not None:
        check_kind("optimiser", optimiser, AdamState, "None or the AdamState of an estimator that has learned")


def numbered(tensors: dict[str, Tensor], name: str) -> tuple[Tensor, ...]:
    """The tensors called ``name``.0, ``name``.1 and so on, in order, copied.

    Tensors from a file may lie at any address, and matrix products round differently where memory is not aligned.
    Without the copy, a run continued from a checkpoint would differ from the uninterrupted run in the last digit.
    """
    if not isinstance(tensors, dict) or not all(isinstance(part, Tensor) for part in tensors.values()):
        raise ValueError(f"a state must be a dict of tensors, as the method state gives, got {described(tensors)}")
    count = sum(key.startswith(f"{name}.") for key in tensors)
    missing = [f"{name}.{index}" for index in range(count) if f"{name}.{index}" not in tensors]
    if missing:
        raise ValueError(f"the state lacks {missing[0]!r}")
    return tuple(tensors[f"{name}.{index}"].clone() for index in range(count))
