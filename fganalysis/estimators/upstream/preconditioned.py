"""Preconditioned upstream guess (W̃^P): the upstream guess whitened by its own regularised covariance.

    J = U S Vᵀ,  J_σ = U (S² + σI)^½ Vᵀ;   y = (J_σᵀJ_σ)^(−½) J_σᵀ ε = V Uᵀ ε;   ĝ = t y

U, S and V belong to the r = rank(J) nonzero singular values only, and (·)^(−½) is the inverse root on the range. V Uᵀ
is the partial isometry of the polar decomposition. All factors S² + σ cancel, so σ > 0 has no effect, and the law is
that of the orthogonal guess (W̃⊥) with k = "rank".

Random: ε. Unbiased: the mean is V Vᵀ g = g, because g = Jᵀ g_next lies in the row space of J, spanned by V. Sources:
docs/mathematics.md#preconditioned-upstream-guess; Wang, Markou, Campbell 2025.

**Why null directions are dropped.** A thin SVD has min(unit, next_unit) columns, including those of zero singular
values. With J_σ these get the singular value √σ, and V Uᵀ keeps them, as in the source: dead units are then perturbed
like live ones. But J does not determine these columns. Any orthonormal vectors of the two null spaces will do, in any
pairing. A rule A(J) that rotates with the units of the layer, A(J Q) = Qᵀ A(J), must drop them. Proof: let v be a unit
vector with J v = 0, and Q = I − 2 v vᵀ its reflection. Then J Q = J, so A = Q A and vᵀA = −vᵀA = 0. The mean of A over
random choices of these columns is the same partial isometry. The mean guess does not change, as vᵀg = 0, and with
separate passes the variance falls by ‖g‖² for each null direction.

Singular values up to max(unit, next_unit) ε_64 σ_1 count as zero. This is decided in double precision for every
network, with W and φ' taken as exact. Most examples need no SVD. None of the following is an approximation:

    next_unit < unit   U Vᵀ = (J Jᵀ)^(−½) J, from the small J Jᵀ in double precision. Where its eigenvalues span more
                       than 1 to `LEAST_RATIO`, or one is zero (few live units), J itself is decomposed.
    next_unit ≥ unit   where the columns of J that belong to live units (not zero) are independent, y is the entry of ε
                       of each live unit's number, and zero elsewhere.

The second case gives another y for the same ε. The law of all guesses is the same if ε is isotropic
(`fganalysis.estimators.noise.is_isotropic`) and every example draws its own ε. Under the same conditions the first case
uses a Cholesky factor of J Jᵀ as its root. Proof: V is an orthonormal basis of the axes of the live units. Complete U
to a square orthogonal matrix [U U⊥]. Up to an orthogonal matrix of the live units, y = V Uᵀ ε consists of r entries of
the rotated noise [U U⊥]ᵀ ε, and the shortcut consists of r entries of ε. The law of isotropic noise does not change by
a rotation, so both y have the same law. The rotations differ between examples and taps, but their ε are independent, so
the joint law is the same too. A guess depends on ε only through y.

That the columns are independent is verified: σ_min(W D) ≥ σ_min(W) min d, with a bound of σ_min(W) from the solution of
a linear system (`_condition`). Examples for which the bound does not suffice are decomposed. The shortcut is not used
where examples share ε, as a different rotation for each example would change the correlation of examples, nor for
noise of signs, as rotated signs are no signs, nor with ``exact``. There every Jacobian gets its partial isometry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.arguments import check_flag, check_number
from fganalysis.capturing.jacobian import Jacobian
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Layers
from fganalysis.capturing.upstream import START_SEED, UpstreamJacobian
from fganalysis.estimators.checks import guessing
from fganalysis.estimators.directional import (
    Factor,
    Slope,
    check_switches,
    decomposed,
    factors_of_decomposed,
    guess_along,
    passes_along,
    per_example,
)
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise, is_isotropic
from fganalysis.estimators.passes import Passes

LEAST_RATIO = 1e-4  # least ratio of eigenvalues of J Jᵀ: the inverse root then has an error of 1e-12
PROBES, LEAST_PART = 8, 0.01  # 8 normal numbers are all within ±0.01 of zero with probability 0.008^8
PAIRS_AT_ONCE = 1024  # of rows of W
EXAMPLES_AT_ONCE = 16  # decomposed


@dataclass(frozen=True)
class PreconditionedUpstream:
    """ĝ = t (J_σᵀJ_σ)^(−½) J_σᵀ ε on the range of Jᵀ; ``sigma`` > 0 regularises as in the paper and cancels.

    ``exact`` uses LAPACK's SVD of every example. The other fields are the switches of
    docs/notation.md#the-three-switches.
    """

    sigma: float = 1e-5
    exact: bool = False
    noise: Noise = GAUSSIAN
    shared: bool = False
    slope: Slope = "example"
    layers: Layers = "joint"

    def __post_init__(self) -> None:
        check_number("sigma", self.sigma, above=0)
        check_flag("exact", self.exact)
        check_switches(self)

    @guessing
    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        jacobians = [jacobian for jacobian in decomposed(snapshot) if jacobian is not None]
        factors = factors_of_decomposed(snapshot, [self._factor(snapshot, jacobian) for jacobian in jacobians])
        return guess_along(self, snapshot, factors, n_guesses, generator)

    def passes(self, snapshot: Snapshot, n_guesses: int = 1) -> Passes:
        return passes_along(self, snapshot, n_guesses, beside=["polar factor of every example's upstream Jacobian"])

    def _factor(self, snapshot: Snapshot, of_tap: Jacobian) -> Factor:
        index, jacobian = snapshot.taps.index(of_tap.tap), of_tap.kernel
        if not of_tap.is_plain or jacobian is None:
            return snapshot.remember(("preconditioned, written out", index), lambda: _written_out(of_tap))
        next_units, units = jacobian.weight.shape
        in_law = not self.shared and is_isotropic(self.noise)
        if not self.exact and next_units < units:
            key = ("preconditioned by gram", in_law, index)
            return snapshot.remember(key, lambda: _by_gram(jacobian, in_law))
        if not self.exact and in_law:
            return snapshot.remember(("preconditioned in law", index), lambda: _in_law(jacobian))
        return snapshot.remember(("preconditioned", index), lambda: per_example(of_tap, _partial_isometry(jacobian)))


def _by_gram(jacobian: UpstreamJacobian, in_law: bool = False) -> Factor:
    """A = Jᵀ (J Jᵀ)^(−½), computed from the SVD for examples whose J Jᵀ is too ill-conditioned.

    ``in_law`` gives Jᵀ L⁻ᵀ with J Jᵀ = L Lᵀ instead, which has the same law for isotropic noise.
    """
    weight, squares = jacobian.weight.double(), jacobian.derivative.double().square()
    # Σ_u d_u² W_iu W_ju as one product for all examples: a fifth of the time of every J_b times its transpose.
    rows = weight.split(max(1, PAIRS_AT_ONCE // len(weight)))
    pairs = (squares @ (part[:, None, :] * weight).flatten(0, 1).T for part in rows)
    gram = torch.cat(list(pairs), dim=1).unflatten(1, (len(weight), len(weight)))
    root, ratio = _inverse_factor(gram) if in_law else _inverse_root(gram)
    far = ratio <= LEAST_RATIO
    by_root = root.to(jacobian.weight)
    return _with_decomposed(jacobian, far, lambda noise: jacobian.transposed_product(_times(noise, by_root)))


def _inverse_root(gram: Tensor) -> tuple[Tensor, Tensor]:
    """(J Jᵀ)^(−½) of every example, and the smallest over the largest eigenvalue of J Jᵀ, (example,)."""
    values, vectors = torch.linalg.eigh(gram)
    ratio = values[:, 0] / torch.where(values[:, -1] > 0, values[:, -1], 1.0)
    scale = torch.where(ratio[:, None] > 0, values, 1.0).rsqrt()
    return (vectors * scale[:, None, :]) @ vectors.mT, ratio


def _inverse_factor(gram: Tensor) -> tuple[Tensor, Tensor]:
    """L⁻¹ of every example, and a lower bound of that ratio: 1/(‖J Jᵀ‖_F ‖L⁻¹‖_F²)."""
    triangle, failed = torch.linalg.cholesky_ex(gram)
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    triangle = torch.where(failed[:, None, None] != 0, eye, triangle)
    inverse = torch.linalg.solve_triangular(triangle, eye.expand_as(triangle), upper=False)
    size = torch.linalg.matrix_norm(gram) * torch.linalg.matrix_norm(inverse).square()
    return inverse, torch.where(failed == 0, 1 / size, 0.0)


def _in_law(jacobian: UpstreamJacobian) -> Factor:
    """The shortcut: noise at the live units. Examples whose columns may be dependent get their partial isometry."""
    units = jacobian.weight.shape[1]
    sizes = jacobian.derivative.abs() * (jacobian.weight.abs().amax(0) > 0)
    dead = (sizes == 0).to(jacobian.weight)
    most, least = sizes.amax(1).double(), (sizes + dead * torch.finfo(dead.dtype).max).amin(1).double()
    tolerance = max(jacobian.weight.shape) * torch.finfo(torch.float64).eps
    dependent = (most > 0) & (_condition(jacobian.weight) * least <= tolerance * most)
    live = 1 - dead
    return _with_decomposed(jacobian, dependent, lambda noise: noise[..., :units] * live)


def _condition(weight: Tensor) -> float:
    """A lower bound of σ_min/σ_max of the columns of W (next_unit, unit) that are not zero; 0 where none is certain.

    For Wᵀx = b − r and u, v the singular vectors of σ_min: |v·b − v·r| = σ_min |u·x|, hence σ_min ≥ (|v·b| − ‖r‖)/‖x‖.
    Of `PROBES` Gaussian b all have |v·b| < `LEAST_PART` with a probability of 2e-17, whatever W is
    (Dixon 1983). One decomposition of W, not of WᵀW, which would square the condition. A tall W is multiplied by a
    Gaussian S from the left, σ_min(S W) ≤ ‖S‖ σ_min(W).
    """
    used = weight.abs().amax(0) > 0
    columns = (weight if bool(used.all()) else weight[:, used]).double()
    rows, size = columns.shape
    if not size or rows < size:
        return float(not size)
    generator = torch.Generator().manual_seed(START_SEED)
    normal = torch.randn(size, PROBES + (rows if rows > size else 0), generator=generator, dtype=torch.float64)
    probes, sketch = normal.to(columns.device).tensor_split([PROBES], dim=1)
    square, stretch = (sketch @ columns, sketch.norm()) if rows > size else (columns, columns.new_ones(()))
    solutions, failed = torch.linalg.solve_ex(square.T, probes)
    left_over = torch.linalg.vector_norm(solutions.T @ square - probes.T, dim=1).amax()
    length = torch.linalg.vector_norm(solutions, dim=0).amax()
    ratio = float((LEAST_PART - left_over) / (length * stretch * columns.norm()))
    return ratio if ratio > 0 and not int(failed) else 0.0


def _with_decomposed(jacobian: UpstreamJacobian, chosen: Tensor, direct: Callable[[Tensor], Tensor]) -> Factor:
    """``direct``, with the partial isometry in its place for the ``chosen`` examples (example,)."""
    (rows,) = chosen.nonzero(as_tuple=True)
    decomposed = _partial_isometry(UpstreamJacobian(jacobian.weight, jacobian.derivative[rows]))

    def apply(noise: Tensor) -> Tensor:
        directions = direct(noise)
        if len(rows):
            directions[:, rows] = _times(noise[:, rows], decomposed)
        return directions

    return Factor(jacobian.weight.shape[0], apply)


def _times(noise: Tensor, matrices: Tensor) -> Tensor:
    """Noise (guess, example, next_unit) times a matrix (example, next_unit, unit) of each example."""
    return torch.bmm(noise.transpose(0, 1), matrices).transpose(0, 1)


def _written_out(jacobian: Jacobian) -> Factor:
    """The partial isometry of Jacobians that are no kernel, in double precision."""
    parts = []
    for matrices in jacobian.dense().split(EXAMPLES_AT_ONCE):
        left, values, right = torch.linalg.svd(matrices.double(), full_matrices=False)
        kept = values > max(jacobian.shape) * torch.finfo(torch.float64).eps * values[:, :1]
        # In the precision of the network its rank is what rounding lets one see.
        kept &= values > max(jacobian.shape) * torch.finfo(matrices.dtype).eps * values[:, :1]
        parts.append(((left * kept[:, None, :]) @ right).to(matrices.dtype))
    return per_example(jacobian, torch.cat(parts))


def _partial_isometry(jacobian: UpstreamJacobian) -> Tensor:
    """U Vᵀ of every example's nonzero singular values, (example, next_unit, unit); zero where there is none."""
    tolerance = max(jacobian.weight.shape) * torch.finfo(torch.float64).eps
    parts = [jacobian.weight.new_zeros(0, *jacobian.weight.shape)]
    for derivative in jacobian.derivative.split(EXAMPLES_AT_ONCE):
        matrices = UpstreamJacobian(jacobian.weight.double(), derivative.double()).dense()
        left, values, right = torch.linalg.svd(matrices, full_matrices=False)
        kept = values > tolerance * values[:, :1]
        parts.append(((left * kept[:, None, :]) @ right).to(jacobian.weight))
    return torch.cat(parts)
