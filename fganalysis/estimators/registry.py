"""The one table that maps keys to estimators: an estimator's class is imported and gets a key here, nowhere else.

`fganalysis.estimators` has every name of this module, so there is nothing in it but the table.
"""

from __future__ import annotations

from fganalysis.estimators.backpropagation import Backpropagation
from fganalysis.estimators.feedback.direct_feedback import DirectFeedback
from fganalysis.estimators.feedback.feedback_alignment import FeedbackAlignment
from fganalysis.estimators.feedback.forward_direct_feedback import ForwardDirectFeedback
from fganalysis.estimators.local.local_loss import LocalLoss
from fganalysis.estimators.perturbation.activation_mixing import ActivationMixing
from fganalysis.estimators.perturbation.activity_perturbation import ActivityPerturbation
from fganalysis.estimators.perturbation.finite_difference import FiniteDifference
from fganalysis.estimators.perturbation.guided_perturbation import GuidedPerturbation
from fganalysis.estimators.perturbation.low_rank_perturbation import LowRankPerturbation
from fganalysis.estimators.perturbation.multi_tangent import MultiTangent
from fganalysis.estimators.perturbation.scaled_perturbation import ScaledPerturbation
from fganalysis.estimators.perturbation.sparse_perturbation import SparsePerturbation
from fganalysis.estimators.perturbation.subspace_perturbation import SubspacePerturbation
from fganalysis.estimators.perturbation.weight_perturbation import WeightPerturbation
from fganalysis.estimators.sampling_rows.minibatch import Minibatch
from fganalysis.estimators.sampling_rows.row_sampling import RowSampling
from fganalysis.estimators.sketches.gradient_projection import GradientProjection
from fganalysis.estimators.sketches.input_sketch import InputSketch
from fganalysis.estimators.sketches.random_projection import RandomProjection
from fganalysis.estimators.sketches.row_sketch import RowSketch
from fganalysis.estimators.upstream.newton_schulz import NewtonSchulzUpstream
from fganalysis.estimators.upstream.orthogonal import OrthogonalUpstream
from fganalysis.estimators.upstream.preconditioned import PreconditionedUpstream
from fganalysis.estimators.upstream.upstream import Upstream

ESTIMATORS: dict[str, type] = {
    "backpropagation": Backpropagation,
    "weight": WeightPerturbation,
    "activity": ActivityPerturbation,
    "upstream": Upstream,
    "orthogonal": OrthogonalUpstream,
    "newton_schulz": NewtonSchulzUpstream,
    "preconditioned": PreconditionedUpstream,
    "activation_mixing": ActivationMixing,
    "multi_tangent": MultiTangent,
    "finite_difference": FiniteDifference,
    "feedback_alignment": FeedbackAlignment,
    "direct_feedback": DirectFeedback,
    "forward_direct_feedback": ForwardDirectFeedback,
    "local_loss": LocalLoss,
    "minibatch": Minibatch,
    "low_rank": LowRankPerturbation,
    "random_subspace": SubspacePerturbation,
    "scaled": ScaledPerturbation,
    "guided": GuidedPerturbation,
    "sparse": SparsePerturbation,
    "row_sampling": RowSampling,
    "row_sketch": RowSketch,
    "input_sketch": InputSketch,
    "gradient_projection": GradientProjection,
    "random_projection": RandomProjection,
}
