"""The Dataset of the study of subspaces: its variables, and how sampled and predicted numbers in it agree."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import stats

from fganalysis.measuring import subspace
from fganalysis.results import store
from studies.subspaces.cells import METHODS
from studies.subspaces.collection import NOTES, _sampled
from tests.studies.subspaces.tiny_study import Finished


def test_the_collected_dataset_names_everything(finished: Finished) -> None:
    collected = store.read(finished.settings.page / "subspaces.nc").to_dataset()
    assert collected.sizes["width"] == 2 and list(collected["trained_by"].values) == list(METHODS)
    for name, array in collected.data_vars.items():
        assert array.attrs.get("units") and array.attrs.get("long_name"), name
    assert set(NOTES) <= set(collected.data_vars)
    start = collected.sel(trained_by="initialisation")
    xr.testing.assert_equal(
        start["overlap"].sel(moment="common", drop=True), start["overlap"].sel(moment="last", drop=True)
    )


def test_sampled_efficiencies_are_the_predicted_ones(finished: Finished) -> None:
    """Some 800 comparisons: one beyond 4.5 comes by chance in two hundred runs, and the seeds are fixed."""
    for quantity in ("efficiency", "variance", "squared_bias"):
        z = finished.collected["z"].sel(quantity=quantity).values
        z = z[np.isfinite(z)]
        assert len(z) > 50
        assert np.abs(z).max() < 4.5, quantity


def test_a_snapshot_is_counted_once(finished: Finished) -> None:
    """A network at initialisation, or trained for the common step alone, has its comparisons at one moment only."""
    known = np.isfinite(finished.collected["z"]).any(["seed", "space", "layer", "k", "quantity"])
    expected = [[False, True, True, True], [False, False, False, False]]
    np.testing.assert_array_equal(known.sel(moment="common").transpose("width", "trained_by"), expected)
    assert bool(known.sel(moment="last").all())


def test_the_nets_efficiency_is_kept_energy_over_directions(finished: Finished) -> None:
    """What answer (c) says of it, where all examples have k directions."""
    own = finished.collected.sel(layer="all", space="activation", trained_by="initialisation", width=12)
    directions = 3 * 3 + 10
    np.testing.assert_allclose(own["orthogonal_efficiency"], own["kept_energy"] / (directions + 2), rtol=1e-2)


def test_cross_layer_noise_makes_a_layers_efficiency(finished: Finished) -> None:
    own = finished.collected.sel(layer="2", space="activation", trained_by="initialisation", width=12)
    expected = own["kept_energy"] / (3 * own["cross_layer"] + 2)
    np.testing.assert_allclose(own["orthogonal_efficiency"], expected, rtol=1e-6)


def test_z_takes_the_bound_on_the_side_of_the_prediction(finished: Finished) -> None:
    tree = store.read(finished.settings.out / "width_8" / "backpropagation_seed_0.nc")
    measured, spaces = tree["measured"].to_dataset(), tree["subspace"].to_dataset()
    wider = measured.copy()
    for name in ("efficiency", "variance"):
        wider[name + "_low"] = 2 * measured[name + "_low"] - measured[name]
    before, after = (_sampled(one, spaces)["z"] for one in (measured, wider))
    for name in ("efficiency", "variance"):
        z, changed = before.sel(quantity=name), after.sel(quantity=name)
        np.testing.assert_allclose(changed.where(z > 0), z.where(z > 0) / 2, rtol=1e-9)
        np.testing.assert_allclose(changed.where(z <= 0), z.where(z <= 0), rtol=1e-9)
        assert bool((z > 0).any()) and bool((z < 0).any())


def test_random_values_have_their_spread(finished: Finished) -> None:
    start = finished.collected.sel(trained_by="initialisation", moment="last", layer="0", width=12, seed=0)
    np.testing.assert_allclose(start["random_overlap_spread"], subspace.random_overlap(3, 12).spread)
    share = float(start["random_overlap_in_range"])
    variance = stats.beta(3 / 2, (3 / share - 3) / 2).var()
    np.testing.assert_allclose(start["random_overlap_in_range_spread"], variance**0.5)
    assert f"{float(start['random_overlap']):.3g} (spread {float(start['random_overlap_spread']):.2g})" in finished.text


def test_overlap_agreement_and_noise_make_the_efficiency_of_the_weights(finished: Finished) -> None:
    """c²·A/(1 + A + N): with the own squares s = ‖Ḡ‖²/A, N + 1 = variance/s."""
    tree = store.read(finished.settings.out / "width_12" / "initialisation_seed_0.nc")
    spaces = tree["subspace"].to_dataset().sel(space="weight", mode=3).isel(step=0)
    beside = tree["beside"].to_dataset().isel(step=0)
    gradient = (tree["subspace"].to_dataset()["singular_value"].isel(step=0).sel(matrix="weight_gradient") ** 2).sum(
        "mode"
    )
    for layer in ("0", "2"):
        overlap, agreement = (float(beside[name].sel(layer=layer)) for name in ("weight_overlap", "agreement"))
        own, whole = spaces.sel(layer=layer), float(gradient.sel(layer=layer))
        # ‖Ḡ − G‖² = ‖Ḡ‖² − 2 c ‖Ḡ‖ ‖G‖ + ‖G‖², and the mean guess is no longer than its projection on G allows.
        roots = np.roots([1, -2 * (overlap * whole) ** 0.5, whole - float(own["orthogonal_bias"]) ** 2])
        expected = [
            overlap * agreement / (agreement + agreement * float(own["orthogonal_variance"]) / root.real**2)
            for root in roots
        ]
        assert min(abs(np.array(expected) / float(own["orthogonal_efficiency"]) - 1)) < 1e-3
