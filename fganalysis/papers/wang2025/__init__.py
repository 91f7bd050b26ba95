"""The metrics of Wang et al. 2025, exactly as their paper prints them, with names that begin with ``wang2025_``.

Its bias and its variance differ from those of every result: `theory.wang2025` has the formulas. Measurement
(`measured`, `intervals`) and prediction (`predicted`) share no code and meet only in `METRIC`.
"""

from __future__ import annotations

from fganalysis.metrics import Metric
from fganalysis.papers.wang2025.measured import estimates, keep
from fganalysis.papers.wang2025.predicted import theory
from fganalysis.results.schema import GRADIENT_UNITS, LAYER, SQUARED_UNITS, Variable

METRIC = Metric(
    name="wang2025",
    variables={
        "wang2025_bias": Variable(
            "norm of the bias averaged over examples (Wang et al. 2025)", GRADIENT_UNITS, (LAYER,)
        ),
        "wang2025_variance": Variable(
            "norm over units of mean squared error minus squared mean bias (Wang et al. 2025)", SQUARED_UNITS, (LAYER,)
        ),
    },
    keep=keep,
    estimates=estimates,
    theory=theory,
    exact={
        "wang2025_covariance_norm": Variable("Frobenius norm of Sigma - I over units, batch mean", "1", (LAYER,)),
        "wang2025_overlap": Variable("norm of the gradient's projection over its norm, batch mean", "1", (LAYER,)),
        "wang2025_squared_overlap": Variable("squared overlap, batch mean", "1", (LAYER,)),
    },
    compared=("wang2025_variance",),
)
