"""Which singular values count as equal, and means over all bases of the span of their vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST_GAP = 1e-10  # singular values closer than this, relative to the largest, are equal: rounding mixes their vectors
GAP_ROUNDING = 10.0  # torch's orthogonal matrices in single precision have gaps of five times their precision


def rounding_gap(smaller_side: int, precision: float) -> float:
    """Singular values closer than this share of the largest may differ only by rounding errors of the matrix."""
    return max(LEAST_GAP, GAP_ROUNDING * math.sqrt(smaller_side) * precision)


def spread_evenly(parts: Tensor, distinct: Tensor) -> Tensor:
    """Parts (…, mode), where the parts of equal singular values are replaced by their mean. distinct: see `Modes`."""
    if bool(distinct.all()):
        return parts
    span = _spans(distinct).expand(parts.shape)
    sums, sizes = (torch.zeros_like(parts).scatter_add(-1, span, values) for values in (parts, torch.ones_like(parts)))
    return (sums / sizes.clamp(min=1)).gather(-1, span)


def _spans(distinct: Tensor) -> Tensor:
    """The number of the span of equal singular values that each mode belongs to, (…, mode)."""
    return torch.cat([distinct.new_zeros((*distinct.shape[:-1], 1)), distinct], dim=-1).cumsum(-1)


def last_span(distinct: Tensor) -> Tensor:
    """Whether a mode belongs to the last span, (…, mode)."""
    spans = _spans(distinct)
    return spans == spans[..., -1:]
