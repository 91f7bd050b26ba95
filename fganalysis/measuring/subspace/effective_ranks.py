"""The number of directions that matter in a spectrum: shares of energy and effective ranks from singular values."""

from __future__ import annotations

import torch
from torch import Tensor

from fganalysis.arguments import check_number
from fganalysis.measuring.sound_arrays import ArrayOrTensor, double, like, precision
from fganalysis.measuring.subspace.singular_modes import check_descending

SHARE_TOLERANCE = 1e-12  # so that nine of ten equal modes hold 0.9 of the energy in spite of rounding


def energy_curve(values: ArrayOrTensor) -> ArrayOrTensor:
    """k ↦ Σ_{i≤k} σ_i² / Σ σ_i², the share of the energy in the k leading modes, (…, mode); NaN for a zero spectrum.

    Raises ValueError for singular values (…, mode) that rise.
    """
    return like(_descending_shares(values).cumsum(-1), values)


def stable_rank(values: ArrayOrTensor) -> ArrayOrTensor:
    """‖A‖_F²/‖A‖₂² = Σ σ_i² / σ₁² from singular values (…, mode); NaN for a zero spectrum."""
    return like(1 / _shares(values).amax(-1), values)


def entropy_rank(values: ArrayOrTensor) -> ArrayOrTensor:
    """exp(−Σ p_i ln p_i) with p_i = σ_i²/Σ σ², the shares of energy; NaN for a zero spectrum.

    Roy and Vetterli 2007 define their effective rank with p_i = σ_i/Σ σ instead, which is larger.
    """
    return like(torch.special.entr(_shares(values)).sum(-1).exp(), values)


def participation_ratio(values: ArrayOrTensor) -> ArrayOrTensor:
    """(Σ σ_i²)² / Σ σ_i⁴ from singular values (…, mode); NaN for a zero spectrum."""
    return like(1 / _shares(values).square().sum(-1), values)


def modes_for_energy(values: ArrayOrTensor, share: float = 0.9) -> ArrayOrTensor:
    """The least number of leading modes that holds ``share`` of the energy, to within 1e-12; 0 for a zero spectrum.

    Raises ValueError for a share outside (0, 1] and for singular values that rise.
    """
    check_number("share", share, above=0, most=1)
    short = _descending_shares(values).nan_to_num(1.0).cumsum(-1) < share - SHARE_TOLERANCE
    nonzero = double(values, "values", 1).amax(-1) > 0
    return like((short.sum(-1) + 1) * nonzero, values)


def srank(values: ArrayOrTensor, delta: float = 0.01) -> ArrayOrTensor:
    """The least number of leading modes that hold 1 − δ of the sum of singular values: Σ_{i≤k} σ_i ≥ (1 − δ) Σ σ_i.

    This is srank_δ, the effective rank of Kumar et al. 2020, who take δ = 0.01 and features (example, unit). It is not
    the stable rank, and it adds singular values where `modes_for_energy` adds their squares: small ones count for more.
    `random_srank` is its value for a matrix of independent entries. 0 for a zero spectrum. Shares are compared to
    within 1e-12.

    Raises ValueError for a delta outside [0, 1) and for singular values that rise.
    """
    check_number("delta", delta, least=0, below=1)
    sigma = double(values, "values", 1)
    check_descending(sigma, precision(values))
    largest = sigma.amax(-1, keepdim=True)
    parts = (sigma / torch.where(largest > 0, largest, 1.0)).cumsum(-1)
    short = parts < (1 - delta - SHARE_TOLERANCE) * parts[..., -1:]
    return like((short.sum(-1) + 1) * (largest[..., 0] > 0), values)


def _shares(values: ArrayOrTensor) -> Tensor:
    """σ_i² / Σ σ². Values are first divided by the largest, because squares of tiny values underflow."""
    sigma = double(values, "values", 1)
    if bool((sigma < 0).any()):
        raise ValueError("singular values must not be negative")
    squares = (sigma / sigma.amax(-1, keepdim=True)).square()
    return squares / squares.sum(-1, keepdim=True)


def _descending_shares(values: ArrayOrTensor) -> Tensor:
    check_descending(double(values, "values", 1), precision(values))
    return _shares(values)
