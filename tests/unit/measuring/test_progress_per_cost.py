"""Progress over passes and over time, from made-up Datasets."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import fganalysis as fga
from tests.refusals import refusal

DIMS = ("estimator", "averaged")


def made(values: dict[str, list[list[float]]], estimators: list[str], averaged: list[int]) -> xr.Dataset:
    arrays = {name: (DIMS, np.array(rows)) for name, rows in values.items()}
    return xr.Dataset(arrays, coords={"estimator": estimators, "averaged": averaged})


PROGRESS = made(
    {
        "curved_efficiency": [[0.5, 0.8, 0.9]],
        "curved_efficiency_low": [[-0.1, 0.6, 0.8]],
        "curved_efficiency_high": [[0.7, 1.0, 1.0]],
        "curved_efficiency_wide": [[1, 0, 0]],
    },
    ["weight"],
    [1, 2, 4],
)
COST = made(
    {
        "relative_passes": [[1, 1], [2, 4]],
        "relative_seconds": [[1, 1], [4, 8]],
        "relative_seconds_low": [[1, 1], [2, 5]],
        "relative_seconds_high": [[1, 1], [5, 10]],
    },
    ["backpropagation", "weight"],
    [1, 2],
)


def test_ratios_and_bounds() -> None:
    found = fga.progress_per_cost(PROGRESS, COST).sel(estimator="weight")

    def values(name: str) -> np.ndarray:
        return np.array([found[name + suffix].values for suffix in ("", "_low", "_high")]).T

    np.testing.assert_allclose(values("progress_per_pass"), [[0.25, -0.05, 0.35], [0.2, 0.15, 0.25], [np.nan] * 3])
    expected = [[0.125, -0.05, 0.35], [0.1, 0.06, 0.2], [np.nan] * 3]  # A bound below zero over the fastest.
    np.testing.assert_allclose(values("progress_per_second"), expected)
    np.testing.assert_array_equal(found["progress_per_pass_wide"], [1, 0, 0])
    assert found["progress_per_second"].attrs["units"] == "1" and found["progress_per_pass_low"].attrs["long_name"]
    xr.testing.assert_equal(found["curved_efficiency"], PROGRESS["curved_efficiency"].sel(estimator="weight"))
    alone = fga.progress_per_cost(PROGRESS.sel(averaged=2), COST)
    assert float(alone["progress_per_second"].item()) == 0.1


def test_the_bounds_cover_the_ratio_of_two_independent_estimates() -> None:
    """By the law of two normal estimates at 3 and 5 standard errors: at least 95 %, ±0.4 % from 3000 pairs."""
    rng, n = np.random.default_rng(0), 3000
    efficiency, seconds = 0.5 + 0.1 * rng.normal(size=n), 4 + 0.8 * rng.normal(size=n)
    names = [str(number) for number in range(n)]
    progress = made(
        {
            "curved_efficiency": efficiency[:, None].tolist(),
            "curved_efficiency_low": (efficiency - 0.196)[:, None].tolist(),
            "curved_efficiency_high": (efficiency + 0.196)[:, None].tolist(),
        },
        names,
        [1],
    )
    times = {"": 0.0, "_low": -1.568, "_high": 1.568}
    values = {f"relative_seconds{suffix}": (seconds + by)[:, None].tolist() for suffix, by in times.items()}
    cost = made({"relative_passes": [[1.0]] * n, **values}, names, [1])
    found = fga.progress_per_cost(progress, cost)
    covered = (found["progress_per_second_low"] <= 0.125) & (found["progress_per_second_high"] >= 0.125)
    assert 0.95 <= float(covered.mean()) < 1


@pytest.mark.parametrize(
    ("progress", "cost", "message"),
    [
        (3, COST, "progress must be the Dataset that fga.progress returns, got 3"),
        (COST, COST, "progress must be the Dataset that fga.progress returns: it has no 'curved_efficiency'"),
        (PROGRESS, PROGRESS, "cost must be the Dataset that fga.cost returns: it has no 'relative_passes'"),
        (
            PROGRESS,
            COST.sel(estimator=["backpropagation"]),
            "cost lacks the estimator weight: ask fga.cost for the same",
        ),
        (PROGRESS.sel(averaged=[4]), COST, "cost lacks the number of guesses averaged 4: ask fga.cost for the same"),
        (PROGRESS.drop_vars("averaged"), COST, "progress must have the coordinate 'averaged'"),
    ],
)
def test_wrong_datasets_are_refused(progress: xr.Dataset, cost: xr.Dataset, message: str) -> None:
    found = refusal(lambda: fga.progress_per_cost(progress, cost))
    assert found is not None and found.startswith(message)
