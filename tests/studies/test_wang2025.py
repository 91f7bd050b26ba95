"""The study of the seed paper's tables: its laws, its statistics, and a tiny run of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import fganalysis as fga
from fganalysis import testing
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ActivityPerturbation, OrthogonalUpstream, PreconditionedUpstream
from fganalysis.results import store
from studies.wang2025 import __main__ as wang2025
from studies.wang2025 import cells as wang2025_cells
from studies.wang2025 import collected, paper
from studies.wang2025 import page as wang2025_page
from studies.wang2025.cells import METHODS, RowSpace, Training


def tiny_snapshot() -> Snapshot:
    """One example; a layer before one as wide and one before a narrower one, each with live and dead units."""
    inputs = torch.randn(1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    network = fga.networks.mlp([3, 3, 3, 2], bias=False, seed=2, dtype=torch.float64)
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.tensor([1]))
    assert [int((one.derivative != 0).sum()) for one in snapshot.upstream] == [2, 2]
    return snapshot


@pytest.mark.parametrize(
    ("drawn", "defined"),
    [(RowSpace(), OrthogonalUpstream(k="rank")), (RowSpace(), PreconditionedUpstream())],
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


def test_dead_units_are_perturbed_as_the_paper_does_where_the_next_layer_is_as_wide() -> None:
    """Layer 1 is plain activity perturbation, layer 2 below a narrower one the row space alone."""
    snapshot = tiny_snapshot()
    estimators = (
        RowSpace(dead_units=True, layers="separate"),
        ActivityPerturbation(layers="separate"),
        RowSpace(layers="separate"),
    )
    found = []
    for one in estimators:
        covariance = testing.exact_moments(one, snapshot, testing.three_points).activation_covariance
        assert covariance is not None
        found.append((covariance[:3, :3].numpy(), covariance[3:6, 3:6].numpy()))
    ours, plain, rows = found
    np.testing.assert_allclose(ours[0], plain[0], atol=1e-12)
    np.testing.assert_allclose(ours[1], rows[1], atol=1e-12)
    assert np.abs(ours[0] - rows[0]).max() > 1e-3 and np.abs(ours[1] - plain[1]).max() > 1e-3


def test_the_grid_has_every_cell_of_the_tables() -> None:
    full = wang2025.grid(wang2025.Settings(full=True))
    for width in paper.WIDTHS:
        for method in paper.TABLE_3:
            assert [(one.seed, one.epochs) for one in full if (one.method, one.width) == (method, width)] == [
                (seed, 300) for seed in range(5)
            ]
    assert set(paper.TABLE_1) <= {one.method for one in full if one.width == 128}
    assert set(paper.TABLE_5) <= {one.method for one in full if one.width == 256}
    assert {one.method for one in full} == set(METHODS)
    assert {one.width for one in wang2025.grid(wang2025.Settings())} == {64, 128}


def test_quick_and_full_together_are_refused() -> None:
    with pytest.raises(ValueError, match="quick and full exclude each other: choose one"):
        wang2025.Settings(quick=True, full=True)


def log(accuracies: dict[str, list[float]], width: int = 128) -> dict[Training, xr.Dataset]:
    cells = {}
    for method, values in accuracies.items():
        for seed, value in enumerate(values):
            log = {name: ("step", [0.1, value]) for name in ("loss", "train_accuracy", "test_accuracy", "cosine")}
            jacobian = {name: (("when", "layer"), np.full((2, 3), value)) for name in collected.JACOBIAN}
            cells[Training(method, width, seed, 300)] = xr.Dataset(
                log | jacobian, coords={"step": [0, 2400], "when": ["before", "after"], "layer": [1, 2, 3]}
            )
    return cells


def test_the_order_is_judged_on_differences_seed_by_seed() -> None:
    """Seeds differ by .2 and methods by .01: the intervals of the means overlap, those of the differences do not."""
    seeds = np.array([0.3, 0.4, 0.5])
    tree = collected.collect(
        log({
            "activity": list(seeds),
            "upstream": list(seeds + np.array([0.010, 0.011, 0.012])),
            "orthogonal, k = 10": list(seeds + np.array([0.022, 0.020, 0.021])),
        })
    )  # fmt: skip
    paired = collected.difference(tree, "orthogonal, k = 10", "upstream", 128)
    assert paired.mean == pytest.approx(0.010) and 0 < paired.low < 0.010
    page = wang2025_page.text(tree)
    assert "The order W̃⊥ (k = 10) above W̃ᵀ above activity perturbation holds seed by seed at width 128." in page
    assert "| 128 | W̃ᵀ | activity perturbation | 0.011 ± 0.002 | better | no |" in page


def test_the_page_says_that_the_ordering_holds_with_intervals_apart() -> None:
    values = {"activity": [0.30, 0.31], "upstream": [0.50, 0.51], "orthogonal, k = 10": [0.90, 0.91]}
    page = wang2025_page.text(collected.collect(log(values, 256)))
    assert "At width 256, after 300 epochs, the intervals of the three means are disjoint and in the order" in page
    assert (
        "At width 128, after 300 epochs, the intervals cannot be compared: W̃⊥, k = 10 and W̃ᵀ need at least two seeds "
        "in common." in page
    )


def test_the_page_says_why_the_ordering_does_not_hold_with_intervals_apart() -> None:
    """Seeds have variance .01 in both, their difference 1e-6: 1 - 1e-6/.02 of it is common. And activity is far off."""
    seeds = np.array([0.5, 0.6, 0.7])
    better = seeds + np.array([0.019, 0.020, 0.021])
    values = {"activity": [0.1, 0.1, 0.11], "upstream": list(seeds), "orthogonal, k = 10": list(better)}
    page = wang2025_page.text(collected.collect(log(values)))
    assert "At width 128, after 300 epochs, the intervals of the three means are not all disjoint" in page
    assert (
        "- W̃⊥, k = 10 and W̃ᵀ: the means differ by 0.020 and the half-widths of their intervals are 0.251 and 0.248. "
        "The standard deviations over seeds are 0.101 (3 seeds) and 0.100 (3 seeds). Both methods share 100 % of "
        "that variance, as a seed has the same weights and batches for both. Seed by seed the difference is 0.020 ± "
        "0.002: the first is better." in page
    )
    assert "- W̃ᵀ and activity" not in page


def test_a_difference_that_nothing_common_explains_is_not_significant() -> None:
    values = {"activity": [0.1, 0.1, 0.11], "upstream": [0.5, 0.6, 0.7], "orthogonal, k = 10": [0.7, 0.6, 0.5]}
    page = wang2025_page.text(collected.collect(log(values)))
    assert "share none of that variance. Seed by seed the difference is 0.0 ± 0.5: not significant." in page


def metrics(values: dict[str, list[float]]) -> xr.Dataset:
    """(guess_kind, layer) of every guess of table 2, all alike; what is not told is 1."""
    kinds = list(paper.TABLE_2)
    names = ("variance", "variance_se", "bias", "bias_se")
    found = {name: [1.0, 1.0, 1.0] for name in names} | values
    return xr.Dataset(
        {name: (("guess_kind", "layer"), [row] * len(kinds)) for name, row in found.items()},
        coords={"guess_kind": kinds, "layer": [1, 2, 3]},
    )


def test_table_2_names_the_layers_that_hold_the_paper_and_shows_the_covariance_norm_where_it_is() -> None:
    """Variances of three seeds about 1.5e-4 in layers 1 and 3: there alone is W̃ᵀ's 1.50e-4. The norm is rounded."""
    cells = log({"orthogonal, k = 10": [0.3, 0.4, 0.5], "orthogonal, k = 1": [0.3]})
    for index, one in enumerate(one for one in list(cells) if one.method == "orthogonal, k = 10"):
        own = {"variance": [(1.4 + index / 10) * 1e-4, 1.0, (1.4 + index / 10) * 1e-4]}
        cells[one] = xr.merge([cells[one], metrics(own)])
    without = wang2025_page.text(collected.collect(cells))
    spread = "(1.50 ± 0.25)·10⁻⁴"
    assert f"| upstream | variance | 1.50e-04 | {spread} | (1.00 ± 0.00)·10⁰ | {spread} | 1 and 3 |" in without
    assert (
        "| upstream | bias | 2.75e-04 | (1.00 ± 0.00)·10⁰ | (1.00 ± 0.00)·10⁰ | (1.00 ± 0.00)·10⁰ | none |" in without
    )
    assert "| upstream | covariance norm | 8.40e-02 | – | – | – | – |" in without

    first = Training("orthogonal, k = 10", 128, 0, 300)
    cells[first] = cells[first].assign(covariance_norm=(("guess_kind", "layer"), np.full((3, 3), 0.08487)))
    one = collected.collect(cells)
    assert "| orthogonal | covariance norm | 8.50e-02 | 8.49·10⁻² | 8.49·10⁻² | 8.49·10⁻² | – |" in wang2025_page.text(
        one
    )
    second = Training("orthogonal, k = 10", 128, 1, 300)
    again = collected.cells(one)  # As a run that is taken up finds them.
    xr.testing.assert_identical(again[first]["covariance_norm"].drop_attrs(), cells[first]["covariance_norm"])
    again[second] = again[second].assign(covariance_norm=again[first]["covariance_norm"])
    page = wang2025_page.text(collected.collect(again))
    row = "(8.49 ± 0.00)·10⁻² | (8.49 ± 0.00)·10⁻² | (8.49 ± 0.00)·10⁻²"
    assert f"| orthogonal | covariance norm | 8.50e-02 | {row} | 1, 2 and 3 |" in page


def test_the_cell_s_covariance_norm_is_that_of_ten_directions() -> None:
    batch = torch.randn(4, 40, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3])
    guess: dict[str, fga.estimators.Estimator] = {"orthogonal": OrthogonalUpstream(k=10)}
    for width, expected in ((128, np.sqrt(118) / 128), (129, None)):
        snapshot = wang2025_cells._captured(fga.networks.mlp([40, *[width] * 3, 10], bias=False, seed=0), *batch)
        found = wang2025_cells._metrics(snapshot, guess, seed=0)
        assert ("covariance_norm" in found) == (expected is not None)
        if expected is not None:
            np.testing.assert_allclose(found["covariance_norm"], np.full((1, 3), expected), rtol=1e-6)


def test_figure_1_looks_for_the_paper_s_numbers_after_training_by_orthogonal() -> None:
    """Seeds .8, .9, 1: a run lies within .9 ± .50, which holds the overlaps and no rank."""
    page = wang2025_page.text(collected.collect(log({"orthogonal, k = 10": [0.8, 0.9, 1.0], "upstream": [0.8, 1.0]})))
    ours = "0.9 ± 0.2 | 0.9 ± 0.2"
    assert f"| 128 | W̃⊥, k = 10 | 1 | 64 | {ours} | above | 0.91 | {ours} | yes | {ours} |" in page
    assert (
        "| 128 | W̃ᵀ | 1 | – | 0.9 ± 1.3 | 0.9 ± 1.3 | – | – | 0.9 ± 1.3 | 0.9 ± 1.3 | – | 0.9 ± 1.3 | 0.9 ± 1.3 |"
        in page
    )


def test_one_seed_is_printed_without_an_interval() -> None:
    own = xr.Dataset(
        {name: (("guess_kind", "layer"), [[1.52e-4] * 3]) for name in ("variance", "variance_se", "bias", "bias_se")},
        coords={"guess_kind": ["preconditioned"], "layer": [1, 2, 3]},
    )
    cells = {one: xr.merge([cell, own]) for one, cell in log({"preconditioned": [0.3]}, 256).items()}
    page = wang2025_page.text(collected.collect(cells))
    assert "| W̃^P | variance | 1.75e-04 | 1.52·10⁻⁴ | – | – |" in page


@pytest.mark.parametrize("iterated", [True, False])
def test_more_iterations_are_announced_where_they_are_compared(iterated: bool) -> None:
    values = {"orthogonal, k = 10": [0.3, 0.4]} | ({"orthogonal, k = 10, iterated": [0.3, 0.41]} if iterated else {})
    tree = collected.collect(log(values))
    tree.attrs["trainings"] = "2 of 2"
    page = wang2025_page.page(tree)
    assert (
        ("More iterations are compared above" in page) == ("Does the cheap decomposition matter?" in page) == iterated
    )


def test_a_printed_number_is_looked_for_in_the_interval_of_one_more_run() -> None:
    """Mean .4, sd .1, n = 3: ± .248 for the mean, ± .497 for a run."""
    tree = collected.collect(log({"upstream": [0.3, 0.4, 0.5], "weight": [0.9, 0.91, 0.92]}))
    page = wang2025_page.text(tree)
    assert "| 128 | W̃ᵀ | 0.312 | 0.4 ± 0.2 | 3 | yes | yes |" in page
    assert "| 128 | weight perturbation | 0.124 | 0.91 ± 0.02 | 3 | below | below |" in page
    assert "In 1 of the 2 cells that have an interval" in page


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
    shown = capsys.readouterr().out
    # A training and, after that by the orthogonal guess, the metrics of three kinds of guesses: a cell each.
    assert "0 of 2 cells are finished" in shown and "0 of 3 cells are finished" in shown
    assert set(tree["metrics"]["guess_kind"].values) == {"orthogonal", "upstream", "orthogonal, bottom"}
    assert (tmp_path / "quick" / "wang2025.nc").read_bytes() == (tmp_path / "page" / "wang2025.nc").read_bytes()
    assert not list(tmp_path.rglob(".*"))
    elsewhere = wang2025.Settings(workers=1, out=tmp_path / "other", resume_from=tmp_path / "page" / "wang2025.nc")
    for again, said in (
        (settings, "2 of 2 cells are finished"),
        (elsewhere, "2 of 2 trainings are taken over from"),
    ):
        xr.testing.assert_allclose(wang2025.main(again), tree)
        shown = capsys.readouterr().out
        assert said in shown and "0 of 2 cells" not in shown and "0 of 3 cells" not in shown
    # What is taken over is said, and is no cell, whose identity would claim that this code has made it.
    assert "2 trainings of " in store.read(tmp_path / "other" / "quick" / "wang2025.nc").attrs["taken_over"]
    assert not list((tmp_path / "other").rglob("seed_*"))
    with pytest.raises(ValueError, match=r"resume_from must be a wang2025\.nc of this study, got "):
        other = tmp_path / "quick" / "width_64" / "backpropagation" / "seed_0.nc"
        wang2025.main(wang2025.Settings(workers=1, out=tmp_path / "other", resume_from=other))
