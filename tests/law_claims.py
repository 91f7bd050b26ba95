"""The estimators under test, and which of the laws of tests/laws.py each one claims.

`claiming` gives a test its estimators. A class of the registry needs no row: with its default settings it claims every
law of guesses without a state, and to be biased or not as its line in the README's table says. Where that is wrong, or
where other settings are worth a test, the class has rows: in ``CLAIMS``, a list in its own test file, or in `TABLE`.
A law that a row leaves out is false of that estimator, and the comment beside the row, or beside the group of laws
that it claims, says why.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fganalysis.estimators import (
    ESTIMATORS,
    ActivationMixing,
    ActivityPerturbation,
    Averaged,
    Backpropagation,
    DirectFeedback,
    Estimator,
    FeedbackAlignment,
    FiniteDifference,
    ForwardDirectFeedback,
    ForwardDirectFeedbackAdam,
    LocalLoss,
    Minibatch,
    MultiTangent,
    NewtonSchulzUpstream,
    OrthogonalUpstream,
    Subsampled,
    Upstream,
    WeightPerturbation,
)
from fganalysis.estimators.noise import Rademacher, Sphere
from fganalysis.predictions import closed_form_of
from fganalysis.predictions.protocol import UNKNOWN

ROOT = Path(__file__).resolve().parent.parent
ESTIMATOR_TESTS = ROOT / "tests" / "unit" / "estimators"

# Of everything that guesses: the loss scales it; a seed, forward mode, blocks and the factored form do not change it.
ALWAYS = ("scaling", "seeded", "modes", "blocks", "extends", "factored", "decomposed")
SYMMETRIC = ("units", "examples")  # Nothing in it tells one hidden unit, or one example, from another.
UNBIASED, BIASED = (*ALWAYS, *SYMMETRIC, "unbiased"), (*ALWAYS, *SYMMETRIC, "biased")
# What is fixed by a seed, matrices and heads, belongs to the units in their order.
FIXED = (*ALWAYS, "examples", "biased")
# Sampling is held against its closed form in tests/unit/predictions/test_sampled_predictions.py, which has feedback
# and heads in a list of theirs.
PREDICTED = "predicted"


@dataclass(frozen=True)
class Row:
    """An estimator, with settings that fit the tiny networks of the tests, and the laws that it claims."""

    estimator: Estimator
    claims: tuple[str, ...]


TABLE = [
    Row(WeightPerturbation(), (*UNBIASED, PREDICTED)),
    Row(WeightPerturbation(noise=Sphere(), layers="separate"), (*UNBIASED, PREDICTED)),
    Row(WeightPerturbation(shared=False), (*UNBIASED, PREDICTED)),
    Row(ActivityPerturbation(), (*UNBIASED, PREDICTED)),
    Row(ActivityPerturbation(noise=Rademacher(), shared=True, slope="batch"), (*BIASED, PREDICTED)),
    Row(ActivityPerturbation(active_only=True, layers="separate"), (*UNBIASED, PREDICTED)),
    Row(Upstream(), (*BIASED, PREDICTED)),
    Row(Upstream(normalise=True), (*BIASED, PREDICTED)),
    Row(OrthogonalUpstream(k=1), (*BIASED, PREDICTED)),
    Row(OrthogonalUpstream(k=2, exact=True, shared=True), (*UNBIASED, PREDICTED)),
    Row(OrthogonalUpstream(k=1, which="bottom"), (*BIASED, PREDICTED)),
    Row(OrthogonalUpstream(k="rank"), (*UNBIASED, PREDICTED)),
    Row(NewtonSchulzUpstream(k=1), (*BIASED, PREDICTED)),
    Row(ActivationMixing(), (*BIASED, PREDICTED)),
    Row(ActivationMixing(normalise=False, slope="batch", layers="separate"), (*BIASED, PREDICTED)),
    Row(MultiTangent(k=2), (*UNBIASED, PREDICTED)),
    Row(MultiTangent(combine="orthogonal"), (*BIASED, PREDICTED)),
    # Signs in few dimensions are often linearly dependent, so that two projected tangents cannot be enumerated.
    Row(MultiTangent(k=2, combine="orthogonal", layers="separate"), (*ALWAYS, PREDICTED)),
    Row(FiniteDifference(), BIASED),
    Row(FiniteDifference(epsilon=1e-4, central=False, noise=Rademacher()), BIASED),
    Row(FeedbackAlignment(), FIXED),
    Row(DirectFeedback(seed=1, scale=2.0), FIXED),
    Row(LocalLoss(), FIXED),
    Row(LocalLoss("mlp", space="weight", width=4), FIXED),
    Row(LocalLoss(target="local", seed=1), (*FIXED, "state")),
    # Their heads are drawn by no law that can be enumerated; given the same ones, examples are alike.
    Row(LocalLoss(mode="redrawn", space="weight"), (*ALWAYS, "examples")),
    # Without a history of its own it guesses nothing, and the history is one network's.
    Row(LocalLoss(mode="trained", rate=0.1), ("state",)),
    # The state of what they wrap is theirs.
    Row(Averaged(ForwardDirectFeedbackAdam(rate=0.1), 2), ("state",)),
    Row(Subsampled(LocalLoss(mode="trained", rate=0.1), 1), ("state",)),
    Row(Averaged(Subsampled(ForwardDirectFeedback(rate=0.3), 2), 2), ("state",)),
    Row(Minibatch(size=1), (*UNBIASED, PREDICTED)),
    Row(Averaged(Minibatch(size=1), 3), (*ALWAYS, "units", PREDICTED)),
    Row(Averaged(WeightPerturbation(), 2), ALWAYS),
    Row(Subsampled(Backpropagation(), 1), UNBIASED),
    Row(Subsampled(ActivityPerturbation(), 1), (*ALWAYS, PREDICTED)),
]


def says_unbiased(key: str) -> bool:
    """Whether the README calls an estimator exact or unbiased in the column "mean", with its default settings."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    line = re.search(rf"^\| `{key}` \|(?:[^|]*\|){{2}} (exact|unbiased|biased)\b", readme, flags=re.MULTILINE)
    assert line is not None, f"the README's table must say in the column mean whether {key!r} is biased or unbiased"
    return line[1] != "biased"


def by_default(key: str) -> Row:
    """The row of an estimator that has none: its default settings, and what the README says of them."""
    estimator = ESTIMATORS[key]()
    predicted = () if closed_form_of(estimator).guess is UNKNOWN.guess else (PREDICTED,)
    return Row(estimator, (*(UNBIASED if says_unbiased(key) else BIASED), *predicted))


def declared() -> list[Row]:
    """The rows of the test files that have ``CLAIMS``."""
    files = [
        path.stem
        for path in sorted(ESTIMATOR_TESTS.glob("test_*.py"))
        if re.search(r"^CLAIMS\b", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    return [row for name in files for row in importlib.import_module(f"tests.unit.estimators.{name}").CLAIMS]


@cache
def rows() -> list[Row]:
    """All rows. Read them outside of the test file of an estimator, whose ``CLAIMS`` may not be there yet."""
    given = [*TABLE, *declared()]
    having = {type(row.estimator) for row in given}
    return [*given, *(by_default(key) for key, kind in ESTIMATORS.items() if kind not in having)]


def claiming(law: str) -> list[Estimator]:
    """The estimators of which a law is claimed."""
    return [row.estimator for row in rows() if law in row.claims]


def lacking(law: str) -> list[Estimator]:
    """The estimators that guess and of which it is not."""
    return [row.estimator for row in rows() if law not in row.claims and "seeded" in row.claims]
