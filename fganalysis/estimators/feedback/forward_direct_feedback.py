"""Forward direct feedback alignment (FDFA): feedback matrices learned as running means of output derivatives.

    ĝ_l,b = φ'(s_l,b) ⊙ (B_lᵀ e_b),   e_b = ∂L/∂s_last,b;   at the output tap ĝ = e
    M_l = (1/N) Σ_b d_b u_l,bᵀ,   u_l,b ~ N(0, I) at the activations φ(s_l),   d_b = Σ_l 𝒥_l,b u_l,b
    ForwardDirectFeedback:        B_l ← (1−α)B_l + αM_l,   B_l = 0 at first
    ForwardDirectFeedbackAdam:    Adam on the gradient B_l − M_l

On any other network errors are delivered and perturbations added at what arrives at the next tap downstream, in the
place of φ(s_l), and all rows of an example are one vector (`fganalysis.estimators.feedback.delivery`).

𝒥 = ∂s_last/∂φ(s_l). Perturbations are added to the activations behind φ, so φ' enters only once. One pass perturbs all
hidden layers, so d contains the noise of all of them. Random: u of every step. Biased by the lag (1−α)ᵗ of a finite
history and, below the last hidden layer, by the spread of 𝒥 over examples. Sources:
docs/mathematics.md#learned-feedback; Bacho & Chu 2023. As in their public code, a guess uses B from before the update
of its step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fganalysis.arguments import check_kind, check_number, check_whole
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.adam import AdamState, check_optimiser, numbered
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.directional import check_switches
from fganalysis.estimators.feedback.delivery import delivered, error_by_example, hidden_taps, output_changes, sizes
from fganalysis.estimators.feedback.matrices import check_feedback, check_matrices
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise
from fganalysis.estimators.passes import Passes


@dataclass(frozen=True, eq=False)
class ForwardDirectFeedback:
    """ĝ = φ' ⊙ (Bᵀe), where B is a moving average.

    A history is one sequence of updates of B.

    Fields:
        rate: α. noise: the law of u.
        feedback: the state B, (history, output unit, unit) for every tap but the last, with one history for all guesses
            or one for each guess; None stands for B = 0. Where examples have several rows or the network is no chain,
            (history, number at the output taps, number that arrives at the next tap), numbers of an example, for every
            tap with a next one.
        steps: with 0 a call draws nothing, and `advanced` updates B during training. A positive number makes every
            guess start a history of its own from ``feedback`` and update it so many times at these frozen weights. The
            variance of FDFA is measured in this way.

    Closed form: for any number of steps from a single history. There is none from several, where guesses start from
    different B.

    Raises:
        ValueError: a rate outside (0, 1] or a negative ``steps``; at a call, a state that does not fit, and what
            `DirectFeedback` refuses.
    """

    rate: float = 1e-4
    steps: int = 0
    noise: Noise = GAUSSIAN
    feedback: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        _check_settings(self)
        check_feedback("feedback", self.feedback)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        state = self if self.feedback is not None else self.initialised(snapshot)
        assert state.feedback is not None
        if self.steps:
            _check_histories(state.feedback, snapshot, n_guesses)
            state = replace(state, feedback=_each(state.feedback, n_guesses))
            for _ in range(self.steps):
                state = state.advanced(snapshot, generator)
        assert state.feedback is not None
        return guesses_from(snapshot, state.feedback, n_guesses)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        return _passes(self.steps, n_guesses)

    def initialised(self, snapshot: Snapshot, histories: int = 1) -> ForwardDirectFeedback:
        """B = 0 in the shapes that the network asks for, for any number of independent histories."""
        return replace(self, feedback=_zeros(snapshot, histories))

    def advanced(self, snapshot: Snapshot, generator: torch.Generator) -> ForwardDirectFeedback:
        """One update of B on the snapshot's batch, with noise of its own for every history."""
        feedback = self.feedback if self.feedback is not None else _zeros(snapshot, 1)
        samples = feedback_samples(snapshot, self.noise, _histories(feedback), generator)
        moved = tuple(torch.lerp(b, sample, self.rate) for b, sample in zip(feedback, samples, strict=True))
        return replace(self, feedback=moved)

    def state(self) -> dict[str, Tensor]:
        """B by name, for a checkpoint; empty before `initialised`."""
        return {f"feedback.{index}": matrix for index, matrix in enumerate(self.feedback or ())}

    def with_state(self, state: dict[str, Tensor]) -> ForwardDirectFeedback:
        """The estimator that `state` was taken from. Raises ValueError where tensors are missing."""
        return replace(self, feedback=numbered(state, "feedback") or None)


@dataclass(frozen=True, eq=False)
class ForwardDirectFeedbackAdam:
    """ĝ = φ' ⊙ (Bᵀe), where Adam updates B with learning rate ``rate``, as in the public code of Bacho and Chu.

    optimiser: the state, B and Adam's two moments, each in the shapes of `ForwardDirectFeedback.feedback`. The other
    fields are those of `ForwardDirectFeedback`. With ``steps`` > 0 there is no closed form, as Adam divides by a
    random running mean.
    """

    rate: float = 1e-4
    steps: int = 0
    noise: Noise = GAUSSIAN
    optimiser: AdamState | None = None

    def __post_init__(self) -> None:
        _check_settings(self)
        check_optimiser(self.optimiser)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        state = self if self.optimiser is not None else self.initialised(snapshot)
        assert state.optimiser is not None
        if self.steps:
            adam = state.optimiser
            _check_histories(adam.values, snapshot, n_guesses)
            values, first, second = (_each(group, n_guesses) for group in (adam.values, adam.first, adam.second))
            state = replace(state, optimiser=AdamState(values, first, second, adam.step))
            for _ in range(self.steps):
                state = state.advanced(snapshot, generator)
        assert state.optimiser is not None
        return guesses_from(snapshot, state.optimiser.values, n_guesses)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        return _passes(self.steps, n_guesses)

    def initialised(self, snapshot: Snapshot, histories: int = 1) -> ForwardDirectFeedbackAdam:
        """B = 0 and Adam before its first step, for any number of independent histories."""
        return replace(self, optimiser=AdamState.at(_zeros(snapshot, histories)))

    def advanced(self, snapshot: Snapshot, generator: torch.Generator) -> ForwardDirectFeedbackAdam:
        """One step of Adam on B − M, with noise of its own for every history."""
        adam = self.optimiser or AdamState.at(_zeros(snapshot, 1))
        samples = feedback_samples(snapshot, self.noise, _histories(adam.values), generator)
        gradients = [b - sample for b, sample in zip(adam.values, samples, strict=True)]
        return replace(self, optimiser=adam.moved(gradients, self.rate))

    def state(self) -> dict[str, Tensor]:
        """B and Adam's moments by name, for a checkpoint; empty before `initialised`."""
        return self.optimiser.tensors() if self.optimiser else {}

    def with_state(self, state: dict[str, Tensor]) -> ForwardDirectFeedbackAdam:
        """The estimator that `state` was taken from. Raises ValueError where tensors are missing."""
        return replace(self, optimiser=AdamState.of_tensors(state) if state else None)


def feedback_samples(
    snapshot: Snapshot, noise: Noise, histories: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """M_l = (1/N) Σ_b d_b u_l,bᵀ, once for each history, in the shapes of `ForwardDirectFeedback.feedback`."""
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    check_kind("generator", generator, torch.Generator, "a torch.Generator")
    shapes, like = sizes(snapshot), snapshot.taps[-1].outputs
    if not shapes:
        return ()
    directions = [noise.draw((histories, snapshot.n_examples, n), generator, like) for n, _ in shapes]
    changes = output_changes(snapshot, directions).mT / snapshot.n_examples
    return tuple(torch.bmm(changes, direction) for direction in directions)


def guesses_from(snapshot: Snapshot, feedback: Sequence[Tensor], n_guesses: int) -> ActivationEstimates:
    """φ' ⊙ (B_lᵀ e): a guess for each history, or the same guess ``n_guesses`` times from a single history."""
    _check_histories(feedback, snapshot, n_guesses)
    error = error_by_example(snapshot)
    return delivered(snapshot, [error @ b for b in feedback], n_guesses)


def _passes(steps: int, n_guesses: int) -> Passes:
    """One pass with a tangent is that of the guess and of the learning after it; histories take their own tangents."""
    beside = ("product of every example's error with every feedback matrix", "learning of the feedback matrices")
    return Passes(1, 1 + steps * n_guesses, products=1, beside=beside)


def _zeros(snapshot: Snapshot, histories: int) -> tuple[Tensor, ...]:
    check_kind("snapshot", snapshot, Snapshot, "what fga.capture returns")
    check_whole("histories", histories)
    like = snapshot.taps[-1].outputs
    return tuple(like.new_zeros(histories, n_errors, n_numbers) for n_numbers, n_errors in sizes(snapshot))


def _histories(feedback: Sequence[Tensor]) -> int:
    return len(feedback[0]) if len(feedback) else 1


def _each(feedback: Sequence[Tensor], n_guesses: int) -> tuple[Tensor, ...]:
    return tuple(matrix.expand(n_guesses, -1, -1) for matrix in feedback)


def _check_settings(estimator: ForwardDirectFeedback | ForwardDirectFeedbackAdam) -> None:
    check_number("rate", estimator.rate, above=0, most=1)
    check_whole("steps", estimator.steps, least=0)
    check_switches(estimator)


def _check_histories(feedback: Sequence[Tensor], snapshot: Snapshot, n_guesses: int) -> None:
    histories = _histories(feedback)
    shapes = [(histories, n_errors, n_numbers) for n_numbers, n_errors in sizes(snapshot)]
    check_matrices(feedback, shapes, [tap.name for tap in hidden_taps(snapshot)], snapshot.taps[-1].outputs)
    if histories not in (1, n_guesses):
        raise ValueError(f"feedback holds {histories} histories: n_guesses must be as many, got {n_guesses}")
