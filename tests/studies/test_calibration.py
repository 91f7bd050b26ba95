"""The study of calibration with few samples: its counts, its page, its resumption, and intervals that are too tight."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.capturing.coordinates import squared_gradients
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.results import schema
from fganalysis.statistics.intervals import Estimate
from studies.calibration import __main__ as calibration
from studies.calibration import cells, page
from studies.calibration.__main__ import Settings
from studies.calibration.cells import drawn, measured
from studies.calibration.estimators import ESTIMATORS, HARD, MANY_WEIGHTS, TAILS, closed_forms, network

TINY = Settings(
    repeats=40,
    guesses=(128, 256),
    estimators=(
        *("activity", "activity, one output", "upstream", "rare events", "activity, on half the batch"),
        *("minibatch, 1 of 2", MANY_WEIGHTS, "weight, times 1 + t"),
    ),
    runs=3,
    run_guesses=2**11,
    biases=(0.8, 0.4),
    power_runs=3,
    power_guesses=2**12,
)


@dataclasses.dataclass(frozen=True)
class Finished:
    settings: Settings
    tree: xr.DataTree


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("calibration")
    settings = dataclasses.replace(TINY, out=folder / "out", page=folder / "page")
    return Finished(settings, calibration.main(settings))


def test_every_interval_that_is_reported_is_counted(finished: Finished) -> None:
    found = page.cells(finished.tree)
    assert set(found["quantity"].values) == set(cells.COUNTED)
    assert set(found["guesses"].values) == {128, 256}
    for name in ("low", "high", "se", "wide", "short"):
        reported = fga.sample(network("activity"), "activity", n_guesses=64)
        assert {f"{quantity}_{name}" for quantity in schema.QUANTITIES} <= set(reported)


def test_intervals_hold_the_truth(finished: Finished) -> None:
    """40 samples know one coverage to 3.5 %, and four standard errors more are seen in a mean over dozens of cells."""
    found = page.cells(finished.tree)
    found = page.usual(found)
    kept = found.isel(cell=np.flatnonzero(np.isin(found["kind"], ["held", "wide", "tight"])))
    assert float(kept["coverage"].min()) > 0.95 - 5 * 0.035
    assert 0.93 < float(kept["coverage"].mean()) < 0.98
    assert (kept["coverage_low"] <= kept["coverage"]).all() and (kept["coverage"] <= kept["coverage_high"]).all()


def test_the_page_quotes_the_result(finished: Finished) -> None:
    text = (finished.settings.page / "calibration.md").read_text(encoding="utf-8")
    assert text == page.page(finished.tree)
    for figure in ("coverage", "z", "power"):
        assert f"(calibration_{figure}.png)" in text
        assert (finished.settings.page / f"calibration_{figure}.png").stat().st_size > 5000
    with xr.open_datatree(finished.settings.out / "calibration.nc", engine="netcdf4") as plain:
        for node in plain.subtree:
            assert all(array.attrs["units"] and array.attrs["long_name"] for array in node.data_vars.values())


def test_a_second_run_computes_nothing(finished: Finished) -> None:
    written = {path: path.stat().st_mtime_ns for path in (finished.settings.out / "cells").iterdir()}
    assert len(written) == 2 * 8 + 2 + 2
    again = calibration.main(finished.settings)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    xr.testing.assert_identical(again["power"].to_dataset(), finished.tree["power"].to_dataset())


def test_hard_settings_have_a_table_of_their_own(finished: Finished) -> None:
    """And are in no other: what is said of the usual ones does not depend on them."""
    text = (finished.settings.page / "calibration.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and line.count("|") == 5]
    for name in ("minibatch, 1 of 2", MANY_WEIGHTS, "weight, times 1 + t"):
        assert any(line.startswith(f"| {name} | `variance` |") for line in rows), name
    assert any(line.endswith("≥ |") for line in rows if "1 + t | `mse`" in line)
    without = finished.tree.copy()
    for guesses in ("128", "256"):
        own = without["coverage"][guesses].to_dataset()
        own = own.isel(estimator=[place for place, name in enumerate(own["estimator"].values) if name in ESTIMATORS])
        without["coverage"][guesses] = xr.DataTree(own)
    other = page.page(without)
    start, stop = "![Coverage of every interval]", "## Harder settings"
    usual = text[text.index(start) : text.index(stop)]
    assert "### 256 guesses" in usual and usual in other
    assert stop not in other


@pytest.mark.parametrize("name", [name for name in HARD if name != MANY_WEIGHTS])
def test_closed_forms_of_hard_settings_are_those_of_their_samples(name: str) -> None:
    """Means over 4000 guesses within 5 standard errors; of tails without a variance only what has one."""
    snapshot = network(name)
    draws = drawn(snapshot, HARD[name], 250, 16 * 4, torch.Generator().manual_seed(0))
    found, truths = measured(draws, squared_gradients(snapshot)), closed_forms(snapshot, HARD[name])
    for quantity in ("shrinkage", "descent_probability", "cosine", *(() if name in TAILS else ("variance", "mse"))):
        values, truth = found[quantity].value, truths[quantity]
        error = np.maximum(values.std(0) / 250**0.5, 1e-12)
        known = ~np.isnan(truth)
        assert known.any() or quantity in ("cosine", "descent_probability")
        assert (np.abs(values.mean(0) - truth)[known] <= 5 * error[known]).all(), quantity


def test_a_law_of_many_weights_is_that_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 dimensions it has the moments of guesses drawn one by one: of U and of the directional bias."""
    monkeypatch.setattr(cells, "DIMENSIONS", 40)
    rng, repeats = np.random.default_rng(0), 3000
    law = cells.drawn_of_many(repeats, 128, rng)
    directions = rng.normal(size=(repeats, 128, 40))
    guesses = directions[..., :1] * directions
    errors = guesses.reshape(repeats, 8, 16, 40).mean(2) - np.eye(40)[0]
    gram = errors @ errors.mT
    for one, other in (
        (law.inner_product[:, 1, 0], guesses[..., 0]),
        (law.squared_length[:, 1, 0], (guesses**2).sum(-1)),
    ):
        assert abs(one.mean() / other.mean() - 1) < 0.03
    off = 1 - np.eye(8)
    for power in (1, 2):
        one, other = (((part * off) ** power).sum((-2, -1)) for part in (law.gram[:, 1, 0], gram))
        error = np.hypot(one.std(), other.std()) / repeats**0.5
        assert abs(one.mean() - other.mean()) < 4 * error


def test_a_large_bias_is_found_at_once(finished: Finished) -> None:
    needed = finished.tree["power"]["guesses_needed"]
    assert needed.notnull().all() and float(needed.sel(bias=0.8).max()) <= float(needed.sel(bias=0.4).max())


def test_bounds_of_verdicts_are_counted(finished: Finished) -> None:
    """Far too few runs for a rate of 1 %: three wrong bounds of the same kind would be one in thousands."""
    for node, runs in (("power", 3 * 2), ("false_alarms", 3 * (2 + 1))):
        dataset = finished.tree[node].to_dataset()
        assert int(dataset["findings"].sum()) == runs
        assert all(int(dataset[f"{name}_wrong"].sum()) < 3 for name in ("lower", "upper", "scale"))
    # A truth that is not theirs is seen.
    verdict = fga.check_unbiased(cells.Shrunk(0.4), network("one output"), 0.01, 1e-9, 2**13)
    for truth, wrong in ((0.4, (0, 0, 0)), (0.0, (1, 0, 1)), (0.9, (0, 1, 1))):
        counts = cells._wrong_intervals([verdict], truth)
        assert (counts["lower_wrong"], counts["upper_wrong"], counts["scale_wrong"]) == wrong


def test_its_samples_are_those_of_the_sampler() -> None:
    """The quantities of one sample drawn here are those that `fga.sample` makes of the same guesses."""
    snapshot, n_guesses = network("activity"), 64
    draws = drawn(snapshot, ESTIMATORS["activity"], 3, n_guesses, torch.Generator().manual_seed(0))
    found = measured(draws, squared_gradients(snapshot))
    sampled = fga.sample(snapshot, _Replayed(n_guesses), n_guesses=n_guesses)
    for name, estimate in found.items():
        for field in ("value", "se", "low", "high", "wide", "short"):
            own, suffix = getattr(estimate, field), "" if field == "value" else "_" + field
            own = (np.where(np.isnan(estimate.low), np.nan, own) if field in ("wide", "short") else own)[0]
            own = own[0] if name.startswith("wang2025") else own
            np.testing.assert_allclose(sampled[name + suffix], own, rtol=1e-6, atol=1e-9, err_msg=name + suffix)


class _Replayed:
    """The guesses of the first of three samples drawn at once, block by block, whatever the generator."""

    def __init__(self, n_guesses: int):
        everything = ESTIMATORS["activity"](network("activity"), 3 * n_guesses, torch.Generator().manual_seed(0))
        self._guesses = everything.first(n_guesses)
        self._calls = -1  # The sampler's first call is a probe.

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        start = max(self._calls, 0) * n_guesses
        self._calls += 1
        return ActivationEstimates(tuple(guess[start : start + n_guesses].clone() for guess in self._guesses.guesses))


def test_intervals_that_are_too_tight_are_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: half of every interval would not do."""
    honest = cells.measured

    def halved(draws: cells.Draws, squared_gradient: np.ndarray) -> dict[str, Estimate]:
        return {
            name: Estimate(one.value, one.se, (one.value + one.low) / 2, (one.value + one.high) / 2)
            for name, one in honest(draws, squared_gradient).items()
        }

    monkeypatch.setattr(cells, "measured", halved)
    found = cells.coverage("activity", 200, 128, 0, "cpu")
    wrong = (found["above_truth"] + found["below_truth"]).sel(quantity="mse", layer="all").max()
    assert float(wrong) > 200 * 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guesses": (100,)}, "guesses must be powers of two of at least 64, got 100"),
        ({"estimators": ("guesswork",)}, "estimators has the unknown name 'guesswork'; known ones: activity"),
    ],
)
def test_bad_settings_are_refused(change: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, out=tmp_path, **change)
