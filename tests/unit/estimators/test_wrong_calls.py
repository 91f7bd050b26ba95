"""Every setting of every estimator, and every argument around them, given anything: right, or refused in a sentence."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis import estimators, testing
from fganalysis.arguments import described
from tests.laws import tiny_snapshot
from tests.refusals import refusal

SNAPSHOT = tiny_snapshot((3, 4, 4, 2), n_examples=4, bias=True)
ANYTHING: list[Any] = [
    *[None, True, 0, 1, -1, 1.5, float("nan"), float("inf"), 1j, np.float64(2), "", "a", "all", b"a", []],
    *[(), {}, [1], np.ones(2), torch.ones(2), torch.tensor(1), object(), int, torch.nn.Linear, len, lambda: None],
]
CLASSES = [value for value in vars(estimators).values() if dataclasses.is_dataclass(value) and isinstance(value, type)]
REQUIRED: dict[str, Any] = {"estimator": "activity", "n_averaged": 2, "size": 2}
FIELDS = [(cls, field) for cls in CLASSES for field in dataclasses.fields(cls)]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def settings_of(cls: type) -> dict[str, Any]:
    """The settings that the class has no default of."""
    missing = dataclasses.MISSING
    fields = [f for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing]
    return {field.name: REQUIRED[field.name] for field in fields}


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=[f"{cls.__name__}.{field.name}" for cls, field in FIELDS])
def test_a_setting_is_refused_where_it_is_made_or_works(cls: Any, field: Any) -> None:
    for value in ANYTHING:
        made: list[Any] = []
        if refusal(lambda: made.append(cls(**settings_of(cls) | {field.name: value}))) is None:  # noqa: B023
            # What is too large for this network may be refused by the call.
            refusal(lambda: made[0](SNAPSHOT, 2, generator()))  # noqa: B023
            plain = isinstance(value, str | bytes | complex | float) and value not in (1.5, 2.0)
            assert not plain, f"{field.name}={value!r} is accepted"


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if hasattr(cls, "passes")])
def test_a_call_of_an_estimator_takes_a_snapshot_a_number_and_a_generator(cls: Any) -> None:
    estimator = cls(**settings_of(cls))
    for value in ANYTHING:
        assert refusal(lambda: estimator(value, 2, generator())) is not None  # noqa: B023
        assert refusal(lambda: estimator(SNAPSHOT, 2, value)) is not None  # noqa: B023
        said = refusal(lambda: estimator(SNAPSHOT, value, generator()))  # noqa: B023
        assert said is not None or value == 1, described(value)


class Drawing:
    """A law of noise and a chooser of rows that draws what it is told to."""

    def __init__(self, drawn: Any):
        self.drawn = drawn

    def draw(self, *arguments: Any, **named: Any) -> Any:
        return self.drawn

    def fourth(self, n: int) -> float:
        return 3.0

    def pair(self, n: int) -> float:
        return 1.0


WRONG_DRAWS = [*ANYTHING, torch.full((2, 1), 99), torch.zeros(2, 1), torch.zeros(2, 4, 4), torch.zeros(2, 1, 3)]


@pytest.mark.parametrize("value", WRONG_DRAWS, ids=lambda value: described(value)[:30])
def test_what_a_law_or_a_chooser_of_rows_draws_is_checked(value: Any) -> None:
    wrong = [
        estimators.ActivityPerturbation(noise=Drawing(value)),
        estimators.WeightPerturbation(noise=Drawing(value)),
        estimators.WeightPerturbation(noise=Drawing(value), shared=False),
        estimators.MultiTangent(noise=Drawing(value)),
        estimators.FiniteDifference(noise=Drawing(value)),
        estimators.Minibatch(rows=Drawing(value)),
        estimators.Subsampled("activity", 1, rows=Drawing(value)),
    ]
    for estimator in wrong:
        said = refusal(lambda: estimator(SNAPSHOT, 2, generator()))  # noqa: B023
        assert said is not None and " must draw " in said


CHECKED: list[tuple[str, Any, dict[str, Any]]] = [
    (
        "check_unbiased",
        fga.check_unbiased,
        {"estimator": "weight", "snapshot": SNAPSHOT, "max_guesses": 2048, "tolerance": 0.5}
        | dict.fromkeys(["alpha", "seed", "space", "memory", "workers"], ...),
    ),
    (
        "assert_unbiased",
        testing.assert_unbiased,
        {"estimator": "backpropagation", "snapshot": SNAPSHOT, "max_guesses": 2048}
        | dict.fromkeys(["alpha", "tolerance", "seed", "space", "memory", "workers", "may_be_undecided"], ...),
    ),
    (
        "exact_moments",
        testing.exact_moments,
        {"estimator": "activity", "snapshot": tiny_snapshot((1, 1, 2), 1)} | dict.fromkeys(["law", "max_points"], ...),
    ),
    (
        "assert_moments_match",
        testing.assert_moments_match,
        {"estimator": "activity", "predicted": fga.predict(SNAPSHOT, "activity"), "snapshot": SNAPSHOT}
        | {"n_guesses": 256, "alpha": 1e-6, "seed": ...},
    ),
    ("from_function", estimators.from_function, {"function": ...}),
    ("label", estimators.label, {"estimator": ...}),
    ("resolve", estimators.resolve, {"estimator": ...}),
    ("settings", estimators.settings, {"estimator": ...}),
    ("stable_name", estimators.stable_name, {"estimator": ...}),
    (
        "Enumeration",
        testing.Enumeration,
        {"values": (-1.0, 1.0), "probabilities": (0.5, 0.5), "fourth_moment": 1.0},
    ),
]
ARGUMENTS = [(name, call, known, argument) for name, call, known in CHECKED for argument in known]
WORTH_TRYING = [
    *ANYTHING,
    2**62,
    2**64,
    1e-320,
    1e300,
    -1e-300,
    "weight",
    "activity",
    "x" * 1000,
    "two\nlines",
    SNAPSHOT,
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "known", "argument"),
    [row[1:] for row in ARGUMENTS],
    ids=[f"{name}-{argument}" for name, _, _, argument in ARGUMENTS],
)
def test_a_wrong_argument_is_refused_in_a_sentence(call: Any, known: dict[str, Any], argument: str) -> None:
    """Or understood, which what returns for an array, an object or a text in place of a number has not."""
    for value in WORTH_TRYING:
        if argument in ("n_guesses", "max_guesses") and type(value) is int and value > 2**20:
            continue  # It would take as long as it says.
        given = {name: right for name, right in known.items() if right is not ...} | {argument: value}
        try:
            said = refusal(lambda: call(**given))  # noqa: B023
        except AssertionError as failure:
            # A verdict, or a mismatch, is an AssertionError of its own: what was asked was understood.
            assert isinstance(failure.__cause__, AssertionError), f"{argument}={described(value)}: {failure}"
            continue
        if argument in ("alpha", "tolerance", "seed", "memory", "workers", "max_guesses", "n_guesses", "max_points"):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            assert said is not None or number or (value is None and argument == "workers"), described(value)


def test_a_setting_given_by_numpy_is_named_by_its_value() -> None:
    """Or two estimators that differ in it alone would share their name."""
    assert estimators.label(estimators.MultiTangent(k=np.int64(3))) == "multi_tangent(k=3)"  # type: ignore[arg-type]
    assert estimators.settings(estimators.Minibatch(np.int32(2)))["size"] == 2  # type: ignore[arg-type]
    assert estimators.label("weight") == "weight" and estimators.settings("weight")["shared"] is True
