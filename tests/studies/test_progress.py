"""The study of single steps, run whole on tiny settings, and what its page makes of known decreases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from studies.progress import __main__ as progress
from studies.progress import page
from studies.progress.cells import ESTIMATORS, FACTORS, best_factors


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, xr.Dataset]:
    folder = tmp_path_factory.mktemp("progress")
    settings = progress.Settings(
        networks=("tanh MLP",),
        steps=(0, 100),
        width=8,
        guesses=32,
        losses=64,
        batch=8,
        out=folder,
        page=folder / "page",
    )
    return folder, progress.main(settings)


def test_a_tiny_run_predicts_small_steps_and_writes_its_page(finished: tuple[Path, xr.Dataset]) -> None:
    folder, dataset = finished
    assert all(array.attrs["units"] and array.attrs["long_name"] for array in dataset.values())
    small = dataset.isel(factor=0)
    z = (small["actual"] - small["predicted"]) / np.hypot(small["actual_se"], small["predicted_se"])
    assert (
        np.isfinite(z).any() and float(abs(z).max()) < 5
    )  # The same guesses serve both curvatures and all estimators.
    text = (folder / "page" / "progress.md").read_text(encoding="utf-8")
    assert text == page.page(dataset)
    for figure in ("decrease", "best"):
        assert (folder / "page" / f"progress_{figure}.png").stat().st_size > 5000


def test_the_best_step_of_a_parabola_is_the_advised_one() -> None:
    """Exact decreases leave no doubt; noise that differs from step to step leaves some."""
    factors = np.array(FACTORS)[:, None]
    exact = factors * (2 - factors) * np.ones(64)
    assert best_factors(exact) == (1, 1, 1)
    noise = np.random.default_rng(0).standard_normal((len(FACTORS), 64))
    low, best, high = best_factors(exact + 5 * noise)
    assert low < high and low <= best <= high


@pytest.mark.parametrize(("best", "within"), [(0.25, False), (0.5, True), (2.0, True), (4.0, False)])
def test_the_page_judges_by_the_factor(finished: tuple[Path, xr.Dataset], best: float, within: bool) -> None:
    dataset = finished[1].copy(deep=True)
    for end in ("", "_low", "_high"):
        dataset["best" + end] = xr.full_like(dataset["best"], best)
    for end, unseen in (("", 3.0), ("_low", 2.0), ("_high", 4.0)):
        dataset["unseen_curvature" + end] = xr.full_like(dataset["unseen_curvature"], unseen)
    text, n = page.page(dataset), 2 * len(ESTIMATORS)
    assert f"in {n if within else 0} of {n} cells**" in text
    assert ("That does not hold in at least nine of ten cells" in text) != within
    assert text.count("higher derivatives bend the loss more than the curvature shows") == (0 if within else 2 * n)
