"""The study of sketches, run whole on a small network, and what its page says of made-up numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from studies.sketches import __main__ as sketches
from studies.sketches import cells, page

TINY = {
    "networks": ("attention",),
    "seeds": (0, 1),
    "batch": 8,
    "population": 24,
    "steps": 5,
    "guesses": 64,
    "sizes": (2, 8),
    "ranks": (1, 4),
    "ages": (0, 1, 3),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[xr.Dataset, Path]:
    folder = tmp_path_factory.mktemp("sketches")
    return sketches.main(sketches.Settings(**TINY, out=folder, device="cpu")), folder


def test_measured_meets_predicted(run: tuple[xr.Dataset, Path]) -> None:
    """48 scores of a fixed seed."""
    dataset, _ = run
    scores = abs(dataset["noise"] - dataset["noise_predicted"]) / dataset["noise_se"]
    assert float(scores.max()) < 4.5
    assert float(abs(dataset["outside"] - dataset["outside_predicted"]).max()) < 1e-5
    assert bool((dataset["outside_own"] <= dataset["outside_predicted"] + 1e-6).all())
    assert all(array.attrs["units"] and array.attrs["long_name"] for array in dataset.values())


def test_only_a_large_score_is_measured_again(run: tuple[xr.Dataset, Path]) -> None:
    dataset, _ = run
    scores = abs((dataset["noise"] - dataset["noise_predicted"]) / dataset["noise_se"])
    large = (scores > cells.LARGE_SCORE) & (dataset["noise_predicted"] > cells.NEGLIGIBLE)
    np.testing.assert_array_equal(np.isfinite(dataset["score_again"]), large)


def test_what_the_page_says_of_a_large_score(run: tuple[xr.Dataset, Path]) -> None:
    dataset, _ = run
    changed = dataset.copy(deep=True)
    changed["score_again"][:] = np.nan
    assert "measured again" not in page.page(changed)
    changed["score_again"][0, 0, 0, 0, 0] = -1.25
    assert "from 32 times as many other guesses. The score is then -1.25: where" in " ".join(page.page(changed).split())


def test_noise_falls_with_size_and_memory_rises(run: tuple[xr.Dataset, Path]) -> None:
    """In proportion, but for a sketch that keeps the largest rows: the memory of equal noise is then of any size."""
    dataset, _ = run
    for name in cells.PROPORTIONAL:
        own = dataset.sel(sketch=name)
        small, large = own.isel(size=0), own.isel(size=1)
        np.testing.assert_allclose(small["noise_predicted"] / large["noise_predicted"], 4, rtol=1e-6)
        np.testing.assert_allclose(large["memory"] / small["memory"], 4, rtol=1e-12)
        equal = np.maximum(1, 8 * large["noise_predicted"]) * large["memory"] / 8
        np.testing.assert_allclose(own["equal_memory"], equal, rtol=1e-6)


def test_memory_is_counted_by_arithmetic(run: tuple[xr.Dataset, Path]) -> None:
    """Eight examples, ten positions; layers of 4, 32, 32, 32, 64 and (a row an example) 32 inputs."""
    dataset, _ = run
    inputs = [(80, 4), (80, 32), (80, 32), (80, 32), (80, 64), (8, 32)]
    full = sum(rows * width for rows, width in inputs)
    width, rows = sum(width for _, width in inputs), sum(rows for rows, _ in inputs)
    kept = {"row sketch": width, "row sketch within examples": 8 * width, "input sketch": rows, "rows by norm": width}
    for name, numbers in kept.items():
        np.testing.assert_allclose(dataset["memory"].sel(sketch=name, size=2), 2 * numbers / full)


def test_the_page_is_written_with_its_figures(run: tuple[xr.Dataset, Path]) -> None:
    _, folder = run
    text = (folder / "sketches.md").read_text(encoding="utf-8")
    for figure in ("noise", "age"):
        assert f"(sketches_{figure}.png)" in text
        assert (folder / f"sketches_{figure}.png").exists()


def test_verdicts_are_of_intervals() -> None:
    below, above, across = (page.Geometric(1.0, *ends) for ends in ((0.5, 0.9), (1.1, 2.0), (0.9, 1.1)))
    assert page._verdicts([below, above, across, across]) == {"all": 4, "less": 1, "more": 1, "open": 2}
    found = page.geometric(np.array([1.0, 4.0, 2.0]))
    assert found.mean == pytest.approx(2.0) and found.low * found.high == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"networks": ("ResNet",)}, "networks"),
        ({"seeds": (1,)}, "seeds must be at least 2"),
        ({"ages": (0, 5)}, "ages must be below steps"),
        ({"population": 8}, "population must be above batch"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sketches.Settings(**(TINY | change))
