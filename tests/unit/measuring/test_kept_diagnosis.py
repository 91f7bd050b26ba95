"""What a diagnosis has finished is kept: failures are NaN with a reason, and every row is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import OrthogonalUpstream
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.measuring import diagnose
from fganalysis.measuring.diagnose import CHEAP
from fganalysis.measuring.joining import join
from fganalysis.measuring.snapshot_subspaces import subspace_work
from fganalysis.results import plotting, schema, store
from fganalysis.results.tables import TABLE, formatted
from tests.unit.measuring.test_sample import WithConvolution

cross_entropy = torch.nn.functional.cross_entropy


def snapshot(sizes: tuple[int, ...] = (6, 5, 4), n_examples: int = 8, **settings: Any) -> Snapshot:
    network = fga.networks.mlp(list(sizes), bias=False, seed=0)
    inputs = torch.randn(n_examples, sizes[0], generator=torch.Generator().manual_seed(1))
    return fga.capture(network, cross_entropy, inputs, torch.arange(n_examples) % sizes[-1], **settings)


SNAPSHOT = snapshot()
TOO_MANY = OrthogonalUpstream(k=99)
REFUSAL = "k=99 is above the rank of every upstream Jacobian, at most 3 here"


def crashing(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
    raise KeyError("no such parameter")


def of_nan(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
    return ActivationEstimates(tuple(torch.full((n_guesses, *tap.outputs.shape), np.nan) for tap in snapshot.taps))


def reasons(node: Any) -> dict[str, str]:
    return json.loads(node.attrs[schema.NOT_MEASURED])


def test_estimators_with_different_numbers_of_groups_stand_beside_each_other() -> None:
    torch.manual_seed(0)
    wide = snapshot((784, 128, 10), n_examples=32)
    tree = fga.diagnose(wide, ["weight", "activity"], n_guesses=256)
    measured = tree["measured"].to_dataset().isel(step=0)
    counts = []
    for name in ("weight", "activity"):
        alone = fga.sample(wide, name, n_guesses=256)
        own = measured.sel(estimator=name)
        n_groups = alone.sizes[schema.GROUP]
        counts.append(n_groups)
        assert own["group_size"].dtype.kind == "i" and own["group_size"].sum() == 256
        np.testing.assert_array_equal(own["group_size"][:n_groups], alone["group_size"])
        np.testing.assert_array_equal(own["gram"][..., :n_groups, :n_groups], alone["gram"])
        assert np.isnan(own["gram"][..., n_groups:, :]).all() and not own["group_size"][n_groups:].any()
        for quantity in TABLE:
            np.testing.assert_array_equal(own[quantity], alone[quantity])
    assert counts[0] != counts[1]
    assert set(fga.summary(tree)["estimator"]) == {"weight", "activity"}
    joined = join([fga.diagnose(wide, [name], n_guesses=256) for name in ("activity",)])
    assert joined["measured"].sizes[schema.GROUP] == counts[1]


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_layer_of_zeros_has_spectra(layer: int, dtype: torch.dtype) -> None:
    network = fga.networks.mlp([6, 5, 4], seed=0, activation=torch.nn.Tanh, dtype=dtype)
    torch.nn.init.zeros_(network[layer].weight)
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)
    tree = fga.diagnose(fga.capture(network, cross_entropy, inputs, torch.arange(8) % 4), ["weight"], 64)
    assert schema.NOT_MEASURED not in tree.attrs
    values = tree["subspace"]["singular_value"].sel(matrix="upstream_jacobian", layer="0").isel(step=0)
    assert (layer == 0) == bool((values > 0).any())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failing", "label", "reason"),
    [
        (TOO_MANY, "orthogonal(k=99)", REFUSAL),
        (crashing, "crashing", "KeyError: 'no such parameter'"),
        (of_nan, "of_nan", "the estimator made a guess that is NaN, infinite or too long to square (seed 0)"),
    ],
    ids=["refuses", "crashes", "nan"],
)
def test_an_estimator_that_fails_leaves_the_others(failing: Any, label: str, reason: str, tmp_path: Path) -> None:
    tree = fga.diagnose(SNAPSHOT, ["weight", failing, "activity"], 64)
    assert reasons(tree["measured"]) == {label: reason}
    alone = fga.diagnose(SNAPSHOT, ["weight", "activity"], 64)
    for quantity in TABLE:
        kept = tree["measured"][quantity].sel(estimator=["weight", "activity"])
        np.testing.assert_array_equal(kept, alone["measured"][quantity])
        lost = tree["measured"][quantity].sel(estimator=label)
        if quantity == "gradient_norm":
            np.testing.assert_array_equal(lost, alone["measured"][quantity].sel(estimator="weight"))
        else:
            assert np.isnan(lost).all(), quantity
    for written in (tree, store.read(store.write(tree, tmp_path / "cell.nc"))):
        frame = fga.summary(written, ["cosine"])
        rows = frame[frame["estimator"] == label]
        assert len(rows) == 6 and rows["cosine"].isna().all() and set(rows[schema.NOT_MEASURED]) == {reason}
        assert set(frame[frame["estimator"] != label][schema.NOT_MEASURED]) == {""}
        assert reason in formatted(frame, ["cosine"]).to_string()
    assert schema.NOT_MEASURED not in fga.summary(alone)
    plotting.save(plotting.cosine(tree), tmp_path / "cosine.png")


def test_what_fails_at_one_step_is_kept_at_the_others() -> None:
    def only_at_seven(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        if snapshot.step == 0:
            raise ValueError("not at the first step")
        return fga.estimators.ActivityPerturbation()(snapshot, n_guesses, generator)

    steps = [snapshot(step=step) for step in (0, 7)]
    together = fga.diagnose(steps, [only_at_seven], 64)
    joined = join([fga.diagnose(one, [only_at_seven, "weight"], 64) for one in steps])
    for tree in (together, joined):
        frame = fga.summary(tree, ["cosine"]).query("estimator == 'only_at_seven'")
        assert frame[frame["step"] == 0]["cosine"].isna().all() and frame[frame["step"] == 7]["cosine"].notna().all()
        assert set(frame[frame["step"] == 0][schema.NOT_MEASURED]) == {"not at the first step"}
        assert set(frame[frame["step"] == 7][schema.NOT_MEASURED]) == {""}


def test_where_every_estimator_fails_the_first_reason_is_raised() -> None:
    with pytest.raises(ValueError, match=r"no estimator could be measured; crashing: KeyError: 'no such parameter'$"):
        fga.diagnose(SNAPSHOT, [crashing, TOO_MANY], 64)
    with pytest.raises(ValueError, match=f"{REFUSAL}$"):
        fga.diagnose(SNAPSHOT, TOO_MANY, 64)


def test_a_warning_is_no_failure_to_be_kept() -> None:
    def warned(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        raise RuntimeWarning("as an error")

    with pytest.raises(RuntimeWarning):
        fga.diagnose(SNAPSHOT, ["weight", warned], 64)


def test_a_prediction_that_fails_leaves_the_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    original = diagnose.predict

    def failing(snapshot: Snapshot, estimator: Any) -> Any:
        if isinstance(estimator, fga.estimators.WeightPerturbation):
            raise ValueError("no such law")
        return original(snapshot, estimator)

    monkeypatch.setattr(diagnose, "predict", failing)
    tree = fga.diagnose(SNAPSHOT, ["weight", "activity"], 64)
    assert reasons(tree["predicted"]) == {"weight": "no such law"}
    assert np.isnan(tree["predicted"]["variance"].sel(estimator="weight")).all()
    assert np.isfinite(tree["predicted"]["variance"].sel(estimator="activity")).all()
    assert np.isfinite(tree["measured"]["variance"].sel(estimator="weight", space="weight")).all()
    assert list(tree["predicted"]["estimator"].values) == ["weight", "activity"]
    tree = fga.diagnose(SNAPSHOT, "weight", 64)
    assert np.isnan(tree["predicted"]["variance"]).all() and np.isfinite(tree["predicted"]["gradient_norm"]).all()


def test_subspaces_are_computed_once_a_snapshot_and_only_when_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Snapshot] = []
    original = diagnose.subspaces
    monkeypatch.setattr(diagnose, "subspaces", lambda one: calls.append(one) or original(one))
    assert "subspace" in fga.diagnose(SNAPSHOT, ["weight", "activity"], 64).children and len(calls) == 1
    assert "subspace" not in fga.diagnose(SNAPSHOT, ["weight"], 64, subspace=False).children and len(calls) == 1
    monkeypatch.setattr(diagnose, "CHEAP", subspace_work(SNAPSHOT) - 1)
    dear = fga.diagnose(SNAPSHOT, ["weight"], 64)
    assert "subspace" not in dear.children and len(calls) == 1
    assert "ask for it with subspace=True" in reasons(dear)["/subspace"]
    assert "subspace" in fga.diagnose(SNAPSHOT, ["weight"], 64, subspace=True).children and len(calls) == 2


def test_subspaces_that_fail_leave_the_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(one: Snapshot) -> Any:
        raise ValueError("no spectrum")

    monkeypatch.setattr(diagnose, "subspaces", failing)
    tree = fga.diagnose(SNAPSHOT, ["weight"], 64, subspace=True)
    assert set(tree.children) == {"measured", "predicted"} and reasons(tree) == {"/subspace": "no spectrum"}


def test_the_work_on_subspaces_grows_with_what_is_decomposed() -> None:
    assert subspace_work(SNAPSHOT) < subspace_work(snapshot(n_examples=80)) < CHEAP
    assert subspace_work(snapshot((6, 1500, 1500, 4))) > CHEAP


def test_a_single_estimator_needs_no_list() -> None:
    instance = OrthogonalUpstream(k=2)
    for one, name in (("weight", "weight"), (instance, "orthogonal(k=2)"), (crashing_later, "crashing_later")):
        tree = fga.diagnose(SNAPSHOT, one, 64)
        assert list(tree["measured"]["estimator"].values) == [name]


def crashing_later(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
    return fga.estimators.ActivityPerturbation()(snapshot, n_guesses, generator)


def smaller(network: torch.nn.Module, n_examples: int = 8, dtype: torch.dtype = torch.float32) -> Snapshot:
    inputs = torch.randn(n_examples, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    return fga.capture(network.to(dtype), cross_entropy, inputs, torch.arange(n_examples) % 4, step=1)


OTHERS = {
    "their layers differ": lambda: smaller(fga.networks.mlp([6, 5, 5, 4])),
    "their weights' shapes differ": lambda: smaller(fga.networks.mlp([6, 7, 4], bias=False)),
    "their modules differ": lambda: smaller(fga.networks.mlp([6, 5, 4], bias=False, activation=torch.nn.Tanh)),
    "their numbers of examples differ, 8 at step 0 and 4 at step 1": lambda: smaller(SNAPSHOT.network, 4),
    "their data types differ, 'float32' at step 0 and 'float64' at step 1": lambda: smaller(
        fga.networks.mlp([6, 5, 4], bias=False), dtype=torch.float64
    ),
}


@pytest.mark.parametrize("message", OTHERS)
def test_snapshots_of_something_else_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=f"snapshots must be of one training: {message}"):
        fga.diagnose([SNAPSHOT, OTHERS[message]()], ["weight"], 64)


def test_rows_do_not_depend_on_the_quantities_or_their_order() -> None:
    tree = fga.diagnose(SNAPSHOT, ["backpropagation", "weight", "activity"], 64)
    keys = ["estimator", "space", "layer"]
    expected = fga.summary(tree)[keys].to_numpy().tolist()
    assert len(expected) == 2 * 6 + 3
    for quantities in (
        ["directional_bias", "cosine"],
        ["cosine", "directional_bias"],
        ["directional_bias"],
        ["gradient_norm"],
        ["cosine_q05"],
        ["wang2025_variance", "cosine"],
        ["cosine", "wang2025_overlap"],
    ):
        assert fga.summary(tree, quantities)[keys].to_numpy().tolist() == expected, quantities


@pytest.mark.parametrize("n_guesses", [2, 3, 24])
def test_few_guesses_have_rows(n_guesses: int, tmp_path: Path) -> None:
    tree = fga.diagnose(SNAPSHOT, ["weight", "activity"], n_guesses)
    for quantities in (TABLE, ["variance"], ["directional_bias"]):
        assert len(fga.summary(tree, quantities)) == 9
    for draw in (plotting.bias_variance, plotting.cosine):
        plotting.save(draw(tree), tmp_path / "figure.png")


@pytest.mark.parametrize("change", ["nan guess", "infinite squares", "no raw numbers"])
def test_rows_of_results_that_were_stored_before_are_shown(change: str) -> None:
    tree = fga.diagnose(SNAPSHOT, ["weight", "activity"], 64)
    measured = tree["measured"].to_dataset()
    if change == "nan guess":
        measured["squared_norm"][..., 3] = np.nan
        measured = measured.assign({name: measured[name] * np.nan for name in TABLE})
    elif change == "infinite squares":
        measured["squared_norm"][:] = measured["squared_norm"] * np.inf
        measured = measured.assign({name: measured[name] * np.nan for name in TABLE})
    else:
        measured = measured.drop_vars(list(schema.RAW))
    measured.attrs.pop(schema.NOT_LOOKED_AT)
    older = xr.DataTree.from_dict({"measured": measured, "predicted": tree["predicted"].to_dataset()})
    frame = fga.summary(older)
    assert len(frame) == 9 and schema.NOT_MEASURED not in frame and schema.NOT_LOOKED_AT not in frame


def test_parameters_in_no_layer_are_told_in_tables_and_on_figures() -> None:
    torch.manual_seed(0)
    network, inputs = WithConvolution(), torch.randn(5, 6)
    found = fga.capture(network, cross_entropy, inputs, torch.arange(5) % 3)
    if not found.untapped_parameters:
        pytest.skip("every parameter is looked at")
    tree = fga.diagnose(found, ["weight", "activity"], 64)
    assert json.loads(tree["measured"].attrs[schema.NOT_LOOKED_AT]) == ["conv.weight", "conv.bias"]
    assert set(fga.summary(tree)[schema.NOT_LOOKED_AT]) == {"conv.weight, conv.bias"}
    assert "conv.weight" in formatted(fga.summary(tree), ["cosine"]).to_string()
    for draw in (plotting.bias_variance, plotting.cosine):
        assert "not looked at: conv.weight, conv.bias" in draw(tree).get_supxlabel()
        assert "not looked at" not in draw(fga.diagnose(SNAPSHOT, "weight", 64)).get_supxlabel()
    assert schema.NOT_LOOKED_AT not in fga.summary(fga.diagnose(SNAPSHOT, "weight", 64))
