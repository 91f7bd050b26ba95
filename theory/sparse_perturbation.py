"""Sparse perturbation: fourth-order moments of V_i = m_i b e_i/√(p q), masks m_i of an entry and b of a noise vector.

m_i is 1 with probability p and b with probability q, all independent. The variance of V_i is 1, and

    E V_i⁴ = fourth/(p q)        E V_i² V_j² = pair/q

With these numbers `theory.weight_perturbation` has the moments of the guess. Source: derived here.
"""

from __future__ import annotations


def fourth(of_noise: float, keep: float, keep_layers: float) -> float:
    """E V_i⁴. of_noise: E e_i⁴. keep: p. keep_layers: q."""
    return of_noise / (keep * keep_layers)


def pair(of_noise: float, keep_layers: float) -> float:
    """E V_i² V_j², i ≠ j of one noise vector. of_noise: E e_i² e_j²."""
    return of_noise / keep_layers
