"""One way of checking each kind of argument: right values pass, every wrong one is a sentence that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fganalysis import arguments

CHECKS: dict[str, Callable[[object], None]] = {
    "whole": lambda value: arguments.check_whole("x", value),
    "seed": lambda value: arguments.check_seed("x", value),
    "number": lambda value: arguments.check_number("x", value, above=0.0, most=10.0),
    "flag": lambda value: arguments.check_flag("x", value),
    "choice": lambda value: arguments.check_choice("x", value, ("a", "b", None)),
    "kind": lambda value: arguments.check_kind("x", value, Path, "a pathlib.Path"),
    "callable": lambda value: arguments.check_callable("x", value, "a function"),
    "names": lambda value: arguments.check_names("x", value, ["a", "b"]),
    "path": lambda value: arguments.check_path("x", value),
}
RIGHT = {
    "whole": [1, np.int64(3)],
    "seed": [0, 2**63 - 1],
    "number": [1, 0.5, np.float32(2), 10.0],
    "flag": [True, np.bool_(False)],
    "choice": ["a", None],
    "kind": [Path("a")],
    "callable": [len, lambda: None],
    "names": [["a"], ("b", "a")],
    "path": ["a", Path("b")],
}
ANYTHING = [
    *[None, True, 0, -1, 11, 2**64, 1.5, np.float64(64), float("nan"), float("inf"), 1j, "", "  ", "a\0", "z" * 500],
    *[b"a", [], ["a", "a"], ["z"], [1], {"a": 1}, {"a"}, np.ones(3), torch.ones(2), torch.tensor(64), int, object()],
]


@pytest.mark.parametrize(("check", "value"), [(name, value) for name, values in RIGHT.items() for value in values])
def test_right_values_pass(check: str, value: object) -> None:
    CHECKS[check](value)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("value", ANYTHING, ids=lambda value: arguments.described(value)[:20])
def test_every_value_is_right_or_one_sentence(check: str, value: object) -> None:
    try:
        CHECKS[check](value)
    except ValueError as error:
        text = str(error)
        assert (text.startswith("x ") and ", got " in text) or "unknown name" in text
        assert "\n" not in text and len(text) < 300
    else:
        accepted = {
            "whole": [11, 2**64],
            "seed": [0, 11],
            "number": [1.5],
            "flag": [True],
            "choice": [None],
            "kind": [],
            "callable": [],
            "names": [],
            "path": ["z" * 500],
        }
        assert any(value is right or value == right for right in accepted[check]), value


@given(st.one_of(st.text(), st.integers(), st.floats(), st.lists(st.text()), st.binary()))
def test_a_value_is_described_in_one_short_line(value: object) -> None:
    assert "\n" not in arguments.described(value)
    assert len(arguments.described(value)) <= arguments.LONGEST_DESCRIPTION


def test_arrays_are_described_by_shape_and_type() -> None:
    assert arguments.described(torch.ones(2, 3)) == "a tensor of shape (2, 3) and float32"
    assert arguments.described(np.ones(4)) == "a NumPy array of shape (4,) and float64"
