"""Guesses fed back through matrices that are not the network's: feedback alignment, DFA and FDFA.

Source: docs/mathematics.md#feedback.

    feedback alignment   ĝ_l = φ' ⊙ (B_l ĝ_{l+1})     B_l in the place of W_{l+1}ᵀ
    direct (DFA)         ĝ_l = φ' ⊙ (B_l e)           both deterministic given B: bias alone, no variance
    FDFA                 ĝ_l = φ' ⊙ (B_lᵀ e),         B_l ← (1−α)B_l + αM_l,
                                                      M_l = (1/N) Σ_b d_b u_l,bᵀ,   d_b = Σ_m 𝒥_m,b u_m,b

The output tap has e itself. 𝒥_l,b = ∂s_last/∂φ(s_l), so that the gradient is g_l,b = φ'_b ⊙ 𝒥_l,bᵀ e_b.

Over random B with independent entries of mean zero and variance v the mean guess is zero and

    E ĝ_b·ĝ_c = v (φ'_b·φ'_c) S_bc,        E⟨ĝ, g⟩² = v Σ_bc (p_b·p_c) S_bc,   p = φ' ⊙ K g

with S_bc = e_b·e_c for DFA; for feedback alignment S is E ĝ_b·ĝ_c of the layer above, since its B is independent.

FDFA at frozen weights after t steps. The M of different steps are independent with mean 𝒥̄ = (1/N) Σ_b 𝒥_b, so that

    E ĝ_b       = φ'_b ⊙ ((1−α)ᵗB_0 + (1 − (1−α)ᵗ)𝒥̄)ᵀe_b,  so that
    E ĝ_b − g_b = φ'_b ⊙ (1−α)ᵗ(B_0 − 𝒥̄)ᵀe_b  +  φ'_b ⊙ (𝒥̄ − 𝒥_b)ᵀe_b          the lag, and the spread over examples
    Cov(ĝ_b, ĝ_c) = α/(2−α) · (1 − (1−α)²ᵗ) · Cov of one step's φ' ⊙ (Mᵀe)       from Σ_k α²(1−α)²ᵏ, k < t

For one step, a_b,n = 𝒥_l,nᵀe_b and A_n = Σ_m 𝒥_m,n 𝒥_m,nᵀ over all hidden layers, with noise of fourth moments
``fourth`` and ``pair``: the entries i and j of the example n's u (d·e_b) and u (d·e_c) have the expected product

    δ_ij (pair a_b·a_c + the other layers') + pair (a_bi a_cj + a_bj a_ci) + (fourth − 3 pair) δ_ij a_bi a_ci,

its mean subtracted and summed over units, over N examples of independent noise and the factor 1/N²:

    tr Cov = (1/N²) Σ_n { (φ'_b·φ'_c) [e_bᵀA_n e_c + (pair−1) a_b·a_c] + (fourth−pair−1) Σ_i φ'_bi φ'_ci a_bi a_ci }.

For Gaussian noise, φ' = 1, b = c and one 𝒥 this is (1/N)[(n+1)‖𝒥ᵀe‖² + n eᵀHe], n the layer's units, H = A − 𝒥𝒥ᵀ.
Sources: Lillicrap et al. 2016; Nøkland 2016; Bacho & Chu 2023; derived here and enumerated in tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from theory.factors import Array, gram
from theory.linear_guess import Moments


def chained_feedback(derivatives: Sequence[Array], error: Array, feedback: Sequence[Array]) -> list[Array]:
    """Feedback alignment's guess, (example, unit) a tap. derivatives: φ' (example, unit) of every tap but the last.

    error: e (example, output unit). feedback: B_l (unit, next_unit). Raises ValueError for shapes that do not fit.
    """
    guesses = [error]
    for derivative, matrix in reversed(_paired(derivatives, feedback)):
        _check(matrix, (derivative.shape[1], guesses[0].shape[1]))
        guesses.insert(0, derivative * (guesses[0] @ matrix.T))
    return guesses


def direct_feedback(derivatives: Sequence[Array], error: Array, feedback: Sequence[Array]) -> list[Array]:
    """DFA's guess, (example, unit) a tap; as `chained_feedback`, with B_l (unit, output unit)."""
    guesses = []
    for derivative, matrix in _paired(derivatives, feedback):
        _check(matrix, (derivative.shape[1], error.shape[1]))
        guesses.append(derivative * (error @ matrix.T))
    return [*guesses, error]


def deterministic(guess: Array) -> Moments:
    """The moments of a guess (example, unit) that is always the same."""
    return Moments(guess, np.zeros_like(guess), np.zeros((len(guess), len(guess))))


@dataclass(frozen=True, eq=False)
class RandomFeedback:
    """One layer's guess over random B: ``derivative`` φ' (example, unit), ``above`` S (example, example), ``variance``.

    B (unit, error) has independent entries of mean zero and variance v, whatever their law.
    """

    derivative: Array
    above: Array
    variance: float

    def moments(self) -> Moments:
        """Mean zero and second moments."""
        return Moments(
            np.zeros_like(self.derivative),
            self.variance * self.derivative**2 * np.diagonal(self.above)[:, None],
            self.variance * gram(self.derivative) * self.above,
        )

    def squared_inner_product(self, gradient: Array, kernel: Array | None = None) -> float:
        """E⟨ĝ, g⟩²_K; over ‖g‖² E‖ĝ‖² it says what part of a random feedback's length is of use."""
        mixed = gradient if kernel is None else kernel @ gradient
        return self.variance * float(np.sum(gram(self.derivative * mixed) * self.above))


def random_chained_feedback(
    derivatives: Sequence[Array], error: Array, variances: Sequence[float]
) -> list[RandomFeedback]:
    """Feedback alignment over random B, a `RandomFeedback` for every tap but the last. variances: v of each B_l."""
    above, layers = gram(error), list[RandomFeedback]()
    for derivative, variance in reversed(list(zip(derivatives, variances, strict=True))):
        layers.insert(0, RandomFeedback(derivative, above, variance))
        above = layers[0].moments().products
    return layers


def random_direct_feedback(
    derivatives: Sequence[Array], error: Array, variances: Sequence[float]
) -> list[RandomFeedback]:
    """DFA over random B; as `random_chained_feedback`."""
    return [RandomFeedback(d, gram(error), v) for d, v in zip(derivatives, variances, strict=True)]


def output_jacobians(weights: Sequence[Array], derivatives: Sequence[Array]) -> list[Array]:
    """𝒥_l,b = W_last diag(φ'_last−1) ⋯ diag(φ'_l+1) W_l+1, (example, output unit, unit) for every tap but the last.

    weights: the next tap's (next_unit, unit), without a bias. derivatives: φ' (example, unit); both for every tap but
    the last. φ'_l itself is not a part of 𝒥_l.
    """
    jacobians: list[Array] = []
    for index in range(len(weights) - 1, -1, -1):
        if not jacobians:
            chain = np.broadcast_to(weights[index], (len(derivatives[index]), *weights[index].shape))
        else:
            chain = (jacobians[0] * derivatives[index + 1][:, None, :]) @ weights[index]
        jacobians.insert(0, chain)
    return jacobians


@dataclass(frozen=True, eq=False)
class LearnedFeedback:
    """One layer of FDFA: its mean, its gradient, the two parts of its bias and its variance.

    mean E ĝ, exact g, lag, spread: (example, unit), loss per unit of activation. The mean is g + lag + spread, but not
    as that sum: early in a history it is small and its terms are not. variances: of every entry, (example, unit).
    covariances: tr Cov(ĝ_b, ĝ_c), (example, example): all examples share B.
    """

    mean: Array
    exact: Array
    lag: Array
    spread: Array
    variances: Array
    covariances: Array

    def moments(self) -> Moments:
        """Mean and second moments, for both spaces."""
        return Moments(self.mean, self.variances, self.covariances)

    def terms(self, kernel: Array | None = None) -> dict[str, float]:
        """Squared norms of lag and spread, twice their product (``cross``) and the variance: they add up to the mse."""
        metric = np.eye(len(self.exact)) if kernel is None else kernel
        return {
            "lag": float(np.sum(metric * gram(self.lag))),
            "spread": float(np.sum(metric * gram(self.spread))),
            "cross": 2 * float(np.sum(metric * (self.lag @ self.spread.T))),
            "variance": float(np.sum(metric * self.covariances)),
        }


def forward_direct_feedback(
    jacobians: Sequence[Array],
    derivatives: Sequence[Array],
    error: Array,
    rate: float,
    steps: float,
    *,
    initial: Sequence[Array] | None = None,
    fourth: Sequence[float] | None = None,
    pair: Sequence[float] | None = None,
) -> list[LearnedFeedback]:
    """FDFA after ``steps`` steps of rate α at frozen weights, a `LearnedFeedback` a tap, the output tap last.

    jacobians: 𝒥 (example, output unit, unit). derivatives: φ'. error: e (example, output unit). steps: may be np.inf,
    the stationary state. initial: B_0 (output unit, unit), zero by default. fourth, pair: E u_i⁴ and E u_i² u_j² of
    each layer's noise, the Gaussian 3 and 1 by default.

    Raises ValueError for a rate outside (0, 1], negative steps and shapes that do not fit.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate must be above 0 and at most 1, got {rate}")
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    started = [np.zeros(jacobian.shape[1:]) for jacobian in jacobians] if initial is None else initial
    laws = zip(fourth or [3.0] * len(jacobians), pair or [1.0] * len(jacobians), strict=True)
    forgotten = (1 - rate) ** steps
    # 1 − (1−α)ᵗ and 1 − (1−α)²ᵗ, of which little is left where αt is small.
    learned, learned_twice = (
        -np.expm1(n * np.log1p(-rate)) if rate < 1 else float(steps > 0) for n in (steps, 2 * steps)
    )
    kept = rate / (2 - rate) * learned_twice
    examples = len(error)
    # Σ_n A_n: by it every layer's guess takes in the noise of all the others.
    total = sum((_squared(jacobian) for jacobian in jacobians), np.zeros((error.shape[1],) * 2))
    found = []
    for jacobian, (derivative, matrix), (fourth_moment, pair_moment) in zip(
        jacobians, _paired(derivatives, started), laws, strict=True
    ):
        _check(jacobian, (examples, error.shape[1], derivative.shape[1]))
        _check(matrix, jacobian.shape[1:])
        mean = jacobian.mean(0)
        own = np.matmul(error[:, None, :], jacobian)[:, 0]
        # Σ_n 𝒥_n[:, i] 𝒥_n[:, i]ᵀ for every unit i, so that Σ_n a_bi a_ci = e_bᵀ Q_i e_c.
        by_unit = np.matmul(jacobian.transpose(2, 1, 0), jacobian.transpose(2, 0, 1))
        strength = error @ (total + (pair_moment - 1) * by_unit.sum(0)) @ error.T
        images = np.matmul(error, by_unit) * derivative.T[:, :, None]  # φ'_bi e_bᵀ Q_i, (unit, example, output unit)
        feeling = error * derivative.T[:, :, None]  # φ'_bi e_b, (unit, example, output unit)
        excess = fourth_moment - pair_moment - 1
        scale = kept / examples**2
        found.append(
            LearnedFeedback(
                mean=derivative * (error @ (forgotten * matrix + learned * mean)),
                exact=derivative * own,
                lag=forgotten * derivative * (error @ (matrix - mean)),
                spread=derivative * (error @ mean - own),
                variances=scale
                * (derivative**2 * np.diagonal(strength)[:, None] + excess * np.einsum("ubo,ubo->bu", images, feeling)),
                covariances=scale
                * (gram(derivative) * strength + excess * np.tensordot(images, feeling, axes=((0, 2), (0, 2)))),
            )
        )
    zero, none = np.zeros_like(error), np.zeros((examples, examples))
    return [*found, LearnedFeedback(error, error, zero, zero, zero, none)]


def _squared(jacobian: Array) -> Array:
    """Σ_n 𝒥_n 𝒥_nᵀ, (output unit, output unit)."""
    return np.tensordot(jacobian, jacobian, axes=((0, 2), (0, 2)))


def _paired(derivatives: Sequence[Array], feedback: Sequence[Array]) -> list[tuple[Array, Array]]:
    if len(derivatives) != len(feedback):
        raise ValueError(f"feedback must hold a matrix a hidden layer, {len(derivatives)} of them, got {len(feedback)}")
    return list(zip(derivatives, feedback, strict=True))


def _check(array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"expected an array of shape {shape}, got {array.shape}")
