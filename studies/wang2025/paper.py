"""What Wang, Markou & Campbell 2025 print, and how the pages name the methods."""

from __future__ import annotations

NAMES = {
    "weight": "weight perturbation",
    "activity": "activity perturbation",
    "upstream": "W̃ᵀ",
    "orthogonal, k = 1": "W̃⊥, k = 1",
    "orthogonal, k = 10": "W̃⊥, k = 10",
    "orthogonal, k = 25": "W̃⊥, k = 25",
    "orthogonal, k = rank": "W̃⊥, k = rank",
    "orthogonal, k = 10, iterated": "W̃⊥, k = 10, iterated",
    "preconditioned": "W̃^P",
    "backpropagation": "backpropagation",
}
WIDTHS = (64, 128, 256, 512)
# What the paper prints, training accuracy after 300 epochs.
TABLE_3 = {
    "weight": (0.121, 0.124, 0.179, 0.177),
    "activity": (0.201, 0.275, 0.309, 0.319),
    "upstream": (0.268, 0.312, 0.376, 0.494),
    "orthogonal, k = 10": (0.268, 0.323, 0.434, 0.581),
    "backpropagation": (0.536, 0.709, 0.887, 1.000),
}
TABLE_1 = {
    "upstream": 0.312,
    "orthogonal, k = rank": 0.311,
    "orthogonal, k = 25": 0.323,
    "orthogonal, k = 10": 0.324,
    "orthogonal, k = 1": 0.275,
}
# Guess → variance, bias and covariance norm; which layer and epoch, table 2 does not say.
TABLE_2 = {
    "upstream": (1.50e-4, 2.75e-4, 0.084),
    "orthogonal, bottom": (1.30e-5, 2.83e-4, 0.085),
    "orthogonal": (1.03e-5, 2.86e-5, 0.085),
}
# Each with half a unit of its last printed digit where our interval may be narrower: W̃⊥'s covariance norm is √(d −
# k)/d whatever the weights.
METRICS = {"variance": 0.0, "bias": 0.0, "covariance_norm": 5e-4}
# Trained by → the guess measured, variance and bias in layer 1, training and test accuracy.
TABLE_5 = {
    "orthogonal, k = 10": ("orthogonal", 6.33e-6, 3.63e-5, 0.433, 0.383),
    "preconditioned": ("preconditioned", 1.75e-4, 1.35e-8, 0.367, 0.314),
    "upstream": ("upstream", 7.04e-5, 1.68e-4, 0.375, 0.316),
}
RANKS: dict[int, tuple[float, ...]] = {128: (64, 97, 10), 512: (260, 387, 10)}
OVERLAPS: dict[int, tuple[float, ...]] = {128: (0.91, 0.84, 1.0)}
