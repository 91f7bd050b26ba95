"""Feedback alignment: backpropagation with fixed random matrices in the place of the transposed weights.

    ĝ_last,b = e_b = ∂L/∂s_last,b,      ĝ_l,b = φ'(s_l,b) ⊙ (B_l ĝ_{l+1,b}),   B_l in the place of W_{l+1}ᵀ

Random: B_l, once; given B the guess is deterministic. Biased, exact at the output tap. Source: Lillicrap et al. 2016.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.feedback.matrices import check_drawn, check_matrices, output_error, random_matrices, repeated
from fganalysis.estimators.guesses import ActivationEstimates


@dataclass(frozen=True, eq=False)
class FeedbackAlignment:
    """ĝ_l = φ' ⊙ (B ĝ_{l+1}), layer by layer from the output.

    Fields: ``seed`` and ``scale`` of the matrices, whose entries are N(0, scale²/unit), so that at 1 B keeps the length
    of an error on average; or ``feedback``, the matrices themselves, (unit, next_unit) for every tap but the last.
    Raises ValueError for a wrong field and, in a call, for matrices that do not fit the network.
    """

    seed: int = 0
    scale: float = 1.0
    feedback: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        check_drawn(self.seed, self.scale, self.feedback)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        guesses = [output_error(snapshot)]
        pairs = zip(self.matrices(snapshot), snapshot.upstream, strict=True)
        for matrix, jacobian in reversed(list(pairs)):
            guesses.insert(0, guesses[0] @ matrix.T * jacobian.derivative)
        return repeated(guesses, n_guesses)

    def matrices(self, snapshot: Snapshot) -> tuple[Tensor, ...]:
        """B_l, (unit, next_unit) for every tap but the last: those given, or those of the seed."""
        shapes = list(itertools.pairwise(tap.units for tap in snapshot.taps))
        if self.feedback is not None:
            check_matrices(self.feedback, shapes, snapshot.layers, snapshot.taps[-1].outputs)
            return self.feedback
        drawn: tuple[Tensor, ...] = snapshot.remember(
            ("feedback_alignment", self.seed, self.scale),
            lambda: random_matrices(shapes, self.seed, self.scale, snapshot.taps[-1].outputs),
        )
        return drawn
