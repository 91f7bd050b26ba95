"""Every estimator: frozen dataclasses whose fields are their settings."""

from __future__ import annotations

from fganalysis.estimators.around.averaged import Averaged
from fganalysis.estimators.around.from_function import from_function
from fganalysis.estimators.around.subsampled import Subsampled
from fganalysis.estimators.backpropagation import Backpropagation
from fganalysis.estimators.feedback.direct_feedback import DirectFeedback
from fganalysis.estimators.feedback.feedback_alignment import FeedbackAlignment
from fganalysis.estimators.feedback.forward_direct_feedback import ForwardDirectFeedback, ForwardDirectFeedbackAdam
from fganalysis.estimators.local.local_loss import LocalLoss, train_heads
from fganalysis.estimators.perturbation.activation_mixing import ActivationMixing
from fganalysis.estimators.perturbation.activity_perturbation import ActivityPerturbation
from fganalysis.estimators.perturbation.finite_difference import FiniteDifference
from fganalysis.estimators.perturbation.multi_tangent import MultiTangent
from fganalysis.estimators.perturbation.weight_perturbation import WeightPerturbation
from fganalysis.estimators.protocol import Estimator, Stateful
from fganalysis.estimators.registry import ESTIMATORS, label, resolve, settings
from fganalysis.estimators.sampling_rows.minibatch import Minibatch
from fganalysis.estimators.stable_names import stable_name
from fganalysis.estimators.upstream.newton_schulz import NewtonSchulzUpstream
from fganalysis.estimators.upstream.orthogonal import OrthogonalUpstream
from fganalysis.estimators.upstream.preconditioned import PreconditionedUpstream
from fganalysis.estimators.upstream.upstream import Upstream

__all__ = [
    "ESTIMATORS",
    "ActivationMixing",
    "ActivityPerturbation",
    "Averaged",
    "Backpropagation",
    "DirectFeedback",
    "Estimator",
    "FeedbackAlignment",
    "FiniteDifference",
    "ForwardDirectFeedback",
    "ForwardDirectFeedbackAdam",
    "LocalLoss",
    "Minibatch",
    "MultiTangent",
    "NewtonSchulzUpstream",
    "OrthogonalUpstream",
    "PreconditionedUpstream",
    "Stateful",
    "Subsampled",
    "Upstream",
    "WeightPerturbation",
    "from_function",
    "label",
    "resolve",
    "settings",
    "stable_name",
    "train_heads",
]
