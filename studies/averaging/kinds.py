"""The estimators that `studies.averaging` compares, in families, and what each perturbs."""

from __future__ import annotations

from typing import Any

from fganalysis.estimators import (
    ActivationMixing,
    ActivityPerturbation,
    Backpropagation,
    DirectFeedback,
    Estimator,
    FeedbackAlignment,
    FiniteDifference,
    ForwardDirectFeedback,
    LocalLoss,
    Minibatch,
    MultiTangent,
    NewtonSchulzUpstream,
    OrthogonalUpstream,
    PreconditionedUpstream,
    Upstream,
    WeightPerturbation,
)

FAMILIES: dict[str, dict[str, Estimator]] = {
    "weights perturbed": {
        "weight": WeightPerturbation(),
        "finite difference": FiniteDifference(),
        "multi-tangent mean, k = 4": MultiTangent(k=4),
        "multi-tangent orthogonal, k = 4": MultiTangent(k=4, combine="orthogonal"),
    },
    "activations perturbed": {
        "activity": ActivityPerturbation(),
        "activity, a pass a layer": ActivityPerturbation(layers="separate"),
        "activation mixing": ActivationMixing(),
    },
    "upstream": {
        "upstream": Upstream(),
        "orthogonal, k = 10": OrthogonalUpstream(k=10),
        "Newton-Schulz, k = 10": NewtonSchulzUpstream(k=10),
        "preconditioned": PreconditionedUpstream(),
    },
    "feedback and local losses": {
        "feedback alignment": FeedbackAlignment(),
        "direct feedback": DirectFeedback(),
        "forward direct feedback, 10 steps": ForwardDirectFeedback(rate=0.25, steps=10),
        "local loss": LocalLoss(),
    },
    "backpropagated": {
        "minibatch of 16": Minibatch(16),
        "backpropagation": Backpropagation(),
    },
}
GUESSES: dict[str, Estimator] = {name: guess for family in FAMILIES.values() for name, guess in family.items()}
PASSES = {"joint": "all in one pass", "separate": "a pass each"}


def family_of(name: str) -> str:
    """The family that a kind of guess belongs to."""
    return next(family for family, members in FAMILIES.items() if name in members)


def switches(estimator: Any) -> tuple[str, str, str, str]:
    """Where the guess is made, what noise the examples share, whose slope scales it, how layers share passes.

    Words, a dash where there is nothing to say; from the settings, where the estimator has the switch.
    """
    layers = PASSES[getattr(estimator, "layers", "joint")]
    match estimator:
        case WeightPerturbation() | MultiTangent():
            k = f"{estimator.k} directions" if isinstance(estimator, MultiTangent) else "one direction"
            return "weight", f"{k} for the batch", "the batch's", layers
        case FiniteDifference():
            return (
                "weight",
                "one direction for the batch",
                f"a difference of the batch's losses, ε = {estimator.epsilon:g}",
                layers,
            )
        case ForwardDirectFeedback():
            drawn = f"own for each example and step, at rate {estimator.rate:g} from B = 0"
            return "activation", drawn, "none: each example's output derivative", layers
        case LocalLoss():
            return "activation", "–", "each example's, along its head's gradient", PASSES["separate"]
        case Minibatch():
            return "activation", f"{estimator.size} rows of the batch drawn", "–", "–"
        case Backpropagation() | FeedbackAlignment() | DirectFeedback():
            return "activation", "–", "–", "–"
    shared = "shared by the batch" if getattr(estimator, "shared", False) else "own for each example"
    return "activation", shared, "each example's" if estimator.slope == "example" else "the batch's", layers
