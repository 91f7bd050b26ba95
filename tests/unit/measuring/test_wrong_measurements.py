"""Every argument of what measures, tabulates and draws, given what it cannot be: refused in one sentence of ours."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import fganalysis as fga
from fganalysis.estimators import Subsampled
from fganalysis.estimators.guesses import ActivationEstimates, WeightEstimates
from fganalysis.results import plotting
from fganalysis.results.tables import formatted
from tests.laws import tiny_snapshot

SNAPSHOT = tiny_snapshot((3, 4, 2), n_examples=4)
TREE = fga.diagnose(SNAPSHOT, ["weight", "activity"], 64)
FRAME = fga.summary(TREE)
PART = fga.sample_part(SNAPSHOT, "activity", 64, part=0, n_parts=2)
PACKAGE = str(Path(fga.__file__).parent)
NUMBERS: list[Any] = [None, "64", 64.5, 64.0, np.nan, np.inf, -np.inf, np.float64(64), -3, 0, True, [64], {}, 1j, b"6"]
NUMBERS += [np.array(64), np.array([64, 64]), torch.tensor(64), object(), int]
THINGS: list[Any] = [
    None,
    0,
    1.5,
    "",
    "nonsense",
    b"x",
    [],
    (),
    {},
    {"a": 1},
    np.zeros(3),
    torch.zeros(3),
    object(),
    int,
]


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def refused(call: Callable[[], object], what: str) -> None:
    """Fails unless the call ends in a ValueError of one short sentence that the package raises itself."""
    try:
        call()
    except ValueError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        line = linecache.getline(last.filename, last.lineno or 0).strip()
        assert last.filename.startswith(PACKAGE) and line.startswith("raise"), f"{what}: {error!r} at {last}"
        assert len(str(error)) <= 400 and "\n" not in str(error), f"{what}: {error}"
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    else:
        raise AssertionError(f"{what} is accepted")


def parts() -> tuple[Subsampled, torch.Generator]:
    return Subsampled("activity", 2), torch.Generator()


def without(values: list[Any], *right: Any) -> list[Any]:
    return [value for value in values if not any(value is one for one in right)]


WALKS: dict[str, tuple[Callable[[Any], object], list[Any]]] = {
    "sample snapshot": (lambda v: fga.sample(v, "activity", 64), [*THINGS, SNAPSHOT.network, [SNAPSHOT], TREE]),
    "sample estimator": (lambda v: fga.sample(SNAPSHOT, v, 64), [*THINGS, ["activity"]]),
    "sample n_guesses": (lambda v: fga.sample(SNAPSHOT, "activity", v), [*NUMBERS, 1]),
    "sample seed": (lambda v: fga.sample(SNAPSHOT, "activity", 64, v), [*without(NUMBERS, 0), 2**64]),
    "sample block_size": (lambda v: fga.sample(SNAPSHOT, "activity", 64, block_size=v), without(NUMBERS, None)),
    "sample memory": (lambda v: fga.sample(SNAPSHOT, "activity", 64, memory=v), NUMBERS),
    "sample workers": (lambda v: fga.sample(SNAPSHOT, "activity", 64, workers=v), without(NUMBERS, None)),
    "sample progress": (lambda v: fga.sample(SNAPSHOT, "activity", 64, progress=v), without(NUMBERS, True)),
    "sample_part part": (
        lambda v: fga.sample_part(SNAPSHOT, "activity", 64, part=v, n_parts=2),
        [*without(NUMBERS, 0), 2],
    ),
    "sample_part n_parts": (
        lambda v: fga.sample_part(SNAPSHOT, "activity", 64, part=0, n_parts=v),
        [*NUMBERS, 99],
    ),
    "merge_parts parts": (
        lambda v: fga.merge_parts(SNAPSHOT, "activity", v),
        [*THINGS, [None], [xr.Dataset()], PART, [PART, None], [PART, PART], [PART.assign_attrs(part="a")]]
        + [[PART, PART.assign_attrs(of_sample=v)] for v in ("", "[]", "{}", 3)]
        + [[PART.assign_attrs(of_sample=v)] for v in ("", "[]", "{}", '{"n_guesses": "a"}')]
        + [[PART.assign(sizes=PART["sizes"].astype(str))]],
    ),
    "merge_parts snapshot": (lambda v: fga.merge_parts(v, "activity", [PART]), THINGS),
    "diagnose snapshot": (lambda v: fga.diagnose(v, ["weight"], 64), [*THINGS, [SNAPSHOT, None], {"a": SNAPSHOT}]),
    "diagnose estimators": (
        lambda v: fga.diagnose(SNAPSHOT, v, 64),
        [*THINGS, [None], ["weight", 3], ["weight", "weight"], [["weight"]], {"weight": 1}],
    ),
    "diagnose n_guesses": (lambda v: fga.diagnose(SNAPSHOT, ["weight"], v), [*NUMBERS, 1]),
    "diagnose seed": (lambda v: fga.diagnose(SNAPSHOT, ["weight"], 64, v), [*without(NUMBERS, 0), 2**64]),
    "diagnose memory": (lambda v: fga.diagnose(SNAPSHOT, ["weight"], 64, memory=v), NUMBERS),
    "diagnose subspace": (
        lambda v: fga.diagnose(SNAPSHOT, ["weight"], 64, subspace=v),
        without(NUMBERS, None, True),
    ),
    "diagnose progress": (lambda v: fga.diagnose(SNAPSHOT, ["weight"], 64, progress=v), without(NUMBERS, True)),
    "summary tree": (lambda v: fga.summary(v), [*THINGS, TREE["measured"], TREE["measured"].to_dataset(), FRAME]),
    "summary quantities": (lambda v: fga.summary(TREE, v), [*THINGS, ["gram"], ["mse", "mse"], [1], [None], "mse"]),
    "agreement": (lambda v: fga.agreement(v), [*THINGS, TREE["measured"], FRAME, xr.DataTree()]),
    "z_scores": (lambda v: fga.z_scores(v), [*THINGS, TREE["measured"], FRAME, xr.DataTree()]),
    "formatted frame": (lambda v: formatted(v, ["mse"]), [*THINGS, TREE, pd.DataFrame(), FRAME["mse"]]),
    "formatted quantities": (lambda v: formatted(FRAME, v), [*THINGS, ["nonsense"], ["layer"], "mse", ["mse", "mse"]]),
    "variance_parts estimator": (
        lambda v: fga.variance_parts(v, SNAPSHOT, 32, parts()[1]),
        [*THINGS, "activity", fga.estimators.ActivityPerturbation()],
    ),
    "variance_parts snapshot": (lambda v: fga.variance_parts(parts()[0], v, 32, parts()[1]), THINGS),
    "variance_parts n_draws": (
        lambda v: fga.variance_parts(parts()[0], SNAPSHOT, v, parts()[1]),
        [*NUMBERS, 31],
    ),
    "variance_parts generator": (lambda v: fga.variance_parts(parts()[0], SNAPSHOT, 32, v), THINGS),
    "bias_variance tree": (lambda v: plotting.bias_variance(v), [*THINGS, TREE["measured"], xr.DataTree(), FRAME]),
    "bias_variance space": (lambda v: plotting.bias_variance(TREE, v), [*THINGS, ["weight"]]),
    "bias_variance layers": (
        lambda v: plotting.bias_variance(TREE, "weight", v),
        [*without(THINGS, None), "all", ["all", "all"], ["nonsense"], [0]],
    ),
    "cosine tree": (lambda v: plotting.cosine(v), [*THINGS, TREE["measured"], xr.DataTree(), FRAME]),
    "cosine space": (lambda v: plotting.cosine(TREE, v), [*THINGS, ["weight"]]),
    "save figure": (lambda v: plotting.save(v, "figure.png"), [*THINGS, TREE]),
    "save path": (
        lambda v: plotting.save(plt.figure(), v),
        [*THINGS, " ", "a.pdf", "figure", Path("."), "a\0.png", "/dev/null/a.png"],
    ),
    "ActivationEstimates": (lambda v: ActivationEstimates(v), [*THINGS, (None,), (torch.zeros(2),), ("a",)]),
    "WeightEstimates directions": (lambda v: WeightEstimates(torch.ones(2, 1), v), [*THINGS, (torch.zeros(2, 3),)]),
    "WeightEstimates coefficients": (
        lambda v: WeightEstimates(v, (torch.zeros(2, 3, 4), torch.zeros(2, 4, 2))),
        [*THINGS, torch.ones(2), torch.ones(2, 1), np.ones((2, 2))],
    ),
}


@pytest.mark.parametrize("name", WALKS)
def test_wrong_arguments_are_refused_in_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call, values = WALKS[name]
    for value in values:
        refused(lambda value=value: call(value), f"{name} = {str(value)[:60]!r}")  # type: ignore[misc]


@pytest.mark.parametrize("ask", [fga.summary, fga.agreement, fga.z_scores, plotting.bias_variance, plotting.cosine])
def test_trees_that_lack_something_are_refused(ask: Callable[[xr.DataTree], object]) -> None:
    nodes = {name: TREE[name].to_dataset() for name in ("measured", "predicted")}
    wrong = {
        "empty": {name: xr.Dataset() for name in nodes},
        "no measured": {"predicted": nodes["predicted"]},
        "no layers": nodes | {"measured": nodes["measured"].drop_vars("layer")},
        "no gradient_norm": nodes | {"measured": nodes["measured"].drop_vars("gradient_norm")},
        "no bounds": nodes
        | {"measured": nodes["measured"].drop_vars([f"{q}_low" for q in ("variance", "cosine", "relative_bias")])},
        "nothing predicted": nodes
        | {"predicted": nodes["predicted"].drop_vars(["variance", "cosine", "relative_bias"])},
    }
    for name, parts_of_it in wrong.items():
        # Tables take the norm that stands beside the predictions.
        if name == "no gradient_norm" and ask is fga.summary:
            continue
        refused(lambda given=parts_of_it: ask(xr.DataTree.from_dict(given)), f"{ask.__name__} of a tree: {name}")  # type: ignore[misc]


def test_nothing_measured_is_no_agreement() -> None:
    measured = TREE["measured"].to_dataset() * np.nan
    tree = xr.DataTree.from_dict({"measured": measured, "predicted": TREE["predicted"].to_dataset()})
    refused(lambda: fga.agreement(tree), "agreement of NaN")
    assert len(fga.summary(tree)) == 12


GUESSES = {
    "shape later": lambda s, n, g: ActivationEstimates(
        tuple(torch.ones(n, *(tap.outputs.shape if n == 1 else (1, 1)), dtype=torch.float64) for tap in s.taps)
    ),
    "no taps": lambda s, n, g: ActivationEstimates(()),
    "whole numbers": lambda s, n, g: ActivationEstimates(
        tuple(torch.ones(n, *tap.outputs.shape, dtype=torch.long) for tap in s.taps)
    ),
    "a coefficient a guess": lambda s, n, g: WeightEstimates(
        torch.ones(n), tuple(torch.ones(n, *tap.weight.shape) for tap in s.taps)
    ),
    "coefficients of another precision": lambda s, n, g: WeightEstimates(
        torch.ones(n, 2), tuple(torch.ones(n, *tap.weight.shape, dtype=torch.float64) for tap in s.taps)
    ),
    "none": lambda s, n, g: None,
}


@pytest.mark.parametrize("name", GUESSES)
def test_wrong_guesses_are_refused(name: str) -> None:
    refused(lambda: fga.sample(SNAPSHOT, GUESSES[name], 64), name)


@settings(max_examples=100)
@given(
    name=st.sampled_from([name for name in WALKS if "save" not in name]),
    value=st.one_of(
        st.none(),
        st.text(max_size=5),
        st.floats(),
        st.integers(max_value=-1),
        st.lists(st.one_of(st.none(), st.text(max_size=3), st.integers()), max_size=3),
        st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    ),
)
def test_whatever_is_given_is_refused_in_one_sentence(name: str, value: object) -> None:
    if value is None and not any(one is None for one in WALKS[name][1]):
        return  # None is what the argument is without being given.
    try:
        refused(lambda: WALKS[name][0](value), f"{name} = {value!r}")
    finally:
        plt.close("all")
