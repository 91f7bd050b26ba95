"""The answers of the study of subspaces follow from its numbers and can turn out otherwise."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from fganalysis.results import store
from studies.kit.seeds import Interval, over_seeds
from studies.subspaces.answers import answers
from studies.subspaces.best_k import PAPER_SWEEP, Ranking, _mean_square
from studies.subspaces.cells import METHODS
from studies.subspaces.picks import factor
from tests.studies.subspaces.tiny_study import Finished


def test_methods_are_compared_at_the_loss_that_the_orthogonal_guess_ends_with(finished: Finished) -> None:
    folder = finished.settings.out / "width_8"
    target = store.read(folder / "orthogonal_seed_1.nc")["path"].to_dataset()["loss"].values[-1]
    for method in METHODS[1:]:
        path = store.read(folder / f"{method}_seed_1.nc")["path"].to_dataset()
        nearest = path.isel(step=int(np.argmin(np.abs(path["loss"].values - target))))
        own = finished.collected.sel(width=8, trained_by=method, seed=1)
        assert float(own["equal_step"]) == int(nearest["step"]) and float(own["equal_loss"]) == float(nearest["loss"])
        np.testing.assert_array_equal(own["equal_overlap"].sel(layer=path["layer"]), nearest["overlap"])
    last = finished.collected.sel(trained_by="orthogonal", moment="last")
    np.testing.assert_allclose(last["equal_loss"], last["loss"])
    np.testing.assert_allclose(last["equal_overlap"].sel(layer="0"), last["overlap"].sel(layer="0"), rtol=1e-4)


@pytest.mark.parametrize(
    ("rows", "best", "counts"),
    [
        # One seed's efficiencies are a hundred times larger and like another k: their arithmetic mean would follow it.
        ({"10": (3, 3, 100), "25": (2, 2, 150), "rank": (1, 1, 60), "1": (0.1, 0.1, 5)}, "10 or 25", (5, 0, 1)),
        ({"10": (4, 8, 40), "25": (2, 4.1, 20), "rank": (1, 2, 10.2), "1": (0.5, 1, 5)}, "10", (6, 0, 0)),
        ({"10": (1, 2, 10), "25": (2, 4.1, 20), "rank": (4, 8, 40.5), "1": (8, 16, 80)}, "1", (0, 6, 0)),
    ],
)
def test_rankings_compare_logs_seed_by_seed(
    rows: dict[str, tuple[float, ...]], best: str, counts: tuple[int, int, int]
) -> None:
    efficiency = xr.DataArray(list(rows.values()), {"sweep": list(rows), "seed": [0, 1, 2]}, ("sweep", "seed"))
    found = Ranking.of(efficiency)
    assert str(found) == best
    assert tuple(found.pairs.values()) == counts


def test_the_seed_papers_order_can_fail(finished: Finished) -> None:
    sweep = finished.collected["sweep_efficiency"]
    for order, said in (("paper", "Yes"), ("reversed", "No")):
        ranks = np.arange(1.0, 5) if order == "reversed" else np.arange(4.0, 0, -1)
        made = xr.DataArray(ranks, {"sweep": list(PAPER_SWEEP)}, ("sweep",))
        own = (0 * sweep.fillna(0) + made.sel(sweep=sweep["sweep"]) / 100).transpose(*sweep.dims)
        assert f"Is it the best k of the seed paper? {said}:" in answers(
            finished.collected.assign(sweep_efficiency=own)
        )


def test_intervals_of_positive_numbers_stay_positive() -> None:
    values = np.array([1e-4, 1e-4, 1e-2])
    assert over_seeds(values).low < 0
    mean, low, high = (float(part) for part in re.findall(r"[\d.]+(?:e[-+]\d+)?", factor(over_seeds(np.log(values)))))
    assert 0 < low < mean < high
    np.testing.assert_allclose([mean, mean**2], [stats.gmean(values), low * high], rtol=0.02)


def test_mean_squares_take_shared_draws_as_one() -> None:
    draws = np.random.default_rng(0).standard_normal((2, 3, 2, 50))
    dims = ("width", "seed", "moment", "k")
    alone = _mean_square(xr.DataArray(draws, dims=dims))
    shared = _mean_square(xr.DataArray(np.repeat(draws[..., None], 10, -1), dims=(*dims, "layer")))
    np.testing.assert_allclose([shared.mean, shared.half], [alone.mean, alone.half])
    np.testing.assert_allclose(alone.mean, np.square(draws).mean())
    np.testing.assert_allclose(alone.half, 1.96 * np.square(draws).std() / draws.size**0.5, rtol=1e-3)


@pytest.mark.parametrize(("power", "trend"), [(1.0, "rises"), (-1.0, "falls")])
def test_what_is_learned_is_said_with_its_slope(finished: Finished, power: float, trend: str) -> None:
    accuracy = finished.collected["train_accuracy"]
    made = (accuracy["width"] / 12.0) ** power * 0.2 + 0 * accuracy.fillna(0)
    text = answers(finished.collected.assign(train_accuracy=made.transpose(*accuracy.dims)))
    assert f"the training accuracy of W̃⊥ {trend} (" in text


def test_after_300_epochs_accuracy_grows_with_width() -> None:
    """Answer (c) says so and links to wang2025."""
    training = store.read(Path(__file__).parents[3] / "docs" / "results" / "wang2025.nc")["training"].to_dataset()
    accuracy = training["train_accuracy"].sel(trained_by="orthogonal, k = 10")
    by_width = accuracy.max("step").mean("seed").dropna("width")
    assert by_width.sizes["width"] >= 3 and bool((by_width.diff("width") > 0).all())


def test_answers_are_made_of_the_dataset(finished: Finished) -> None:
    assert finished.text == answers(finished.collected)
    for letter in "abcd":
        assert f"## ({letter})" in finished.text and f"\n- ({letter}) " in finished.text
    assert "nan" not in finished.text
    for name in ("overlap", "sweep_efficiency", "orthogonal_efficiency", "descent_share", "weight_rank", "z", "turned"):
        own = finished.collected[name]
        changed = own * own["width"] / 20 if "width" in own.dims else own * 0.9
        assert answers(finished.collected.assign({name: changed})) != finished.text, name


@pytest.mark.parametrize(
    ("high", "whose"),
    [
        ((), "Neither is shown by these intervals."),
        (("orthogonal",), "Of training with W̃⊥."),
        (("orthogonal", "backpropagation"), "Of training with either method."),
    ],
)
def test_verdicts_follow_the_numbers(finished: Finished, high: tuple[str, ...], whose: str) -> None:
    overlap = finished.collected["overlap"]
    made = xr.where(overlap["trained_by"].isin(high), 1.0, 0.1 + 0 * overlap).transpose(*overlap.dims)
    text = answers(finished.collected.assign(overlap=made))
    assert f"or of training with W̃⊥? {whose}" in text
    beyond = "After the last step of each it is higher at widths 8 and 12," if high == ("orthogonal",) else ""
    assert beyond in text


def test_intervals_are_students() -> None:
    values = np.array([1.0, 2.0, 4.0, np.nan])
    found = over_seeds(values)
    low, high = stats.t.interval(0.95, 2, loc=values[:3].mean(), scale=stats.sem(values[:3]))
    np.testing.assert_allclose([found.low, found.high], [low, high])
    assert np.isnan(over_seeds([1.0]).half) and np.isnan(over_seeds([]).mean)
    shown = {
        Interval(0.34123, 0.0123): "0.341 ± 0.012",
        Interval(12.7, 3.2): "13 ± 3",
        Interval(-0.5, 0.04): "-0.50 ± 0.04",
        Interval(2.0, 0.0): "2",
        Interval(0.00002, 0.000001): "2e-05 ± 1e-06",
    }
    assert {str(interval) for interval in shown} == set(shown.values())
