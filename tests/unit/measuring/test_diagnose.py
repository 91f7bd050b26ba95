"""A diagnosis: measured and predicted side by side, over estimators and steps, and back from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivityPerturbation,
    OrthogonalUpstream,
)
from fganalysis.estimators.guesses import Estimates
from fganalysis.measuring.joining import join
from fganalysis.results import schema, store
from tests.unit.predictions.claims import classification, scores

NODES = ("measured", "predicted", "subspace")
SMALL = classification((4, 5, 3), n_examples=6)


def no_closed_form(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
    """A stranger's estimator."""
    return ActivityPerturbation()(snapshot, n_guesses, generator)


def test_an_unknown_estimator_is_predicted_as_nan() -> None:
    predicted = fga.predict(SMALL, no_closed_form)
    assert set(predicted.data_vars) == {*schema.QUANTITIES, *schema.EXACT}
    for name, array in predicted.items():
        assert bool(array.isnull().all()) == (name != "gradient_norm"), name
    tree = fga.diagnose(SMALL, [no_closed_form, "activity"], n_guesses=64)
    assert tree["predicted"]["estimator"].to_numpy().tolist() == ["no_closed_form", "activity"]
    assert np.isnan(tree["predicted"]["mse"].sel(estimator="no_closed_form")).all()
    assert np.isfinite(tree["measured"]["mse"].sel(estimator="no_closed_form")).all()


def test_measured_and_predicted_have_the_same_variables_and_coordinates() -> None:
    tree = fga.diagnose(SMALL, ["backpropagation", "weight", "activity"], n_guesses=64)
    measured, predicted = tree["measured"], tree["predicted"]
    for name in schema.QUANTITIES:
        assert measured[name].dims == predicted[name].dims, name
        assert measured[name].attrs == predicted[name].attrs, name
        assert measured[name + schema.SE].dims == measured[name].dims, name
    for dim in (schema.STEP, schema.ESTIMATOR, schema.SPACE, schema.LAYER):
        np.testing.assert_array_equal(measured[dim], predicted[dim])
    assert measured["layer"].to_numpy().tolist() == ["0", "2", "all"]
    for node in (measured, predicted):
        schema.validate(node.to_dataset())
        np.testing.assert_allclose(node["gradient_norm"], measured["gradient_norm"])


def test_several_snapshots_are_joined_along_the_step() -> None:
    snapshots = [classification((4, 5, 3), n_examples=6, seed=step, step=step) for step in (0, 7)]
    together = fga.diagnose(snapshots, ["activity", "weight"], n_guesses=64, seed=1)
    alone = [fga.diagnose(one, ["activity", "weight"], n_guesses=64, seed=1) for one in snapshots]
    for tree in (together, join(alone)):
        for node in NODES:
            assert tree[node]["step"].to_numpy().tolist() == [0, 7]
            for index, own in enumerate(alone):
                for name in map(str, own[node].data_vars):
                    np.testing.assert_array_equal(tree[node][name].isel(step=index), own[node][name].isel(step=0))


def test_attributes_say_how_it_was_made() -> None:
    attributes = fga.diagnose(SMALL, ["activity", "weight"], n_guesses=64, seed=3)["measured"].attrs
    assert (attributes["n_guesses"], attributes["seed"], attributes["n_examples"]) == (64, 3, 6)
    assert "activity" in attributes["estimator"] and "weight" in attributes["estimator"]


def test_every_estimator_is_named_once() -> None:
    with pytest.raises(ValueError, match="estimators must be different ones and at least one"):
        fga.diagnose(SMALL, ["activity", ActivityPerturbation()])
    with pytest.raises(ValueError, match="estimators must be different ones and at least one"):
        fga.diagnose(SMALL, [])
    with pytest.raises(ValueError, match="unknown estimator 'nonsense'; known ones: backpropagation, weight"):
        fga.diagnose(SMALL, ["nonsense"])
    with pytest.raises(ValueError, match="unknown estimator 'nonsense'"):
        fga.predict(SMALL, "nonsense")


def test_every_step_is_looked_at_once() -> None:
    with pytest.raises(ValueError, match=r"snapshots must be of different steps .* got the steps \[0, 0\]"):
        fga.diagnose([SMALL, SMALL], ["activity"])
    with pytest.raises(ValueError, match="snapshots must be of different steps and at least one"):
        fga.diagnose([], ["activity"])


def test_a_diagnosis_comes_back_from_disk(tmp_path: Path) -> None:
    snapshots = [classification((4, 5, 3), n_examples=6, step=step) for step in (0, 7)]
    tree = fga.diagnose(snapshots, ["activity", OrthogonalUpstream(k=2)], n_guesses=64)
    path = store.write(tree, tmp_path / "cell.nc")
    back = fga.open_results(tmp_path)
    for node in NODES:
        xr.testing.assert_equal(back[node].to_dataset(), tree[node].to_dataset())
        with xr.open_dataset(path, group=node, engine="netcdf4") as plain:
            xr.testing.assert_equal(plain.load(), tree[node].to_dataset())
            for name, array in plain.items():
                assert array.attrs == tree[node][str(name)].attrs and array.attrs["units"], name
    with xr.open_datatree(path, engine="netcdf4") as plain:
        assert set(plain.children) == {"measured", "predicted", "subspace"}
    np.testing.assert_array_equal(scores(back), scores(tree))
