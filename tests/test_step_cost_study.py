"""The cost of a step: a tiny run, and what its page makes of known times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from fganalysis.estimators import ESTIMATORS, label, resolve
from studies import step_cost


def test_every_estimator_that_can_train_is_timed() -> None:
    timed = {label(resolve(one)).split("(")[0] for one in step_cost.STEPS.values()}
    left_out = {"preconditioned"}  # It takes an eigendecomposition of every example and nobody trains with it.
    assert set(ESTIMATORS) - timed - left_out == set()


def test_a_tiny_run_times_every_step_and_writes_its_page(tmp_path: Path) -> None:
    settings = step_cost.Settings(widths=(12,), batch=64, rounds=2, slow_rounds=1, out=tmp_path, page=tmp_path / "page")
    dataset = step_cost.main(settings)
    seconds = dataset["seconds"].sel(width=12)
    taken = seconds.notnull().sum("round")
    assert all(int(taken.sel(gradient=name)) == (1 if name in step_cost.SLOW else 2) for name in step_cost.STEPS)
    np.testing.assert_array_equal(dataset["ratio"].sel(gradient="backpropagation"), 1)
    assert (tmp_path / "page" / "step_cost.md").read_text() == (tmp_path / "step_cost.md").read_text()


def test_ratios_are_taken_round_by_round() -> None:
    """The machine is twice as slow in the second round: the ratio is 20 in both, and of the medians it is not asked."""
    names = list(step_cost.STEPS)
    times = np.array([[1.0, 2.0]] * len(names))
    times[names.index(step_cost.EXACT)] = [20, 40]
    dataset = xr.Dataset(
        {"seconds": (("width", "gradient", "round"), times[None])},
        coords={"width": [512], "gradient": names},
        attrs={"batch": 512, "threads": 1, "torch": "0"},
    )
    dataset["ratio"] = dataset["seconds"] / dataset["seconds"].sel(gradient="backpropagation")
    page = step_cost.page(dataset)
    assert "20.0 × faster (orthogonal (W̃⊥), Krylov)" in page
    assert "| orthogonal (W̃⊥), SVD of every example | 3e+04 (2e+04–4e+04) | 20 | 2 |" in page
    assert "| 512 | upstream (W̃ᵀ) | 0.65 | 1.5 |" in page
