"""Every estimator: frozen dataclasses whose fields are their settings.

The classes with a key are those of the table in `fganalysis.estimators.registry`; the others are named here.
"""

from __future__ import annotations

from fganalysis.estimators.around.averaged import Averaged as Averaged
from fganalysis.estimators.around.from_function import from_function as from_function
from fganalysis.estimators.around.subsampled import Subsampled as Subsampled
from fganalysis.estimators.feedback.forward_direct_feedback import (
    ForwardDirectFeedbackAdam as ForwardDirectFeedbackAdam,
)
from fganalysis.estimators.local.local_loss import train_heads as train_heads
from fganalysis.estimators.names import label as label
from fganalysis.estimators.names import resolve as resolve
from fganalysis.estimators.names import settings as settings
from fganalysis.estimators.protocol import Estimator as Estimator
from fganalysis.estimators.protocol import Stateful as Stateful
from fganalysis.estimators.registry import *  # noqa: F403  # A line in the table is all that a new class takes.
from fganalysis.estimators.sketches.gradient_projection import (
    gradients_to_project_on as gradients_to_project_on,
)
from fganalysis.estimators.sketches.sampled_entry import SampledEntry as SampledEntry
from fganalysis.estimators.stable_names import stable_name as stable_name
from fganalysis.estimators.stated_passes import passes_of as passes_of
