"""The study of FDFA, run whole with tiny settings: its numbers against theory and against other routes to them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
import xarray as xr

import fganalysis as fga
from fganalysis.estimators import ForwardDirectFeedback
from studies.fdfa import __main__ as fdfa
from studies.fdfa import figures
from studies.fdfa import page as fdfa_page
from studies.fdfa import training as fdfa_training
from studies.fdfa import variance as fdfa_variance

TINY = fdfa.Settings(
    width=12,
    widths=(8, 12),
    rates=(0.3, 0.1),
    sweep_rates=(0.3,),
    examples=8,
    trained_epochs=1,
    histories=160,
    pooled=6,
    longest=20,
    guesses=96,
    training_rates=(0.1,),
    learning_rates=(1e-2,),
    epochs=2,
    seeds=2,
)
HIGHEST_Z = 4.5  # Some 1000 comparisons, many of them correlated; the seed is fixed.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fdfa")


def settings_in(folder: Path) -> fdfa.Settings:
    return fdfa.Settings(**(vars(TINY) | {"out": folder / "out", "page": folder / "page"}))


@pytest.fixture(scope="module")
def tree(folder: Path) -> xr.DataTree:
    return fdfa.main(settings_in(folder))


def test_measured_meets_predicted(tree: xr.DataTree) -> None:
    variance = tree["variance"].to_dataset()
    for name in ("variance", "squared_bias", "mse", "lag", "spread", "efficiency", "pooled_variance"):
        z = (variance[name] - variance[f"{name}_predicted"]) / variance[f"{name}_se"]
        assert float(abs(z).max()) < HIGHEST_Z, name
    for name in fdfa_page.OTHERS:
        z = (variance[f"{name}_variance"] - variance[f"{name}_variance_predicted"]) / variance[f"{name}_variance_se"]
        assert float(abs(z).max()) < HIGHEST_Z, name
    # Controls: a variance is told apart from that of another step, and a lag from nothing.
    own = variance.sel(width=12, stage="initial", space="activation", layer="hidden", rate=0.3)
    first, last = own.isel(time=0), own.isel(time=-1)
    assert last["variance"] - first["variance_predicted"] > 4 * last["variance_se"]
    assert first["lag"] > 4 * first["lag_se"]


def test_the_stationary_variance_is_the_activity_perturbed_one_times_the_rates_factor(tree: xr.DataTree) -> None:
    """Within 4 standard errors of at most 15 %; twice as much would be seen."""
    variance = tree["variance"].to_dataset()
    known = variance["ratio"].notnull()
    assert int(known.sum()) == 2 * 2 * 3 * 2  # stages, spaces, layers, widths
    assert float(variance["ratio_se"].max()) < 0.15
    z = ((variance["ratio"] - 1) / variance["ratio_se"]).where(known)
    assert float(abs(z).max()) < 4
    hidden = variance["ratio"].sel(layer="hidden")
    assert bool((abs(hidden - 2) > 4 * variance["ratio_se"].sel(layer="hidden")).where(hidden.notnull(), True).all())


def test_what_the_figures_draw_is_what_the_closed_forms_say(tree: xr.DataTree) -> None:
    variance = tree["variance"].to_dataset()
    for layer in variance["layer"].values:
        point = variance.sel(width=12, stage="trained", space="weight", layer=layer, rate=0.1)
        reached = point["step"].values > 0
        steps = point["step"].values[reached].astype(float)
        for name, line in figures._predicted(point, steps).items():
            expected = np.broadcast_to(point[f"{name}_predicted"].values, reached.shape)[reached]
            np.testing.assert_allclose(line, expected, rtol=1e-6, atol=1e-12)
        drawn = figures._predicted_efficiency(point, steps)
        np.testing.assert_allclose(drawn, point["efficiency_predicted"].values[reached], rtol=1e-6)


def test_measured_terms_are_those_of_sample(tmp_path: Path) -> None:
    """Another route: `fga.sample` of whole histories, with other noise."""
    snapshot = fdfa_variance.snapshot_of(fga.datasets.load("digits"), 8, 0, 4, seed=0, scratch=tmp_path)
    ours = fdfa_variance.compared(snapshot, [0.3], fdfa_variance.Sizes(128, 2, 17, 64), seed=3).isel(rate=0, time=-1)
    other = fga.sample(snapshot, ForwardDirectFeedback(rate=0.3, steps=int(ours["step"])), n_guesses=256, seed=1)
    for layer in ("0", "2"):
        for name in ("variance", "mse", "efficiency"):
            difference = ours[name].sel(layer=layer) - other[name].sel(layer=layer)
            error = np.hypot(ours[f"{name}_se"].sel(layer=layer), other[f"{name}_se"].sel(layer=layer))
            assert (abs(difference) < 4 * error).all(), (name, layer)


def test_every_variable_is_described_and_the_page_holds_its_figures(tree: xr.DataTree, folder: Path) -> None:
    for node in ("variance", "training"):
        for name, array in tree[node].data_vars.items():
            assert array.attrs["units"] and array.attrs["long_name"], name
    page = (folder / "page" / "fdfa.md").read_text(encoding="utf-8")
    for name in ("ratio", "terms", "efficiency", "width", "training"):
        assert f"(fdfa_{name}.png)" in page
        assert 5000 < (folder / "page" / f"fdfa_{name}.png").stat().st_size < 150_000
    assert "nan" not in page
    assert "24 ratios, every one of them within 3 standard errors of 1" in page
    rows = [line for line in page.splitlines() if line.startswith("| backpropagation |")]
    final = tree["training"].to_dataset()["test_accuracy"].sel(gradient="backpropagation").isel(step=-1)
    assert f"{float(final.mean()):.2f}"[:3] in rows[0]


def test_a_second_run_computes_nothing(tree: xr.DataTree, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (folder / "page" / "fdfa.md").read_text(encoding="utf-8")
    cells = sorted((folder / "out" / "cells").iterdir())
    assert len(cells) == 2 * 2 + 6 * (1 + 2)
    written = [cell.stat().st_mtime_ns for cell in cells]
    monkeypatch.setattr(figures, "figures", lambda tree: {})
    again = fdfa.main(settings_in(folder))
    assert [cell.stat().st_mtime_ns for cell in cells] == written
    assert (folder / "page" / "fdfa.md").read_text(encoding="utf-8") == page
    for node in ("variance", "training"):
        xr.testing.assert_equal(again[node].to_dataset(), tree[node].to_dataset())


def test_training_logs_are_those_of_the_chosen_rate(tree: xr.DataTree, tmp_path: Path) -> None:
    training = tree["training"].to_dataset()
    assert training["step"].to_numpy().tolist() == [0, 23, 46]
    assert bool(training["loss"].notnull().all()) and bool((training["at_edge"] == 1).all())
    exact = training["cosine"].sel(gradient="backpropagation").isel(step=0)
    np.testing.assert_array_equal(exact, 1)
    own = training.sel(gradient="FDFA, α = 0.1", seed=1)
    rate = float(own["learning_rate"])
    sizes: dict[str, Any] = {
        "width": 12,
        "epochs": 2,
        "batch_size": 64,
        "learning_rate": rate,
        "seed": 1,
        "scratch": tmp_path,
    }
    log = fdfa_training.run("digits", "FDFA, α = 0.1", (0.1,), TINY.adam_rate, device="cpu", **sizes)
    np.testing.assert_array_equal(own["loss"], log["loss"])


def test_the_best_learning_rate_is_that_of_the_smallest_loss() -> None:
    assert fdfa_training.best({0.1: 2.0, 0.01: 1.0, 1.0: float("nan")}) == 0.01
    with pytest.raises(ValueError, match=r"training diverged at every learning rate of 0\.1, 1\.0: add smaller ones"):
        fdfa_training.best({0.1: float("nan"), 1.0: float("inf")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 10}, r"widths must hold width, 10, got \(8, 12\)"),
        ({"sweep_rates": (0.5,)}, r"sweep_rates must be among rates, \(0.3, 0.1\), got \(0.5,\)"),
        ({"seeds": 1}, "seeds must be at least 2, for an interval, got 1"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fdfa.Settings(**(vars(TINY) | change))


def test_help_says_what_every_setting_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(fdfa.Settings, description=fdfa.__doc__, args=["--help"])
    text = capsys.readouterr().out
    for name in vars(TINY):
        assert f"--{name.replace('_', '-')}" in text
