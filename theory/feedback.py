"""Feedback alignment, DFA and FDFA: guesses that send the output error back through matrices other than the network's.

    feedback alignment   ĝ_l = φ' ⊙ (B_l ĝ_{l+1})     B_l replaces W_{l+1}ᵀ
    direct (DFA)         ĝ_l = φ' ⊙ (B_l e)
    learned (FDFA)       ĝ_l = φ' ⊙ (B_lᵀ e)          B_l ← (1−α)B_l + αM_l,
                                                      M_l = (1/N) Σ_b d_b u_l,bᵀ,   d_b = Σ_m 𝒥_m,b u_m,b

At the output tap the guess is e, the exact gradient. 𝒥_l,b = ∂s_last/∂φ(s_l), so the exact gradient of a hidden tap is
g_l,b = φ'_b ⊙ 𝒥_l,bᵀ e_b. Given B, the guesses of feedback alignment and DFA are not random: they have a bias and no
variance.

**Random B.** Let the entries of B be independent, with mean zero and variance v. Then the mean guess is zero and

    E ĝ_b·ĝ_c = v (φ'_b·φ'_c) S_bc,        E⟨ĝ, g⟩² = v Σ_bc (p_b·p_c) S_bc,   p = φ' ⊙ K g

For DFA S_bc = e_b·e_c. For feedback alignment S_bc = E ĝ_b·ĝ_c of the layer above, whose B is independent.

**FDFA** after t steps at frozen weights. The M of different steps are independent, with mean 𝒥̄ = (1/N) Σ_b 𝒥_b, so

    E ĝ_b       = φ'_b ⊙ ((1−α)ᵗB_0 + (1 − (1−α)ᵗ)𝒥̄)ᵀe_b
    E ĝ_b − g_b = φ'_b ⊙ (1−α)ᵗ(B_0 − 𝒥̄)ᵀe_b  +  φ'_b ⊙ (𝒥̄ − 𝒥_b)ᵀe_b          lag + spread over examples
    Cov(ĝ_b, ĝ_c) = α/(2−α) · (1 − (1−α)²ᵗ) · Cov of one step's φ' ⊙ (Mᵀe)       from Σ_k α²(1−α)²ᵏ, k < t

For one step, let a_b,n = 𝒥_l,nᵀe_b and A_n = Σ_m 𝒥_m,n 𝒥_m,nᵀ over all hidden layers, with noise of fourth moments
``fourth`` and ``pair``. For the noise u of example n, entry i of u (d·e_b) times entry j of u (d·e_c) has the mean

    δ_ij (pair a_b·a_c + the same of the other layers) + pair (a_bi a_cj + a_bj a_ci) + (fourth − 3 pair) δ_ij a_bi a_ci

Less the product of the two means, summed over units and over N examples of independent noise, and divided by N²:

    tr Cov = (1/N²) Σ_n { (φ'_b·φ'_c) [e_bᵀA_n e_c + (pair−1) a_b·a_c] + (fourth−pair−1) Σ_i φ'_bi φ'_ci a_bi a_ci }

For Gaussian noise, φ' = 1, b = c, the same 𝒥 for all examples and n units this is (1/N)[(n+1)‖𝒥ᵀe‖² + n eᵀHe], with
H = A − 𝒥𝒥ᵀ. Sources: docs/mathematics.md#feedback; Lillicrap et al. 2016; Nøkland 2016; Bacho & Chu 2023; the moments
are derived here and checked by enumeration in tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from theory.factors import Array, gram
from theory.linear_guess import Moments


def chained_feedback(derivatives: Sequence[Array], error: Array, feedback: Sequence[Array]) -> list[Array]:
    """The guess of feedback alignment, (example, unit) for each tap, the output tap last.

    derivatives: φ' (example, unit) of every tap but the last. error: e (example, output unit). feedback: B_l
    (unit, next_unit). Raises ValueError for shapes that do not fit.
    """
    guesses = [error]
    for derivative, matrix in reversed(_paired(derivatives, feedback)):
        _check(matrix, (derivative.shape[1], guesses[0].shape[1]))
        guesses.insert(0, derivative * (guesses[0] @ matrix.T))
    return guesses


def direct_feedback(derivatives: Sequence[Array], error: Array, feedback: Sequence[Array]) -> list[Array]:
    """The guess of DFA, (example, unit) a tap. Arguments as in `chained_feedback`, but B_l (unit, output unit)."""
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
    """The guess of one layer as a random variable over B, whose entries are independent with mean zero.

    derivative: φ' (example, unit). above: S (example, example). variance: v of an entry of B, whatever its law.
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
        """E⟨ĝ, g⟩²_K. Divided by ‖g‖² E‖ĝ‖² it is the share of the squared guess that lies along the gradient."""
        mixed = gradient if kernel is None else kernel @ gradient
        return self.variance * float(np.sum(gram(self.derivative * mixed) * self.above))


def random_chained_feedback(
    derivatives: Sequence[Array], error: Array, variances: Sequence[float]
) -> list[RandomFeedback]:
    """Feedback alignment with random B: a `RandomFeedback` for every tap but the last. variances: v of each B_l."""
    above, layers = gram(error), list[RandomFeedback]()
    for derivative, variance in reversed(list(zip(derivatives, variances, strict=True))):
        layers.insert(0, RandomFeedback(derivative, above, variance))
        above = layers[0].moments().products
    return layers


def random_direct_feedback(
    derivatives: Sequence[Array], error: Array, variances: Sequence[float]
) -> list[RandomFeedback]:
    """DFA with random B: a `RandomFeedback` for every tap but the last. variances: v of each B_l."""
    return [RandomFeedback(d, gram(error), v) for d, v in zip(derivatives, variances, strict=True)]


def output_jacobians(weights: Sequence[Array], derivatives: Sequence[Array]) -> list[Array]:
    """𝒥_l,b = W_last diag(φ'_last−1) ⋯ diag(φ'_l+1) W_l+1, (example, output unit, unit) for every tap but the last.

    weights: those of the next tap, (next_unit, unit), without a bias. derivatives: φ' (example, unit). Both are given
    for every tap but the last. 𝒥_l does not contain φ'_l.
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
    """The moments of FDFA in one layer.

    Attributes:
        mean: E ĝ, (example, unit), loss per unit of activation. It equals exact + lag + spread, but is computed apart:
            early in a history the mean is small and its three terms cancel.
        exact: the gradient g, in the same shape and units.
        lag: the part of the bias that comes from the initial B and fades.
        spread: the part of the bias that comes from the differences of 𝒥 between examples and stays.
        variances: of every entry, (example, unit).
        covariances: tr Cov(ĝ_b, ĝ_c), (example, example), as all examples share B.
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
        """Parts of the mse: squared norms of lag and spread, twice their inner product (``cross``), and variance."""
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
    """FDFA after ``steps`` steps of rate α at frozen weights: a `LearnedFeedback` for each tap, the output tap last.

    jacobians: 𝒥 (example, output unit, unit). derivatives: φ' (example, unit). error: e (example, output unit). steps:
    np.inf for the stationary state. initial: B_0 (output unit, unit), by default zero. fourth, pair: E u_i⁴ and
    E u_i² u_j² of the noise of each layer, by default the Gaussian 3 and 1.

    Raises ValueError for a rate outside (0, 1], negative steps and shapes that do not fit.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate must be above 0 and at most 1, got {rate}")
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    started = [np.zeros(jacobian.shape[1:]) for jacobian in jacobians] if initial is None else initial
    laws = zip(fourth or [3.0] * len(jacobians), pair or [1.0] * len(jacobians), strict=True)
    forgotten = (1 - rate) ** steps
    # 1 − (1−α)ᵗ and 1 − (1−α)²ᵗ by expm1, because the plain differences lose digits where αt is small.
    learned, learned_twice = (
        -np.expm1(n * np.log1p(-rate)) if rate < 1 else float(steps > 0) for n in (steps, 2 * steps)
    )
    kept = rate / (2 - rate) * learned_twice
    examples = len(error)
    # Σ_n A_n, through which the guess of a layer has the noise of all other layers.
    total = sum((_squared(jacobian) for jacobian in jacobians), np.zeros((error.shape[1],) * 2))
    layers = []
    for jacobian, (derivative, matrix), (fourth_moment, pair_moment) in zip(
        jacobians, _paired(derivatives, started), laws, strict=True
    ):
        _check(jacobian, (examples, error.shape[1], derivative.shape[1]))
        _check(matrix, jacobian.shape[1:])
        mean = jacobian.mean(0)
        pulled = np.matmul(error[:, None, :], jacobian)[:, 0]
        # Σ_n 𝒥_n[:, i] 𝒥_n[:, i]ᵀ for every unit i, so that Σ_n a_bi a_ci = e_bᵀ Q_i e_c.
        by_unit = np.matmul(jacobian.transpose(2, 1, 0), jacobian.transpose(2, 0, 1))
        strength = error @ (total + (pair_moment - 1) * by_unit.sum(0)) @ error.T
        images = np.matmul(error, by_unit) * derivative.T[:, :, None]  # φ'_bi e_bᵀ Q_i, (unit, example, output unit)
        scaled_error = error * derivative.T[:, :, None]  # φ'_bi e_b, (unit, example, output unit)
        excess = fourth_moment - pair_moment - 1
        scale = kept / examples**2
        layers.append(
            LearnedFeedback(
                mean=derivative * (error @ (forgotten * matrix + learned * mean)),
                exact=derivative * pulled,
                lag=forgotten * derivative * (error @ (matrix - mean)),
                spread=derivative * (error @ mean - pulled),
                variances=scale
                * (
                    derivative**2 * np.diagonal(strength)[:, None]
                    + excess * np.einsum("ubo,ubo->bu", images, scaled_error)
                ),
                covariances=scale
                * (gram(derivative) * strength + excess * np.tensordot(images, scaled_error, axes=((0, 2), (0, 2)))),
            )
        )
    zero, none = np.zeros_like(error), np.zeros((examples, examples))
    return [*layers, LearnedFeedback(error, error, zero, zero, zero, none)]


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
