"""The names that `fganalysis` gives: `import fganalysis as fga` reads this file when the first of them is used."""

from __future__ import annotations

from fganalysis import estimators, metrics, monitoring, predictions, testing
from fganalysis.assertions.unbiased import Verdict, check_unbiased
from fganalysis.capturing.capture import capture
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import noise
from fganalysis.estimators.passes import Passes
from fganalysis.measuring import curvature, gradient_stream, subspace
from fganalysis.measuring.advise import advise
from fganalysis.measuring.advising.advice import Advice
from fganalysis.measuring.diagnose import diagnose
from fganalysis.measuring.difference_step import difference_step
from fganalysis.measuring.measure import measure
from fganalysis.measuring.progress import progress
from fganalysis.measuring.progress_per_cost import progress_per_cost
from fganalysis.measuring.sample import sample
from fganalysis.measuring.splitting import merge_parts, sample_part
from fganalysis.measuring.truth import Truth, truth
from fganalysis.measuring.variance_parts import variance_parts
from fganalysis.metrics import register_metric
from fganalysis.monitoring.monitor import Monitor
from fganalysis.predictions import predict, predict_variance_parts, register_closed_form
from fganalysis.reporting.report import report
from fganalysis.results import plotting, schema
from fganalysis.results.opening import export, open_results
from fganalysis.results.tables import agreement, summary, z_scores
from fganalysis.statistics.intervals import VarianceParts
from fganalysis.training import datasets, networks
from fganalysis.training.cost import cost
from fganalysis.training.estimated_gradients import estimate_gradient
from fganalysis.training.loop import train
from fganalysis.training.several_seeds import train_seeds

__all__ = [
    "Advice",
    "Monitor",
    "Passes",
    "Snapshot",
    "Truth",
    "VarianceParts",
    "Verdict",
    "advise",
    "agreement",
    "capture",
    "check_unbiased",
    "cost",
    "curvature",
    "datasets",
    "diagnose",
    "difference_step",
    "estimate_gradient",
    "estimators",
    "export",
    "gradient_stream",
    "measure",
    "merge_parts",
    "metrics",
    "monitoring",
    "networks",
    "noise",
    "open_results",
    "plotting",
    "predict",
    "predict_variance_parts",
    "predictions",
    "progress",
    "progress_per_cost",
    "register_closed_form",
    "register_metric",
    "report",
    "sample",
    "sample_part",
    "schema",
    "subspace",
    "summary",
    "testing",
    "train",
    "train_seeds",
    "truth",
    "variance_parts",
    "z_scores",
]
