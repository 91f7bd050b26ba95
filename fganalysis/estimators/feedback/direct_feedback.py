"""Direct feedback alignment: the output error reaches every layer at once through fixed random matrices.

    ĝ_l,b = φ'(s_l,b) ⊙ (B_l e_b),   e_b = ∂L/∂s_last,b;   at the output tap ĝ = e

Random: B_l, drawn once; given B the guess is deterministic. Biased, exact at the output tap. Source: Nøkland 2016.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.feedback.matrices import check_drawn, check_matrices, output_error, random_matrices, repeated
from fganalysis.estimators.guesses import ActivationEstimates


@dataclass(frozen=True, eq=False)
class DirectFeedback:
    """ĝ = φ' ⊙ (B e).

    Fields:
        seed, scale: of random matrices with entries N(0, scale²/unit). At scale 1 they keep the mean squared length of
            an error.
        feedback: the matrices themselves instead, (unit, output unit) for every tap but the last.

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
        error = output_error(snapshot)
        matrices = self.matrices(snapshot)
        guesses = [
            error @ matrix.T * jacobian.derivative for matrix, jacobian in zip(matrices, snapshot.upstream, strict=True)
        ]
        return repeated([*guesses, error], n_guesses)

    def matrices(self, snapshot: Snapshot) -> tuple[Tensor, ...]:
        """B_l, (unit, output unit) for every tap but the last: ``feedback``, or the random matrices of ``seed``."""
        outputs = snapshot.taps[-1].outputs
        shapes = [(tap.units, outputs.shape[1]) for tap in snapshot.taps[:-1]]
        if self.feedback is not None:
            check_matrices(self.feedback, shapes, snapshot.layers, outputs)
            return self.feedback
        drawn: tuple[Tensor, ...] = snapshot.remember(
            ("direct_feedback", self.seed, self.scale), lambda: random_matrices(shapes, self.seed, self.scale, outputs)
        )
        return drawn
