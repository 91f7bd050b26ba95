"""fganalysis measures gradient estimators: bias, variance and cosine with honest intervals, beside their theory."""

from __future__ import annotations

from fganalysis import (
    curvature,
    datasets,
    estimators,
    gradient_stream,
    networks,
    plotting,
    schema,
    subspace,
    testing,
)
from fganalysis.capturing import capture
from fganalysis.checking import Verdict, check_unbiased
from fganalysis.diagnosis import diagnose
from fganalysis.estimated_gradients import estimate_gradient
from fganalysis.predictions import predict, predict_variance_parts
from fganalysis.sampling import sample
from fganalysis.snapshot import Snapshot
from fganalysis.store import open_results
from fganalysis.summary import agreement, summary, z_scores
from fganalysis.training import train, train_seeds
from fganalysis.variance_parts import VarianceParts, variance_parts

__all__ = [
    "Snapshot",
    "VarianceParts",
    "Verdict",
    "agreement",
    "capture",
    "check_unbiased",
    "curvature",
    "datasets",
    "diagnose",
    "estimate_gradient",
    "estimators",
    "gradient_stream",
    "networks",
    "open_results",
    "plotting",
    "predict",
    "predict_variance_parts",
    "sample",
    "schema",
    "subspace",
    "summary",
    "testing",
    "train",
    "train_seeds",
    "variance_parts",
    "z_scores",
]
