"""Minibatch: the gradient on m of the B rows of the batch. Its noise is that of ordinary stochastic gradient descent.

    ĝ_b = (B/m) g_b 1[b ∈ S],   S a uniformly random set of m rows, drawn without replacement

Random: S. Exactly unbiased in both spaces. Variance with f = m/B and kernel K (identity, or X Xᵀ in weight space):
(1−f)/f · (B Σ_b K_bb‖g_b‖² − Σ_bb' K_bb' g_b·g_b')/(B−1). Source: sampling without replacement (Cochran 1977, ch. 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fganalysis.arguments import check_kind, check_whole, described
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.passes import Passes


@runtime_checkable
class Rows(Protocol):
    """How rows are chosen; injectable, so that a test can enumerate every subset."""

    def draw(self, n_guesses: int, n_examples: int, size: int, generator: torch.Generator) -> Tensor:
        """Indices of the chosen rows, (guess, row), ``size`` different ones a guess."""


@dataclass(frozen=True)
class WithoutReplacement:
    """Every set of ``size`` rows is equally likely."""

    def draw(self, n_guesses: int, n_examples: int, size: int, generator: torch.Generator) -> Tensor:
        # In double precision there are no ties, which sorting would break in favour of early rows.
        keys = torch.rand(n_guesses, n_examples, generator=generator, device=generator.device, dtype=torch.float64)
        return keys.argsort(dim=1)[:, :size]


WITHOUT_REPLACEMENT = WithoutReplacement()


@dataclass(frozen=True)
class Minibatch:
    """ĝ_b = (B/m) g_b on m = ``size`` rows, zero on the others.

    Raises ValueError for a size that is no whole number of at least 1; at a call, for one above B.
    """

    size: int = 1
    rows: Rows = WITHOUT_REPLACEMENT

    def __post_init__(self) -> None:
        check_whole("size", self.size)
        check_rows(self.rows)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        snapshot.check_examples_apart()
        chosen = drawn_rows(self.rows, n_guesses, snapshot.n_examples, self.size, generator)
        weights = snapshot.like.new_zeros(n_guesses, snapshot.n_examples)
        weights.scatter_(1, chosen, snapshot.n_examples / self.size)
        guesses = []
        for index, (tap, gradient) in enumerate(zip(snapshot.taps, snapshot.gradients, strict=True)):
            if tap.owners is None:  # Rows that serve all examples have a gradient of each.
                guesses.append(torch.tensordot(weights, snapshot.shared_gradients[index], dims=1))
            else:
                guesses.append(tap.owners.spread(weights).unsqueeze(-1) * gradient)
        return ActivationEstimates(tuple(guesses))

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        """Of the rows alone: those of another draw take passes of their own."""
        check_size(self.size, snapshot.n_examples)
        return Passes(forward=1, backward=1).times(n_guesses * self.size / snapshot.n_examples)


def refuse_shared_rows(snapshot: Snapshot) -> None:
    """Raises ValueError for a tap whose rows belong to no example, so that they are on no part of the batch."""
    for tap in snapshot.taps:
        if tap.owners is None:
            raise ValueError(
                f"tap {tap.name!r} has rows that serve all examples, so it is on no part of the batch: leave it out by "
                "taps= or requires_grad_(False)"
            )


def check_rows(rows: object) -> None:
    """Raises ValueError for an object that cannot choose rows."""
    check_kind("rows", rows, Rows, "a chooser of rows such as WithoutReplacement(), with draw")


def drawn_rows(rows: Rows, n_guesses: int, n_examples: int, size: int, generator: torch.Generator) -> Tensor:
    """The rows that ``rows`` draws. Raises ValueError for a size above the batch's and for invalid rows."""
    check_size(size, n_examples)
    chosen: object = rows.draw(n_guesses, n_examples, size, generator)
    shape = (n_guesses, size)
    if isinstance(chosen, Tensor) and type(rows) is WithoutReplacement:
        return chosen  # A GPU would make the host wait for the check of what is right by construction.
    sound = isinstance(chosen, Tensor) and chosen.dtype == torch.int64 and chosen.shape == shape
    if not isinstance(chosen, Tensor) or not sound or not bool(((chosen >= 0) & (chosen < n_examples)).all()):
        asked = f"a tensor of shape {shape} and int64, from 0 to {n_examples - 1}"
        raise ValueError(f"the rows chooser {described(rows)} must draw {asked}, got {described(chosen)}")
    return chosen


def check_size(size: int, n_examples: int) -> None:
    """Raises ValueError for a size above that of the batch."""
    if size > n_examples:
        raise ValueError(f"size must be at most the batch's {n_examples} examples, got {size}")
