"""The part of `studies.fdfa` on the conv net, run whole and tiny; its numbers by other routes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import DirectFeedback, ForwardDirectFeedback
from studies.fdfa import __main__ as fdfa
from studies.fdfa import conv, conv_page
from studies.fdfa import variance as frozen

TINY: dict[str, Any] = {
    "network": "conv",
    "examples": 8,
    "longest": 20,
    "conv_seeds": (0, 1),
    "conv_channels": (2, 3),
    "conv_hidden": 6,
    "conv_epochs": 1,
    "conv_rates": (0.3,),
    "conv_histories": 32,
    "conv_pooled": 4,
    "conv_guesses": 64,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fdfa_conv")


@pytest.fixture(scope="module")
def found(folder: Path) -> xr.Dataset:
    return fdfa.main(fdfa.Settings(**TINY, out=folder / "out", page=folder / "page"))["variance"].to_dataset()


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    network = fga.networks.conv((1, 16, 16), channels=(2, 3), hidden=6)
    return fga.capture(network, torch.nn.functional.cross_entropy, *conv.framed_digits().batch(6))


def test_every_variable_is_described_and_the_page_holds_its_figures(found: xr.Dataset, folder: Path) -> None:
    assert all(array.attrs["units"] and array.attrs["long_name"] for array in found.values())
    page = (folder / "page" / "fdfa_conv.md").read_text(encoding="utf-8")
    assert "nan" not in page
    for name in ("layers", "history"):
        assert f"(fdfa_conv_{name}.png)" in page
        assert 5000 < (folder / "page" / f"fdfa_conv_{name}.png").stat().st_size < 150_000


def test_a_second_run_computes_nothing(found: xr.Dataset, folder: Path) -> None:
    written = {path: path.stat().st_mtime_ns for path in (folder / "out" / "cells").iterdir()}
    again = fdfa.main(fdfa.Settings(**TINY, out=folder / "out", page=folder / "page"))
    xr.testing.assert_equal(again["variance"].to_dataset(), found)
    assert len(written) == 2 and {path: path.stat().st_mtime_ns for path in written} == written


def test_terms_add_up(found: xr.Dataset) -> None:
    """mse = variance + squared bias; and direct feedback's guess is not random."""
    for opening in ("", "other_"):
        total = found[f"{opening}variance"] + found[f"{opening}squared_bias"]
        np.testing.assert_allclose(found[f"{opening}mse"], total, rtol=1e-4, atol=1e-8)
    assert float(abs(found["other_variance"].sel(other="direct feedback")).max()) == 0
    assert set(conv_page.of_guesses(found)["guess"].values) == {"FDFA, α = 0.3", *conv_page.NAMES.values()}


def test_measured_terms_are_those_of_sample(snapshot: Snapshot) -> None:
    """Another route: `fga.sample` of whole histories, with other noise."""
    ours = frozen.measured(snapshot, [0.3], frozen.Sizes(96, 2, 17, 64), seed=3).isel(rate=0, time=-1)
    other = fga.sample(snapshot, ForwardDirectFeedback(rate=0.3, steps=int(ours["step"])), n_guesses=128, seed=1)
    layers = ours["layer"].values[:-1]
    assert list(layers) == list(snapshot.layers[:-1])
    for layer in layers:
        for name in ("variance", "mse", "efficiency"):
            difference = ours[name].sel(layer=layer) - other[name].sel(layer=layer)
            error = np.hypot(ours[f"{name}_se"].sel(layer=layer), other[f"{name}_se"].sel(layer=layer))
            assert (abs(difference) < 4.5 * error).all(), (name, layer)


def test_direct_feedbacks_bias_is_the_distance_of_its_guess(snapshot: Snapshot) -> None:
    estimator = DirectFeedback(seed=5)
    found = conv._of_one_guess(snapshot, estimator)
    guesses = estimator(snapshot, 1, torch.Generator())
    for index in range(len(snapshot.taps) - 1):
        error = guesses.guesses[index][0] - snapshot.gradients[index]
        assert found["squared_bias"][0, index] == pytest.approx(float(error.square().sum()), rel=1e-4)
    (weights,) = guesses.dense(snapshot)[1]
    exact = torch.cat([gradient.flatten() for gradient in snapshot.weight_gradients])
    last = snapshot.weight_gradients[-1].numel()
    assert found["squared_bias"][1, -1] == pytest.approx(float((weights - exact)[:-last].square().sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_seeds": (1,)}, "conv_seeds must be at least 2, for an interval, got 1"),
        ({"conv_channels": (3,)}, "conv_channels must be of two convolutions, got"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fdfa.Settings(**(TINY | change))
