"""The seed of the noise follows a stable name: not the label or the fields' names, but the class and the values."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, make_dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ESTIMATORS, noise, registry, stable_name
from fganalysis.estimators.guesses import Estimates
from tests.laws import tiny_snapshot

SNAPSHOT = tiny_snapshot()
activity = fga.estimators.ActivityPerturbation


def mine(field_name: str, key: str = "Mine", **attributes: Any) -> Any:
    """A class of one setting, which has no effect, with chosen names."""

    def call(self: Any, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
        return activity()(snapshot, n_guesses, generator)

    named: dict[str, Any] = {"__call__": call, **attributes}
    return make_dataclass(key, [(field_name, float, field(default=1.0))], frozen=True, namespace=named)


def numbers(estimator: Any) -> np.ndarray:
    return np.asarray(fga.sample(SNAPSHOT, estimator, n_guesses=16)["inner_product"].values)


def test_renaming_a_field_changes_no_number_and_changing_a_value_does() -> None:
    before, after = mine("size"), mine("scale")
    assert fga.estimators.label(before(2.0)) != fga.estimators.label(after(2.0))
    np.testing.assert_array_equal(numbers(before(2.0)), numbers(after(2.0)))
    np.testing.assert_array_equal(numbers(before()), numbers(after()))
    assert not np.array_equal(numbers(before(2.0)), numbers(before()))
    assert not np.array_equal(numbers(before(2.0)), numbers(before(3.0)))


def test_renaming_a_class_or_its_key_changes_no_number_where_it_keeps_its_stable_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, after = mine("size"), mine("size", "Other", stable_name="Mine")
    monkeypatch.setitem(registry.ESTIMATORS, "another_key", after)
    assert [fga.estimators.label(cls(2.0)) for cls in (before, after)] == ["Mine(size=2.0)", "another_key(size=2.0)"]
    np.testing.assert_array_equal(numbers(before(2.0)), numbers(after(2.0)))
    assert not np.array_equal(numbers(before(2.0)), numbers(mine("size", "Other")(2.0)))


def test_verdicts_follow_the_same_name() -> None:
    found = [fga.check_unbiased(mine(name)(2.0), SNAPSHOT, tolerance=0.5, max_guesses=2048) for name in ("a", "b")]
    assert found[0].findings == found[1].findings


def test_a_subclass_does_not_share_the_noise_of_its_parent() -> None:
    @dataclass(frozen=True)
    class Parent(activity):
        stable_name: ClassVar[str] = "parent"

    class Child(Parent):
        pass

    assert stable_name(Parent()) == "parent"
    assert stable_name(Child()).endswith("Child")


def test_a_new_last_field_with_its_default_changes_no_name() -> None:
    longer = make_dataclass("Mine", [("size", float, 1.0), ("more", bool, False)], frozen=True)
    longer.__call__ = mine("size").__call__  # type: ignore[attr-defined]
    assert stable_name(longer(2.0)) == stable_name(mine("size")(2.0)) == "Mine(0:2.0)"
    assert stable_name(longer(2.0, True)) == "Mine(0:2.0, 1:True)"


def downhill(*arguments: Any) -> Any:
    raise NotImplementedError


def uphill(*arguments: Any) -> Any:
    raise NotImplementedError


@pytest.mark.parametrize("key", ESTIMATORS)
def test_a_registered_estimator_is_called_by_its_key(key: str) -> None:
    try:
        estimator = ESTIMATORS[key]()
    except TypeError:  # Settings without a default come behind the key.
        return
    assert stable_name(estimator) == stable_name(key) == key


def test_estimators_that_differ_have_different_names() -> None:
    matrices = [torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float64)]
    different: list[Any] = [
        activity(),
        activity(shared=True),
        activity(slope="batch"),
        activity(layers="separate"),
        *(activity(noise=law) for law in (noise.Rademacher(), noise.Sphere())),
        *(fga.estimators.Averaged("activity", n) for n in (2, 3)),
        fga.estimators.Averaged("weight", 2),
        fga.estimators.Averaged(activity(shared=True), 2),
        fga.estimators.Averaged(activity(noise=noise.Sphere()), 2),
        fga.estimators.Subsampled("activity", 2),
        *(mine("state")(value) for value in ("1.0", 2, (1, 2), (12,), ((1,), 2), {"a": 1}, {"b": 1}, None, 1j)),
        *(mine("state")(matrix) for matrix in matrices),
        *(mine("state")((matrix,)) for matrix in matrices),
        mine("state")(np.zeros((2, 3))),
        *(fga.estimators.from_function(function) for function in (downhill, uphill)),
    ]
    names = [stable_name(estimator) for estimator in different]
    assert len(set(names)) == len(names), [pair for pair in itertools.combinations(names, 2) if len(set(pair)) == 1]
    assert stable_name(fga.estimators.MultiTangent(k=np.int64(3))) == stable_name(fga.estimators.MultiTangent(k=3))


def test_two_of_one_stable_name_in_a_comparison_are_refused() -> None:
    """They would be given the same noise, so that their estimates would be correlated."""
    one, other = mine("size", "One", stable_name="same"), mine("size", "Two", stable_name="same")
    with pytest.raises(ValueError, match="two of One, Two have the same stable_name and would share noise"):
        fga.diagnose(SNAPSHOT, [one(), other()], n_guesses=32)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown estimator 'no'"):
        stable_name("no")
