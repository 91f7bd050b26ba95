"""The study of binary networks, run whole on a small network, and its sentences on made-up numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from fganalysis.problems.stochastic_binary import StochasticBinary
from studies.binary import __main__ as binary
from studies.binary import page, training
from studies.binary.cells import ESTIMATORS, UNBIASED, _of_means

TINY = {"seeds": (0, 1), "epochs": (3,), "width": 2, "depth": 3, "per_class": 4, "draws": 800, "averaged": (1, 20)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("binary")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> xr.Dataset:
    return binary.main(binary.Settings(**TINY, out=folder / "out", page=folder / "page"))


def test_measured_meets_exact(dataset: xr.Dataset) -> None:
    """200 correlated comparisons each, fixed seeds; a tenth more variance is seen for the chain rule."""
    for name in ("squared_bias", "variance"):
        assert float(abs(dataset[f"{name}_z"]).max()) < 4.5
    own = dataset.sel(estimator="straight_through", layer="all")
    assert (own["relative_variance_high"] < 1.4 * own["relative_variance_predicted"]).all()
    assert float(dataset["relative_bias_predicted"].sel(estimator=list(UNBIASED)).max()) < 1e-10
    law = page.error_of_mean(dataset, dataset["averaged"].values.astype(float))
    known = dataset["error_low"].notnull() & dataset["relative_bias_predicted"].notnull()
    within = (dataset["error_low"] <= law) & (law <= dataset["error_high"])
    assert float(within.where(known).mean()) > 0.85


def test_everything_is_named_and_written(dataset: xr.Dataset, folder: Path) -> None:
    assert all(array.attrs["units"] and array.attrs["long_name"] for array in dataset.values())
    text = (folder / "page" / "binary.md").read_text(encoding="utf-8")
    assert text == page.page(dataset)
    for figure in ("error", "cosine", "parts"):
        assert f"(binary_{figure}.png)" in text
        assert (folder / "page" / f"binary_{figure}.png").stat().st_size > 5000
    assert set(page.NAMES) == set(ESTIMATORS)


def test_a_second_run_computes_nothing(dataset: xr.Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary.figures, "figures", lambda dataset: {})  # They take most of the time.
    files = sorted((folder / "out" / "cells").iterdir())
    written = [cell.stat().st_mtime_ns for cell in files]
    assert binary.main(binary.Settings(**TINY, out=folder / "out", page=folder / "page")).identical(dataset)
    assert [cell.stat().st_mtime_ns for cell in files] == written and len(files) == 2


def test_winners_and_crossings_follow_from_bias_and_variance(dataset: xr.Dataset) -> None:
    made = dataset.copy(deep=True)
    for name in ESTIMATORS:
        at = {"estimator": name}
        made["relative_bias_predicted"].loc[at] = 0.0 if name in UNBIASED else 0.5
        made["relative_variance_predicted"].loc[at] = 100.0 if name in UNBIASED else 1.0
    made["relative_bias_predicted"].loc[{"estimator": "path_sample_analytic"}] = 0.1
    made["relative_variance_predicted"].loc[{"estimator": "arm"}] = 41.0
    # (41 − 1)/0.1² and (41 − 1)/0.5².
    assert {tuple(row[2:]) for row in page._overtaken(made, ["hidden_1"])} == {
        ("4 000 (4 000 to 4 000)", "160 (160 to 160)")
    }
    made = made.assign_coords(averaged=[1, 5000])
    assert {row[2] for row in page._winners(made, ["hidden_1"])} == {"path sample-analytic, M = 1; ARM, M = 5000"}
    claim = page._claims(made, ["hidden_1"])[0]
    assert claim["first"] and claim["against_unbiased"] and claim["variance_ratio"] == "41 (41 to 41)"
    made["relative_variance_predicted"].loc[{"estimator": "path_sample_analytic"}] = 50.0
    assert not page._claims(made, ["hidden_1"])[0]["first"]


def test_means_of_draws() -> None:
    draws = {"a": np.array([[1.0], [3.0], [1.0], [3.0]]), "b": np.array([[0.0], [0.0], [4.0], [4.0]])}
    found = _of_means(draws, {"a": np.array([2.0]), "b": np.array([2.0])}, (1, 2))
    np.testing.assert_allclose(found["error"], [[0.5, 0], [1, 1], [np.sqrt(5 / 8), np.sqrt(0.5)]])
    both = (
        [np.sqrt(0.5), np.sqrt(0.5), 10 / np.sqrt(8 * 17), 14 / np.sqrt(8 * 25)],
        [np.sqrt(0.5), 12 / np.sqrt(8 * 20)],
    )
    np.testing.assert_allclose(found["cosine"], [[1, 1], [0.5, 0.5], [np.mean(own) for own in both]])
    assert np.isnan(found["error_low"]).all()


def test_the_training_continues_and_learns() -> None:
    inputs, targets = training.classes(20, 0)
    assert len(inputs) == 40 and (targets == np.repeat([1, -1], 20)).all()
    assert (inputs[20:, 1] < np.cos(inputs[20:, 0])).all() and (inputs[:20, 1] >= 0).all()
    start = StochasticBinary.initial((3, 3), inputs, targets, 0)
    losses = [training.trained(start, epochs, 10, 0.1, 0.9, 0).loss() for epochs in (0, 150)]
    assert losses[1] < losses[0] - 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": (1,)}, "seeds must be at least 2, as intervals are over them, got 1"),
        ({"averaged": (1, 30_000)}, "averaged must be at most draws = 20000"),
        ({"epochs": (-1, 2)}, "epochs must be a whole number of at least 0, got -1"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        binary.Settings(**change)
