"""Tables: their rows and columns, the text of a cell, and z-scores on trees made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import fganalysis as fga
from fganalysis.estimators import OrthogonalUpstream
from fganalysis.measuring.joining import join
from fganalysis.results import schema
from fganalysis.results.tables import COMPARED, SINGLE_PRECISION_ROUNDING, TABLE, formatted
from fganalysis.statistics.intervals import Z95
from tests import laws

TREE = fga.diagnose(
    laws.tiny_snapshot((3, 4, 2), n_examples=4), ["backpropagation", "weight", OrthogonalUpstream(k=1)], n_guesses=256
)
NODES = ("measured", "predicted")
KEYS = ["step", "estimator", "space", "layer"]


def test_a_row_for_every_estimator_space_and_layer_with_a_guess() -> None:
    frame = fga.summary(TREE)
    # Weight perturbation makes no guess at the activations.
    assert len(frame) == 2 * 2 * 3 + 3
    assert not frame.duplicated(KEYS).any()
    assert not (frame["estimator"].eq("weight") & frame["space"].eq("activation")).any()
    assert list(frame.columns[:4]) == KEYS
    for name in TABLE:
        assert name in frame, name
        paired = name in schema.QUANTITIES
        for suffix in ("_se", "_low", "_high", "_wide", "_short", "_predicted"):
            assert (name + suffix in frame) == paired, name


def test_a_result_that_was_stored_before_intervals_could_be_wide_is_read() -> None:
    def older(node: xr.Dataset) -> xr.Dataset:
        return node.drop_vars([name for name in node.data_vars if str(name).endswith((schema.WIDE, schema.SHORT))])

    trees = {"new": TREE, "old": xr.DataTree.from_dict({node.path: older(node.to_dataset()) for node in TREE.subtree})}
    new, old = (fga.summary(tree) for tree in trees.values())
    said = [name for name in new if name.endswith((schema.WIDE, schema.SHORT))]
    assert said and new[said].notna().any().all() and old[said].isna().all().all()
    pd.testing.assert_frame_equal(old.drop(columns=said), new.drop(columns=said))
    assert "±≤" not in formatted(old, TABLE).to_string()
    # Of steps of which one was stored before, the other says it still.
    trees["old"]["measured"] = trees["old"]["measured"].to_dataset().assign_coords(step=[1])
    trees["old"]["predicted"] = trees["old"]["predicted"].to_dataset().assign_coords(step=[1])
    both = fga.summary(join([xr.DataTree.from_dict({n: tree[n] for n in NODES}) for tree in trees.values()]))
    assert both.groupby("step")["mse_wide"].count().tolist() == [len(new), 0]


def test_its_numbers_are_those_of_the_tree() -> None:
    row = fga.summary(TREE).set_index(KEYS).loc[(0, "weight", "weight", "all")]
    where = {"step": 0, "estimator": "weight", "space": "weight", "layer": "all"}
    measured, predicted = (TREE[node].to_dataset().sel(where) for node in ("measured", "predicted"))
    for name in ("variance", "mse", "efficiency"):
        assert row[name] == float(measured[name])
        assert row[name + "_se"] == float(measured[name + "_se"])
        assert row[name + "_predicted"] == float(predicted[name])


def test_quantities_can_be_chosen() -> None:
    frame = fga.summary(TREE, ["shrinkage"])
    suffixes = ("", "_se", "_low", "_high", "_wide", "_short", "_predicted")
    assert list(frame.columns) == [*KEYS, *("shrinkage" + suffix for suffix in suffixes)]
    assert len(frame) == 15
    for name in ("nonsense", "inner_product"):
        with pytest.raises(ValueError, match=f"unknown quantity '{name}'; known ones: .*shrinkage"):
            fga.summary(TREE, [name])


def test_a_quantity_per_layer_is_told_once_a_space() -> None:
    frame = fga.summary(TREE, ["wang2025_variance"])
    assert set(frame["estimator"]) == {"backpropagation", "orthogonal(k=1)"}
    assert list(frame.columns[:3]) == ["step", "estimator", "layer"] and "all" not in set(frame["layer"])


def test_what_follows_from_the_snapshot_alone_stands_without_an_error() -> None:
    frame = fga.summary(TREE, ["wang2025_overlap"])
    assert list(frame.columns) == ["step", "estimator", "layer", "wang2025_overlap"]
    known = frame.dropna()
    assert list(known["estimator"]) == ["orthogonal(k=1)"] and list(known["layer"]) == ["0"]


@pytest.mark.parametrize("ask", [fga.summary, fga.agreement, fga.z_scores])
def test_a_tree_of_something_else_is_refused(ask: Any) -> None:
    with pytest.raises(ValueError, match="the tree has no /measured node: give what fganalysis"):
        ask(xr.DataTree())


@pytest.mark.parametrize(
    ("value", "error", "predicted", "text"),
    [
        (1.23456, 0.01, 1.2, "1.235 ± 0.01 | 1.2"),
        (1234.56, 10.0, 1200.0, "1235 ± 1e+01 | 1200"),
        (0.001, 0.5, np.nan, "0.001 ± 0.5"),
        (1.0, 0.0, 1.0, "1 exact | 1"),
        (2.0, np.nan, np.nan, "2"),
        (np.nan, np.nan, 1.0, "–"),
    ],
)
def test_a_cell_is_rounded_by_its_error(value: float, error: float, predicted: float, text: str) -> None:
    frame = pd.DataFrame({"layer": ["all"], "mse": [value], "mse_se": [error], "mse_predicted": [predicted]})
    shown = formatted(frame, ["mse"])
    assert shown.loc[0, "mse"] == text
    assert shown.loc[0, "layer"] == "all"


def test_a_wide_interval_is_marked() -> None:
    columns = {"layer": ["all"], "mse": [1.0], "mse_se": [0.1], "mse_predicted": [1.1]}
    for wide, text in ((1.0, "1 ±≤ 0.1 | 1.1"), (0.0, "1 ± 0.1 | 1.1"), (np.nan, "1 ± 0.1 | 1.1")):
        assert formatted(pd.DataFrame(columns | {"mse_wide": [wide]}), ["mse"]).loc[0, "mse"] == text


def test_an_interval_that_may_be_too_short_is_marked() -> None:
    """Whether it is wide for another reason or not."""
    columns = {"layer": ["all"], "mse": [1.0], "mse_se": [0.1], "mse_predicted": [1.1], "mse_short": [1.0]}
    for wide in (0.0, 1.0):
        assert formatted(pd.DataFrame(columns | {"mse_wide": [wide]}), ["mse"]).loc[0, "mse"] == "1 ±≥ 0.1 | 1.1"


def changed(name: str, where: dict[str, str], value: float | None = None, error: float | None = None) -> xr.DataTree:
    """The tree with one measured number, or its error, set to another value, and a normal law's interval around it."""
    tree = TREE.copy(deep=True)
    place = {dim: label for dim, label in where.items() if dim in tree["measured"][name].dims}
    for variable, number in ((name, value), (name + schema.SE, error)):
        if number is not None:
            tree["measured"][variable].loc[place] = number
    centre, half = tree["measured"][name].sel(place), Z95 * tree["measured"][name + schema.SE].sel(place)
    tree["measured"][name + schema.LOW].loc[place] = centre - half
    tree["measured"][name + schema.HIGH].loc[place] = centre + half
    return tree


def test_z_takes_the_bound_on_the_side_of_the_prediction() -> None:
    predicted, error = number("predicted", "mse", NOISY), number("measured", "mse_se", NOISY)
    for side, bound in ((1, schema.LOW), (-1, schema.HIGH)):
        tree = changed("mse", NOISY, value=predicted + side * 2 * error)
        tree["measured"]["mse" + bound].loc[NOISY] -= side * 2 * Z95 * error
        assert float(fga.z_scores(tree)["mse"].sel(NOISY).squeeze()) == pytest.approx(side * 2 / 3, rel=1e-6)


def number(node: str, name: str, where: dict[str, str]) -> float:
    return float(TREE[node].to_dataset()[name].sel(where).squeeze())


NOISY = {"estimator": "orthogonal(k=1)", "space": "weight", "layer": "0"}
EXACT = {"estimator": "backpropagation", "space": "activation", "layer": "0"}


@pytest.mark.parametrize("name", COMPARED)
def test_z_is_the_difference_in_standard_errors(name: str) -> None:
    predicted, error = number("predicted", name, NOISY), number("measured", name + "_se", NOISY)
    if np.isnan(predicted):
        assert name == "cosine"
        return
    scores = fga.z_scores(changed(name, NOISY, value=predicted - 5 * error))
    assert float(scores[name].sel(NOISY).squeeze()) == pytest.approx(-5, rel=1e-6)
    table = fga.agreement(changed(name, NOISY, value=predicted - 5 * error)).set_index("quantity").loc[name]
    assert (table["|z|>3"], table["|z|>4"], table["largest |z|"]) == (1, 1, 5.0)


def test_the_table_counts_what_chance_would_give() -> None:
    table = fga.agreement(TREE).set_index("quantity")
    assert list(table.index) == [*COMPARED, "wang2025_variance"]
    assert table.loc["variance", "compared"] == 15
    assert table.loc["wang2025_variance", "compared"] == 4
    assert table.loc["variance", ">3 by chance"] == pytest.approx(15 * 0.0026998, abs=0.005)
    assert (table["|z|>4"] == 0).all()
    assert (table["rms z"] < 1.5).all()


def test_an_exact_guess_agrees_to_rounding() -> None:
    scores = fga.z_scores(TREE).sel(estimator="backpropagation")
    for name in COMPARED:
        found = scores[name].values
        assert np.all(found[~np.isnan(found)] == 0), name


@pytest.mark.parametrize("name", ["shrinkage", "squared_bias", "variance", "mse", "best_scale", "directional_bias"])
def test_an_exact_guess_that_is_wrong_is_counted(name: str) -> None:
    """Without an error z has no scale: it must not drop out of the table for that."""
    scale = number("measured", "gradient_norm", EXACT) ** 2 if schema.QUANTITIES[name].units != "1" else 1.0
    expected = number("predicted", name, EXACT)
    within = changed(name, EXACT, value=expected + 0.5 * SINGLE_PRECISION_ROUNDING * scale, error=0.0)
    beyond = changed(name, EXACT, value=expected + 2 * SINGLE_PRECISION_ROUNDING * scale, error=0.0)
    assert float(fga.z_scores(within)[name].sel(EXACT).squeeze()) == 0
    assert float(fga.z_scores(beyond)[name].sel(EXACT).squeeze()) == np.inf
    table = fga.agreement(beyond).set_index("quantity").loc[name]
    assert (table["|z|>4"], table["largest |z|"]) == (1, np.inf)


def test_rounding_is_that_of_each_layer_and_space() -> None:
    """One scale for all let activation gradients, far smaller than weight gradients, agree whatever was measured."""
    tree = TREE.copy(deep=True)
    tree["measured"]["gradient_norm"].loc[{"space": "weight"}] *= 1e4
    for name in ("variance", "variance_low", "variance_high"):
        tree["measured"][name].loc[NOISY | {"space": "activation"}] += 10
    z = fga.z_scores(tree)["variance"].sel(NOISY | {"space": "activation"}).squeeze()
    assert float(z) > 10
