"""Which closed form belongs to which class of estimators: one table, looked up along a class's bases.

You register your own closed form in one call. This example is for a deterministic guess ĝ = c g at the activations:

    from dataclasses import dataclass
    import numpy as np
    import fganalysis as fga
    from fganalysis.predictions import ClosedForm, Guess, Moments, WeightMoments

    @dataclass(frozen=True)
    class Scaled:
        factor: float

        def __call__(self, snapshot, n_guesses, generator):
            guesses = [self.factor * gradient.expand(n_guesses, -1, -1) for gradient in snapshot.gradients]
            return fga.estimators.guesses.ActivationEstimates(tuple(guesses))

    def scaled(snapshot, estimator):
        means = [estimator.factor * gradient.double().numpy() for gradient in snapshot.gradients]
        still = [Moments(m, np.zeros_like(m), np.zeros((len(m), len(m)))) for m in means]
        return Guess(still, certain=True)

    fga.register_closed_form(Scaled, ClosedForm(scaled))

The closed form of a guess at the weights has `WeightMoments`: the means E Ĝ_l, (unit, input) a layer, and the parts of
tr Cov Ĝ_l within and between random rows, each (layer,), the second zero on the whole batch. For Ĝ = c G:

    def scaled_at_weights(snapshot, estimator):
        means = [estimator.factor * gradient.double().numpy() for gradient in snapshot.weight_gradients]
        return Guess(weights=WeightMoments(means, np.zeros(len(means)), np.zeros(len(means))), certain=True)
"""

from __future__ import annotations

from typing import Any

from fganalysis import estimators
from fganalysis.arguments import check_kind, described
from fganalysis.predictions.around import averaged, subsampled
from fganalysis.predictions.feedback import (
    DIRECT_FEEDBACK,
    FEEDBACK_ALIGNMENT,
    FORWARD_DIRECT_FEEDBACK,
    FORWARD_DIRECT_FEEDBACK_ADAM,
)
from fganalysis.predictions.local import LOCAL_LOSS
from fganalysis.predictions.perturbation import ACTIVITY, MIXING
from fganalysis.predictions.protocol import UNKNOWN, ClosedForm
from fganalysis.predictions.sampling_rows import BACKPROPAGATION, MINIBATCH
from fganalysis.predictions.sketches import (
    GRADIENT_PROJECTION,
    INPUT_SKETCH,
    RANDOM_PROJECTION,
    ROW_SAMPLING,
    ROW_SKETCH,
)
from fganalysis.predictions.structured import GUIDED, LOW_RANK, SCALED, SUBSPACE
from fganalysis.predictions.upstream import NEWTON_SCHULZ, ORTHOGONAL, PRECONDITIONED, UPSTREAM
from fganalysis.predictions.weights import DIFFERENCE, MULTI_TANGENT, SPARSE, WEIGHT


def closed_form_of(estimator: Any) -> ClosedForm:
    """The closed form of the estimator's class, or of the nearest base class that has one; otherwise `UNKNOWN`."""
    known = (CLOSED_FORMS[kind] for kind in type(estimator).__mro__ if kind in CLOSED_FORMS)
    return next(known, UNKNOWN)


def register_closed_form(estimator_class: type, closed_form: ClosedForm | None) -> None:
    """Registers the closed form of a class of estimators, which `predict` and `diagnose` use from then on.

    A subclass inherits the closed form, unless it has one itself. An existing entry is replaced.

    Args:
        estimator_class: the class of the estimator, whose instances are called with (snapshot, n_guesses, generator).
        closed_form: a `ClosedForm`; see this module's text for an example. None says that nothing is known of the
            class, although something is known of one of its bases.

    Raises:
        ValueError: what is no class with a ``__call__``, and what is no `ClosedForm`.
    """
    if not isinstance(estimator_class, type) or not any("__call__" in vars(kind) for kind in estimator_class.__mro__):
        kind = "a class whose instances are called with (snapshot, n_guesses, generator)"
        raise ValueError(f"estimator_class must be {kind}, got {described(estimator_class)}")
    if closed_form is not None:
        check_kind("closed_form", closed_form, ClosedForm, "a fganalysis.predictions.ClosedForm or None")
    CLOSED_FORMS[estimator_class] = UNKNOWN if closed_form is None else closed_form


CLOSED_FORMS: dict[type, ClosedForm] = {
    estimators.Backpropagation: BACKPROPAGATION,
    estimators.WeightPerturbation: WEIGHT,
    estimators.ActivityPerturbation: ACTIVITY,
    estimators.Upstream: UPSTREAM,
    estimators.OrthogonalUpstream: ORTHOGONAL,
    estimators.NewtonSchulzUpstream: NEWTON_SCHULZ,
    estimators.PreconditionedUpstream: PRECONDITIONED,
    estimators.ActivationMixing: MIXING,
    estimators.MultiTangent: MULTI_TANGENT,
    estimators.FiniteDifference: DIFFERENCE,
    estimators.FeedbackAlignment: FEEDBACK_ALIGNMENT,
    estimators.DirectFeedback: DIRECT_FEEDBACK,
    estimators.ForwardDirectFeedback: FORWARD_DIRECT_FEEDBACK,
    estimators.ForwardDirectFeedbackAdam: FORWARD_DIRECT_FEEDBACK_ADAM,
    estimators.LocalLoss: LOCAL_LOSS,
    estimators.Minibatch: MINIBATCH,
    estimators.LowRankPerturbation: LOW_RANK,
    estimators.SubspacePerturbation: SUBSPACE,
    estimators.ScaledPerturbation: SCALED,
    estimators.GuidedPerturbation: GUIDED,
    estimators.SparsePerturbation: SPARSE,
    estimators.RowSampling: ROW_SAMPLING,
    estimators.RowSketch: ROW_SKETCH,
    estimators.InputSketch: INPUT_SKETCH,
    estimators.GradientProjection: GRADIENT_PROJECTION,
    estimators.RandomProjection: RANDOM_PROJECTION,
    estimators.Averaged: averaged(closed_form_of),
    estimators.Subsampled: subsampled(closed_form_of),
}
