"""Feedback alignment: backpropagation with fixed random matrices in the place of the transposed weights.

    ĝ_last,b = e_b = ∂L/∂s_last,b,      ĝ_l,b = φ'(s_l,b) ⊙ (B_l ĝ_{l+1,b}),   B_l in the place of W_{l+1}ᵀ

Random: B_l, drawn once; given B the guess is deterministic. Biased, exact at the output tap. Source: Lillicrap et al.
2016.
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

    Fields:
        seed, scale: of random matrices with entries N(0, scale²/unit). At scale 1 they keep the mean squared length of
            an error.
        feedback: the matrices themselves instead, (unit, next_unit) for every tap but the last.

    Raises:
        ValueError: a wrong field; at a call, matrices that do not fit the network.
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
        """B_l, (unit, next_unit) for every tap but the last: ``feedback``, or the random matrices of ``seed``."""
        shapes = list(itertools.pairwise(tap.units for tap in snapshot.taps))
        if self.feedback is not None:
            check_matrices(self.feedback, shapes, snapshot.layers, snapshot.taps[-1].outputs)
            return self.feedback
        drawn: tuple[Tensor, ...] = snapshot.remember(
            ("feedback_alignment", self.seed, self.scale),
            lambda: random_matrices(shapes, self.seed, self.scale, snapshot.taps[-1].outputs),
        )
        return drawn
