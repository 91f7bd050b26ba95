"""Spectra and overlaps of a snapshot against NumPy, and the predictions made of them against theory and sampling."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fganalysis as fga
from fganalysis.capturing.capture import freeze
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.upstream import UpstreamJacobian
from fganalysis.estimators import OrthogonalUpstream
from fganalysis.measuring.snapshot_subspaces import subspaces
from fganalysis.measuring.spectra import spectra, upstream_modes
from fganalysis.results import schema

LAYERS = ["0", "2", "4"]
QUANTITIES = ("bias", "variance", "efficiency")


def small(trained: bool) -> Snapshot:
    """A ReLU network on 12 examples, at initialisation or after 200 steps of Adam, which fit them to half the loss."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 4, (12,), generator=generator)
    network = fga.networks.mlp([6, 9, 7, 4], bias=True, seed=0, dtype=torch.float64)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(200 if trained else 0):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, targets, step=200 * trained)


SNAPSHOTS = {"at initialisation": small(False), "trained": small(True)}
EVERY_SNAPSHOT = pytest.mark.parametrize("snapshot", SNAPSHOTS.values(), ids=SNAPSHOTS)


def test_the_trained_network_is_trained() -> None:
    assert float(SNAPSHOTS["trained"].loss) < 0.5 * float(SNAPSHOTS["at initialisation"].loss)


@EVERY_SNAPSHOT
def test_spectra_are_numpys(snapshot: Snapshot) -> None:
    found = subspaces(snapshot)
    for layer, name in enumerate(LAYERS):
        g, x = snapshot.gradients[layer].numpy(), snapshot.taps[layer].inputs.numpy()
        for matrix, array in (("activation_gradient", g), ("layer_input", x), ("weight_gradient", g.T @ x)):
            own = found.sel(matrix=matrix, layer=name)
            values = np.linalg.svd(array, compute_uv=False)
            np.testing.assert_allclose(own["singular_value"].dropna("mode"), values, atol=1e-10)
            shares = values**2 / np.sum(values**2)
            np.testing.assert_allclose(own["energy"].dropna("mode"), np.cumsum(shares), rtol=1e-8)
            np.testing.assert_allclose(own["stable_rank"], 1 / shares[0], rtol=1e-8)
            np.testing.assert_allclose(own["participation_ratio"], 1 / np.sum(shares**2), rtol=1e-8)
            assert int(own["srank"]) == np.searchsorted(np.cumsum(values) / np.sum(values), 0.99) + 1
            assert int(own["modes_for_90"]) == np.searchsorted(np.cumsum(shares), 0.9) + 1


@EVERY_SNAPSHOT
def test_overlaps_are_projections_on_each_examples_own_jacobian(snapshot: Snapshot) -> None:
    found = subspaces(snapshot)
    for layer, name in enumerate(LAYERS[:-1]):
        curves, ranks = [], []
        for dense, g in zip(snapshot.upstream[layer].dense().numpy(), snapshot.gradients[layer].numpy(), strict=True):
            if not g.any():
                continue
            values, right = np.linalg.svd(dense)[1:]
            curves.append([np.sum((right[:k] @ g) ** 2) / np.sum(g**2) for k in range(1, len(values) + 1)])
            ranks.append(np.sum(values > 1e-12 * values[0]))
        spectrum = np.linalg.svd(snapshot.upstream[layer].dense().numpy(), compute_uv=False)
        curve, length = np.array(curves), len(curves[0])
        own = found.sel(layer=name).isel(mode=slice(length))
        np.testing.assert_allclose(own["overlap"], curve.mean(0), rtol=1e-8)
        np.testing.assert_allclose(own["overlap_spread"], curve.std(0, ddof=1), atol=1e-8)
        np.testing.assert_allclose(own["overlap_se"], curve.std(0, ddof=1) / np.sqrt(len(curve)), atol=1e-8)
        np.testing.assert_allclose(own["singular_value"].sel(matrix="upstream_jacobian"), spectrum.mean(0), atol=1e-8)
        ks = np.arange(1, length + 1)
        np.testing.assert_allclose(own["random_overlap"], ks / snapshot.taps[layer].units)
        in_range = np.minimum(ks[:, None] / np.array(ranks), 1).mean(1)
        np.testing.assert_allclose(own["random_overlap_in_range"], in_range)
        # The gradient lies in the row space of the Jacobian, so all modes hold all of it.
        np.testing.assert_allclose(found["overlap"].sel(layer=name).isel(mode=-1), 1, rtol=1e-8)


@EVERY_SNAPSHOT
def test_predictions_for_every_k_equal_the_general_law(snapshot: Snapshot) -> None:
    """The energy curve and the whole matrices are two roads through theory."""
    found = subspaces(snapshot)
    for k in range(1, 1 + max(int(jacobian.rank().max()) for jacobian in snapshot.upstream)):
        predicted = fga.predict(snapshot, OrthogonalUpstream(k=k, exact=True))
        for name in QUANTITIES:
            own = found[f"orthogonal_{name}"].sel(mode=k)
            # A bias of zero is the root of a difference of squares.
            np.testing.assert_allclose(own, predicted[name], rtol=1e-8, atol=1e-7 if name == "bias" else 1e-12)
    upstream = fga.predict(snapshot, "upstream")
    for name in QUANTITIES:
        np.testing.assert_allclose(found[f"upstream_{name}"], upstream[name], rtol=1e-8, atol=1e-9)


N_GUESSES = 3000


@EVERY_SNAPSHOT
def test_predictions_for_every_k_lie_within_sampling_error(snapshot: Snapshot) -> None:
    """Two spaces, four layers, three quantities, every k that some example has, within 4.5 standard errors.

    Efficiencies are compared where the sampled one is known to a tenth, as its error is asymptotic. The smallest error
    that can be seen is a tenth of a quantity; the last lines look for one, a k that is off by one.
    """
    found = subspaces(snapshot)
    highest = max(int(jacobian.rank().max()) for jacobian in snapshot.upstream)
    scores, shifted = [], []
    for k in range(1, highest + 1):
        sampled = fga.sample(snapshot, OrthogonalUpstream(k=k, exact=True), n_guesses=N_GUESSES, seed=5, workers=1)
        for name in QUANTITIES:
            # At zero bias the root's law is not normal, its square's is.
            power, measured = (2, "squared_bias") if name == "bias" else (1, name)
            error = sampled[measured + "_se"]
            sound = error < 0.1 * abs(sampled[measured]) if name == "efficiency" else error > 0
            for into, mode in ((scores, k), (shifted, k % highest + 1)):
                z = (sampled[measured] - found[f"orthogonal_{name}"].sel(mode=mode) ** power) / error
                into.extend(z.values[sound.values])
    scores, shifted = (np.array(one)[np.isfinite(one)] for one in (scores, shifted))
    assert len(scores) > 100
    assert np.abs(scores).max() < 4.5
    assert np.abs(shifted).max() > 20


def test_the_best_k_is_the_most_efficient_one() -> None:
    found = subspaces(SNAPSHOTS["at initialisation"])
    efficiency = found["orthogonal_efficiency"]
    np.testing.assert_array_equal(found["best_k"], efficiency["mode"].values[efficiency.argmax("mode")])
    own = found["best_k_of_each_layer"]
    assert bool(own.sel(layer=LAYERS[:-1]).notnull().all()) and bool(own.sel(layer=["4", "all"]).isnull().all())


def test_at_the_activations_the_nets_efficiency_is_the_kept_energy_over_the_directions_and_two() -> None:
    """With all ranks at least k: Σ_b T_b (K + 2) is the second moment, K the directions of all layers together."""
    snapshot = SNAPSHOTS["at initialisation"]
    lowest = min(int(jacobian.rank().min()) for jacobian in snapshot.upstream)
    found = subspaces(snapshot).sel(layer="all", space="activation").isel(mode=slice(lowest))
    directions = 2 * found["mode"] + 4
    np.testing.assert_allclose(found["orthogonal_efficiency"], found["kept_energy"] / (directions + 2), rtol=1e-10)


def test_names_units_and_the_tree() -> None:
    tree = fga.diagnose(list(SNAPSHOTS.values()), [OrthogonalUpstream(k=2)], n_guesses=32)
    node = tree["subspace"].to_dataset()
    schema.validate(node)
    assert list(node["step"].values) == [0, 200]
    assert set(node.data_vars) == {*schema.RANKS, *schema.MODE_CURVES, *schema.OVERLAPS, *schema.STORY}
    for name, array in node.data_vars.items():
        assert set(array.dims) == {"step", *schema.variables()[str(name)].dims}
        assert array.attrs["units"] and array.attrs["long_name"]


def test_single_precision_finds_the_same() -> None:
    snapshot = SNAPSHOTS["trained"]
    single = fga.capture(snapshot.network.float(), snapshot.loss_fn, snapshot.inputs.float(), snapshot.targets)
    snapshot.network.double()
    found, expected = subspaces(single), subspaces(snapshot)
    for name in ("overlap", "kept_energy", "orthogonal_efficiency", "energy"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-5)


def test_dead_examples_and_zero_gradients() -> None:
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    derivative = torch.ones(4, 5, dtype=torch.float64)
    derivative[0] = 0
    derivative[1, 1:] = 0
    gradient = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradient[2] = 0
    jacobian = UpstreamJacobian(weight, derivative)
    modes = upstream_modes(jacobian, jacobian.transposed_product(gradient))
    np.testing.assert_array_equal(modes.rank, [0, 1, 3, 3])
    assert np.isnan(modes.overlap[[0, 2]]).all()
    np.testing.assert_allclose(modes.overlap[[1, 3], -1], 1, rtol=1e-12)
    everything_dead = upstream_modes(UpstreamJacobian(weight, derivative * 0), gradient @ weight * 0)
    np.testing.assert_array_equal(everything_dead.rank, 0)

    network = fga.networks.mlp([3, 4, 2], bias=False, seed=0, dtype=torch.float64)
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    nothing_lost = freeze(
        network, lambda outputs, targets: (0 * outputs).mean(), inputs, inputs, autodiff="reverse", step=0
    )
    found = subspaces(nothing_lost)
    for name in ("overlap", "kept_energy", "best_k", "best_k_of_each_layer", "orthogonal_efficiency"):
        assert bool(found[name].isnull().all()), name
    np.testing.assert_array_equal(found["orthogonal_variance"], 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_equal_singular_values_give_the_same_story_however_units_are_permuted(dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.randn(5, 6, generator=generator).to(dtype), torch.tensor([0, 1, 2, 0, 1])
    network = fga.networks.mlp([6, 8, 8, 3], bias=False, seed=seed, dtype=dtype)
    weights = dict(network.named_parameters())
    torch.nn.init.orthogonal_(weights["2.weight"], generator=generator)
    order = torch.randperm(8, generator=generator)
    permuted = copy.deepcopy(network)
    moved = {"0.weight": weights["0.weight"][order], "2.weight": weights["2.weight"][:, order]}
    permuted.load_state_dict(moved, strict=False)
    snapshot, other = (
        fga.capture(one, torch.nn.functional.cross_entropy, inputs, targets) for one in (network, permuted)
    )
    found, again = subspaces(snapshot), subspaces(other)
    # Biases are roots of differences: rounding shows as its root.
    tolerance = 1e-3 if dtype == torch.float32 else 1e-6
    for name in ("overlap", "overlap_spread", "orthogonal_bias", "orthogonal_variance", "orthogonal_efficiency"):
        scale = float(np.abs(found[name]).max())
        np.testing.assert_allclose(again[name], found[name], atol=tolerance * scale, err_msg=name)
    np.testing.assert_array_equal(again["best_k"], found["best_k"])
    # Behind an orthogonal weight every subspace of the range is as good as a random one.
    own = found.sel(layer="0").isel(mode=slice(8))
    dead = snapshot.gradients[0].square().sum(1) == 0
    if not dead.any():
        np.testing.assert_allclose(own["overlap"], own["random_overlap_in_range"], atol=1e-5)
    modes = upstream_modes(snapshot.upstream[0], snapshot.gradients[0])
    np.testing.assert_array_equal(modes.tied.sum(1), (modes.rank - 1).clip(0))


def test_a_network_that_is_no_chain_has_spectra_and_no_overlaps() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Softmax(dim=1), torch.nn.Linear(4, 2))
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.tensor([0, 1, 1, 0, 1]))
    found = subspaces(snapshot)
    assert bool(found["overlap"].isnull().all()) and bool(found["best_k"].isnull().all())
    assert bool(found["stable_rank"].sel(matrix="weight_gradient", layer=["0", "2"]).notnull().all())
    assert spectra(snapshot, []).equals(found[list(spectra(snapshot, []).data_vars)])


def test_one_layer_and_saturating_units() -> None:
    make = partial(fga.networks.mlp, bias=False, seed=0, dtype=torch.float64)
    inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    targets = torch.tensor([0, 1, 0, 1, 1, 0])
    alone = subspaces(fga.capture(make([3, 2]), torch.nn.functional.cross_entropy, inputs, targets))
    assert bool(alone["kept_energy"].isnull().all())
    assert bool(alone["stable_rank"].sel(matrix="layer_input", layer="0").notnull())
    smooth = make([3, 5, 2], activation=torch.nn.Tanh)
    found = subspaces(fga.capture(smooth, torch.nn.functional.cross_entropy, inputs, targets))
    np.testing.assert_allclose(found["random_overlap_in_range"].sel(layer="0").values[:2], [0.5, 1])
