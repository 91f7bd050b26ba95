"""Feedback alignment: backpropagation with fixed random matrices in the place of the transposed weights.

    ĝ_last,b = e_b = ∂L/∂s_last,b,      ĝ_l,b = φ'(s_l,b) ⊙ (B_l ĝ_{l+1,b}),   B_l in the place of W_{l+1}ᵀ

On any other network the weight of every Linear and convolution module between taps is replaced in the backward pass, a
convolution's by a kernel of its shape; everything else is differentiated as it is, skip paths included
(`fganalysis.estimators.feedback.replaced_weights`).

Random: B_l, drawn once; given B the guess is deterministic. Biased, exact at the output tap. Source: Lillicrap et al.
2016.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.feedback.matrices import check_drawn, check_matrices, output_error, random_matrices, repeated
from fganalysis.estimators.feedback.replaced_weights import carriers, fan_of, gradients_through
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.passes import Passes


@dataclass(frozen=True, eq=False)
class FeedbackAlignment:
    """ĝ_l = φ' ⊙ (B ĝ_{l+1}), layer by layer from the output.

    Fields:
        seed, scale: of random matrices with entries N(0, scale²/unit), of kernels N(0, scale²/fan) with fan the number
            of inputs that an output is made of. At scale 1 they keep the mean squared length of an error.
        feedback: the matrices themselves instead, of every tap but the last (unit, next_unit). Where the network is no
            chain of Linear modules, of every Linear and convolution module that carries the error between taps, in the
            order in which they are first called: (input, output) of a Linear module, the shape of a convolution's
            kernel.

    Other modules, normalisation and attention among them, pass their gradient on as it is; so do Linear and convolution
    modules behind the last tap, and weights that no module of these classes multiplies with.

    Raises:
        ValueError: a wrong field; at a call, matrices that do not fit the network; on a network that is no chain, a
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
        if not snapshot.is_chain:
            return repeated(self._on_the_graph(snapshot, matrices), n_guesses)
        guesses = [output_error(snapshot)]
        pairs = zip(matrices, snapshot.upstream, strict=True)
        for matrix, jacobian in reversed(list(pairs)):
            guesses.insert(0, guesses[0] @ matrix.T * jacobian.derivative)
        return repeated(guesses, n_guesses)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        return Passes(forward=1, backward=1)

    def _on_the_graph(self, snapshot: Snapshot, matrices: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        def make() -> tuple[Tensor, ...]:
            weights = [matrix.T if matrix.ndim == 2 else matrix for matrix in matrices]
            return gradients_through(snapshot, dict(zip(carriers(snapshot), weights, strict=True)))

        if self.feedback is not None:
            return make()
        made: tuple[Tensor, ...] = snapshot.remember(("gradients through feedback", self.seed, self.scale), make)
        return made

    def matrices(self, snapshot: Snapshot) -> tuple[Tensor, ...]:
        """B_l in the shapes of the field ``feedback``: what it holds, or the random matrices of ``seed``."""
        like = snapshot.taps[-1].outputs
        if snapshot.is_chain:
            names = [tap.name for tap in snapshot.taps]
            shapes: list[tuple[int, ...]] = list(itertools.pairwise(tap.units for tap in snapshot.taps))
            fans: list[float] = [shape[0] for shape in shapes]
        else:
            modules = carriers(snapshot)
            names, weights = list(modules), [cast(Tensor, module.weight) for module in modules.values()]
            shapes = [tuple(weight.T.shape if weight.ndim == 2 else weight.shape) for weight in weights]
            fans = [fan_of(module) for module in modules.values()]
        if self.feedback is not None:
            check_matrices(self.feedback, shapes, names, like)
            return self.feedback

        made: tuple[Tensor, ...] = snapshot.remember(
            ("feedback_alignment", self.seed, self.scale),
            lambda: random_matrices(shapes, self.seed, self.scale, like, fans),
        )
        return made
