"""Direct feedback alignment: the output error reaches every layer at once through fixed random matrices.

    ĝ_l,b = φ'(s_l,b) ⊙ (B_l e_b),   e_b = ∂L/∂s_last,b;   at the output tap ĝ = e

On any other network B_l e_b is delivered at what arrives at the next tap downstream, and pulled back through what
stands between (`fganalysis.estimators.feedback.delivery`).

Random: B_l, drawn once; given B the guess is deterministic. Biased, exact at the output tap. Source: Nøkland 2016.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.feedback.delivery import delivered, error_by_example, hidden_taps, sizes
from fganalysis.estimators.feedback.matrices import check_drawn, check_matrices, random_matrices
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.passes import Passes


@dataclass(frozen=True, eq=False)
class DirectFeedback:
    """ĝ = φ' ⊙ (B e).

    Fields:
        seed, scale: of random matrices with entries N(0, scale²/unit). At scale 1 they keep the mean squared length of
            an error.
        feedback: the matrices themselves instead, of every tap but the last (unit, output unit). Where examples have
            several rows or the network is no chain, of every tap with a next one (number of an example that arrives at
            the next tap, number of an example at the output taps).

    Raises:
        ValueError: a wrong field; at a call, matrices that do not fit the network or would be too large; on a network
            that is no chain, examples that interact, no numbers of each example alone where errors are delivered, or a
            snapshot without a backward pass or of a part of a batch.
    """

    seed: int = 0
    scale: float = 1.0
    feedback: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        check_drawn(self.seed, self.scale, self.feedback)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        matrices = self.matrices(snapshot)
        error = error_by_example(snapshot)
        return delivered(snapshot, [(error @ matrix.T).unsqueeze(0) for matrix in matrices], n_guesses)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        return Passes(forward=1, products=1, beside=("product of every example's error with every feedback matrix",))

    def matrices(self, snapshot: Snapshot) -> tuple[Tensor, ...]:
        """B_l in the shapes of the field ``feedback``: what it holds, or the random matrices of ``seed``."""
        shapes, like = sizes(snapshot), snapshot.taps[-1].outputs
        if self.feedback is not None:
            check_matrices(self.feedback, shapes, [tap.name for tap in hidden_taps(snapshot)], like)
            return self.feedback
        drawn: tuple[Tensor, ...] = snapshot.remember(
            ("direct_feedback", self.seed, self.scale), lambda: random_matrices(shapes, self.seed, self.scale, like)
        )
        return drawn
