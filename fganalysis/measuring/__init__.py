"""What is drawn and computed from a snapshot: guesses, spectra, subspaces, curvature.

Whoever measures has the metrics of single papers, each registered as a user's own would be.
"""

from __future__ import annotations

from fganalysis.metrics import register_metric
from fganalysis.papers import wang2025

register_metric(wang2025.METRIC)
