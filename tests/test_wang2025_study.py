"""The study of the seed paper's tables: its laws, its statistics, and a tiny run of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import fganalysis as fga
from fganalysis import testing
from fganalysis.estimators import OrthogonalUpstream, PreconditionedUpstream
from fganalysis.snapshot import Snapshot
from studies import wang2025, wang2025_cells, wang2025_page
from studies.wang2025_cells import METHODS, RowSpace, Training


def tiny_snapshot() -> Snapshot:
    """One example; a layer before one as wide and one before a narrower one, each with live and dead units."""
    inputs = torch.randn(1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    network = fga.networks.mlp([3, 3, 3, 2], bias=False, seed=2, dtype=torch.float64)
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.tensor([1]))
    assert [int((one.derivative != 0).sum()) for one in snapshot.upstream] == [2, 2]
    return snapshot


@pytest.mark.parametrize(
    ("drawn", "defined"),
    [(RowSpace(), OrthogonalUpstream(k="rank")), (RowSpace(dead_units=True), PreconditionedUpstream())],
)
def test_row_space_noise_has_the_mean_and_covariance_of_the_estimator_that_it_stands_for(
    drawn: RowSpace, defined: OrthogonalUpstream | PreconditionedUpstream
) -> None:
    """The six-point law matches a Gaussian's first five moments, so equal Σ gives equal mean and covariance."""
    snapshot = tiny_snapshot()
    one = testing.exact_moments(drawn, snapshot, testing.three_points)
    other = testing.exact_moments(defined, snapshot, testing.three_points)
    for name in ("activation_mean", "activation_covariance", "weight_mean", "weight_covariance"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5)


def test_the_grid_has_every_cell_of_the_tables() -> None:
    full = wang2025.grid(wang2025.Settings(full=True))
    for width in wang2025_page.WIDTHS:
        for method in wang2025_page.TABLE_3:
            seeds = 2 if (method, width) == ("orthogonal, k = 10", 512) else 5
            assert [(one.seed, one.epochs) for one in full if (one.method, one.width) == (method, width)] == [
                (seed, 300) for seed in range(seeds)
            ]
    assert set(wang2025_page.TABLE_1) <= {one.method for one in full if one.width == 128}
    assert set(wang2025_page.TABLE_5) <= {one.method for one in full if one.width == 256}
    assert {one.method for one in full} == set(METHODS)
    assert {one.width for one in wang2025.grid(wang2025.Settings())} == {64, 128}


def test_quick_and_full_together_are_refused() -> None:
    with pytest.raises(SystemExit, match="choose --quick or --full, not both"):
        wang2025.grid(wang2025.Settings(quick=True, full=True))


def log(accuracies: dict[str, list[float]], width: int = 128) -> dict[Training, xr.Dataset]:
    cells = {}
    for method, values in accuracies.items():
        for seed, value in enumerate(values):
            log = {name: ("step", [0.1, value]) for name in ("loss", "train_accuracy", "test_accuracy", "cosine")}
            jacobian = {name: (("when", "layer"), np.full((2, 3), value)) for name in wang2025_page.JACOBIAN}
            cells[Training(method, width, seed, 300)] = xr.Dataset(
                log | jacobian, coords={"step": [0, 2400], "when": ["before", "after"], "layer": [1, 2, 3]}
            )
    return cells


def test_the_order_is_judged_on_differences_seed_by_seed() -> None:
    """Seeds differ by .2 and methods by .01: the intervals of the means overlap, those of the differences do not."""
    seeds = np.array([0.3, 0.4, 0.5])
    tree = wang2025_page.collect(
        log({
            "activity": list(seeds),
            "upstream": list(seeds + np.array([0.010, 0.011, 0.012])),
            "orthogonal, k = 10": list(seeds + np.array([0.022, 0.020, 0.021])),
        })
    )  # fmt: skip
    paired = wang2025_page.difference(tree, "orthogonal, k = 10", "upstream", 128)
    assert paired.mean == pytest.approx(0.010) and 0 < paired.low < 0.010
    page = wang2025_page.text(tree)
    assert "holds at width 128" in page
    assert "| 128 | W̃ᵀ | activity perturbation | 0.011 ± 0.002 | better | no |" in page


def test_a_printed_number_is_looked_for_in_the_interval_of_one_more_run() -> None:
    """Mean .4, sd .1, n = 3: ± .248 for the mean, ± .497 for a run."""
    tree = wang2025_page.collect(log({"upstream": [0.3, 0.4, 0.5], "weight": [0.9, 0.91, 0.92]}))
    page = wang2025_page.text(tree)
    assert "| 128 | W̃ᵀ | 0.312 | 0.4 ± 0.2 | 3 | yes | yes |" in page
    assert "| 128 | weight perturbation | 0.124 | 0.91 ± 0.02 | 3 | below | below |" in page
    assert "Of 2 cells with an interval, 1 hold" in page


def test_a_tiny_run_trains_writes_its_page_and_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        wang2025,
        "grid",
        lambda settings: [Training(one, 64, 0, 1) for one in ("backpropagation", "orthogonal, k = 10")],
    )
    settings = wang2025.Settings(workers=1, out=tmp_path, page=tmp_path / "page")
    tree = wang2025.main(settings)
    page = (tmp_path / "page" / "wang2025.md").read_text()
    assert "| 64 | W̃⊥, k = 10 | 0.268 |" in page
    assert {path.name for path in (tmp_path / "page").glob("*.png")} == {
        "wang2025_accuracy.png",
        "wang2025_overlap.png",
    }
    found = tree["jacobian"].to_dataset().sel(trained_by="orthogonal, k = 10", width=64, seed=0)
    np.testing.assert_allclose(found["overlap"].sel(layer=3), 1, atol=1e-4)  # Rank 10, so ten directions hold it all.
    np.testing.assert_allclose(found["jacobian_rank"].sel(layer=3), 10)
    assert "0 of 2 trainings are finished" in capsys.readouterr().out
    monkeypatch.setattr(wang2025_cells, "cell", None)  # Nothing may be computed again.
    elsewhere = wang2025.Settings(workers=1, out=tmp_path / "other", resume_from=tmp_path / "page" / "wang2025.nc")
    for again in (settings, elsewhere):
        xr.testing.assert_allclose(wang2025.main(again), tree)
        assert "2 of 2 trainings are finished" in capsys.readouterr().out
