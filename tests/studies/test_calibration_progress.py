"""The part of the study of calibration on progress: what it samples is what the package measures, and its page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from fganalysis.estimators.perturbation.finite_difference import FiniteDifference
from fganalysis.measuring.difference_errors import Directions
from fganalysis.measuring.difference_step import PRECISIONS
from fganalysis.measuring.second_derivatives import Curvature
from fganalysis.statistics.intervals import Estimate
from studies.calibration import __main__ as calibration
from studies.calibration import (
    advice,
    costs,
    differences,
    kinks,
    own_draws,
    progress_page,
    progress_part,
    steps,
    traces,
)
from studies.calibration.__main__ import Settings
from studies.calibration.estimators import network
from studies.calibration.steps import losses

ONE = "minibatch, 2 of 4"


def only(monkeypatch: pytest.MonkeyPatch, table: dict, *names: str) -> None:
    for name in [name for name in table if name not in names]:
        monkeypatch.delitem(table, name)


def test_a_small_run_writes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for table, names in (
        (kinks.SMOOTH, ["tanh"]),
        (kinks.KINKED, ["ReLU"]),
        (own_draws.LAWS, ["shrunk, with normal noise"]),
        (traces.CASES, ["Hessian, 392 weights"]),
        (differences.CASES, ["tanh, float32"]),
        (costs.CLOCKS, ["steady clock", costs.DEPENDENT]),
    ):
        only(monkeypatch, table, *names)
    monkeypatch.setattr(costs, "TRUTH_SIZE", (2**8, 64))
    monkeypatch.setattr(differences, "POOLED", 128)
    monkeypatch.setattr(steps, "FRESH", 2**10)
    settings = Settings(
        part="progress",
        guesses=(64,),
        progress_repeats=12,
        progress_estimators=(ONE,),
        kink_networks=1,
        out=tmp_path / "out",
        page=tmp_path / "page",
    )
    tree = calibration.main(settings)
    text = (tmp_path / "page" / "calibration_progress.md").read_text(encoding="utf-8")
    assert text == progress_page.text_of(tree)
    for quantity in progress_page.quantities():
        assert f"`{quantity}`" in text or quantity == "descent_probability", quantity
    for figure in ("coverage", "kinks"):
        assert (tmp_path / "page" / f"calibration_progress_{figure}.png").stat().st_size > 5000
    for node in tree.subtree:
        assert all(array.attrs["units"] and array.attrs["long_name"] for array in node.data_vars.values())
    found = progress_page.cells(tree)
    assert set(found["group"].values) == set(progress_page.GROUPS)
    settled = found["coverage"].values[np.isin(found["kind"].values, progress_page.SETTLED)]
    assert settled.mean() > 0.85


def test_losses_many_at_a_time_are_the_networks() -> None:
    for name in (ONE, "activity, one output"):
        snapshot = network(name)
        curvature = Curvature(snapshot, "hessian")
        moves = torch.randn(5, curvature.n_weights, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        here = losses(snapshot, torch.zeros(curvature.n_weights, dtype=torch.float64))
        np.testing.assert_allclose(here, snapshot.loss, rtol=1e-12)
        changes = torch.stack([losses(snapshot, sign * 0.1 * moves) - here for sign in (-1, 1)])
        np.testing.assert_allclose(changes, curvature.changes(moves, 0.1), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", list(own_draws.LAWS))
def test_moments_of_own_draws_are_those_of_their_samples(name: str) -> None:
    """Within 5 standard errors of means over 20 000 draws."""
    law = own_draws.LAWS[name]
    draws = law.draw((20000,), np.random.default_rng(0))
    error = draws.std(0) / 20000**0.5
    assert (np.abs(draws.mean(0) - law.mean) < 5 * error).all()
    squares = (draws**2).sum(-1)
    assert abs(squares.mean() - law.square) < 5 * squares.std() / 20000**0.5
    truths = own_draws.truths(law)
    variance = ((draws - law.mean) ** 2).sum(-1)
    assert abs(variance.mean() - truths["variance"]) < 5 * variance.std() / 20000**0.5


def test_a_pool_has_the_differences_of_its_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "POOLED", 6)
    snapshot = network("weight")
    pool = differences.Pool.of(snapshot, "float32", 0)

    class Same(Directions):
        def __iter__(self):  # type: ignore[no-untyped-def]
            for place in range(6):
                yield tuple(part[place : place + 1] for part in pool.directions)

    every = Same(snapshot, FiniteDifference(), 6, 0)
    for central in (False, True):
        rounded, exact = pool.pair.differences(every, 6, 2.0**-6, central)
        batched = pool.differences(2.0**-6, central)
        np.testing.assert_allclose(batched[1], exact, rtol=1e-9)
        np.testing.assert_allclose(batched[0], rounded, atol=8 * torch.finfo(PRECISIONS["float32"]).eps)
    sampled = differences.Sampled(pool, np.array([3, 1, 1]))
    np.testing.assert_array_equal(sampled.differences(every, 2, 2.0**-6, True)[1], batched[1][[3, 1]])


def test_written_matrices_have_the_products_of_the_curvature() -> None:
    case = traces.CASES["Hessian, 392 weights"]
    snapshot = traces.captured(traces.Network(case.sizes, activation=torch.nn.Tanh), "cpu")
    for kind in ("hessian", "gauss_newton"):
        real = Curvature(snapshot, kind)  # type: ignore[arg-type]
        written = traces.Written.of(real.products(torch.eye(real.n_weights, dtype=torch.float64)))
        vectors = torch.randn(3, real.n_weights, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        np.testing.assert_allclose(written.products(vectors), real.products(vectors), rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(written.forms(vectors), real.forms(vectors), rtol=1e-8)


def test_advice_is_counted_as_given_missed_and_wrong() -> None:
    """Of four samples: right, missed by the interval alone, wrong by more than a factor of two, and not advised."""
    value = np.array([1.0, 1.2, 3.0, 1.0])
    low, high = value * [0.9, 0.95, 0.9, 0.1], value * [1.1, 1.05, 1.1, 9.0]
    step = Estimate(value, value, low, high)
    one = Estimate(*[np.ones(4)] * 4)
    found = {name: one for name in ("slope_along", "curvature_along", "mean_curvature", "curved_efficiency")}
    found |= {"best_step": step, "unseen_curvature": Estimate(*[np.zeros(4)] * 4)}
    truths = {name: np.ones(()) for name in found}
    known = dict.fromkeys(("gradient_step", "gradient_curvature", "squared_gradient"), 1.0)
    known |= {"relative_bias": 0.0, "directional_bias": 0.0}
    counts = advice.counted_advice(found, truths, one, 1.0, known).sel(advice="step_size")
    names = ("interval_given", "interval_missed", "advice_given", "advice_missed", "advice_wrong")
    assert [int(counts[name]) for name in names] == [4, 2, 3, 2, 1]


def test_the_best_cut_off_has_no_false_alarm_and_the_least_excess() -> None:
    """Smooth ratios up to 1.8, kinks from 2.5 on; below 2.5 going by kinks makes the error twice as large."""
    names = [*kinks.SMOOTH, *kinks.KINKED]
    ratio = np.array([[1.0, 1.8]] * len(kinks.SMOOTH) + [[2.5, 9.0]] * len(kinks.KINKED))
    kinked = ratio > 2.4
    dims = ("activation", "network")
    dataset = xr.Dataset(
        {
            "ratio": (dims, ratio),
            "error_by_derivatives": (dims, np.where(kinked, 2.0, 1.0)),
            "error_by_kinks": (dims, np.where(kinked, 1.0, 2.0)),
        },
        coords={"activation": names},
    )
    assert progress_page.best_cut_offs(dataset) == [2.0]
    found = progress_page.cut_offs(dataset)
    assert int(found["alarms"].sel(cut_off=1.5)) == len(kinks.SMOOTH)
    assert int(found["found"].sel(cut_off=3.0)) == len(kinks.KINKED)


def test_cells_do_not_depend_on_the_page() -> None:
    settings = Settings(part="progress", guesses=(64,))
    modules = {cell.make.__module__ for cell in progress_part.cells(settings)}
    assert not any("page" in name or "figures" in name or "part" in name for name in modules)
