"""The study of many tangents, run whole on a small grid, and the law that its rotated route draws from."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fganalysis.estimators import MultiTangent
from studies.tangents import __main__ as tangents
from studies.tangents import cells
from studies.tangents.rotated import Rotated
from theory import projection

TINY = {"largest_n": 6, "largest_k": 3, "draws": 400, "direct_numbers": 40_000}


def run(folder: Path, **changes: int) -> tangents.xr.Dataset:
    return tangents.main(tangents.Settings(**(TINY | changes), out=folder / "out", page=folder / "page"))


def test_measured_meets_predicted_and_a_second_run_computes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = run(tmp_path)
    shown = capsys.readouterr().out
    # Some 250 correlated comparisons, a fixed seed; and four tangents more at n = 64, k = 8 are seen.
    for name in cells.QUANTITIES:
        assert float(abs(dataset[f"{name}_z"]).max()) < 4
        assert (dataset[f"{name}_z"].notnull() == (dataset["draws"] > 0)).all()
    point = dataset.sel(combine="orthogonal", n=64, k=8)
    for route in cells.ROUTES:
        own = point.sel(route=route)
        assert abs(own["cosine"] - projection.mean_cosine(12, 64)) > 4 * own["cosine_se"]
    assert (dataset["draws"].sel(route="direct", n=64, k=8) == 78).all()
    assert all(array.attrs["units"] and array.attrs["long_name"] for array in dataset.values())
    page = (tmp_path / "page" / "tangents.md").read_text(encoding="utf-8")
    assert page in shown
    for figure in ("quality", "agreement"):
        assert f"(tangents_{figure}.png)" in page
        assert (tmp_path / "page" / f"tangents_{figure}.png").stat().st_size > 5000
    files = sorted((tmp_path / "out" / "cells").iterdir())
    assert len(files) == 7
    written = [cell.stat().st_mtime_ns for cell in files]
    assert run(tmp_path).identical(dataset)
    assert [cell.stat().st_mtime_ns for cell in files] == written
    assert not run(tmp_path, draws=20).identical(dataset)


def test_the_cosines_that_are_needed() -> None:
    """E cos² = k/(n + k − 1) for the mean, k/n for the projection, and E cos is close below its root."""
    needed = tangents._needed([4096])
    for target in tangents.TARGETS:
        square = target**2
        np.testing.assert_allclose(needed.sel(combine="orthogonal", target=target), 4096 * square, rtol=0.03)
        np.testing.assert_allclose(needed.sel(combine="mean", target=target), 4095 * square / (1 - square), rtol=0.03)


def test_rotated_tangents_have_the_moments_of_gaussian_ones() -> None:
    """The Gram matrix of k = 3 tangents of n = 7 entries: E VVᵀ = n I, and E (VVᵀ)_ij² = n² + 2n on and n off it."""
    k, n, draws = 3, 7, 200_000
    tangents_drawn = Rotated(n).draw(
        (draws, k, 1, k + 1), torch.Generator().manual_seed(0), torch.zeros(1, dtype=torch.float64)
    )
    rows = tangents_drawn.squeeze(2)
    gram = rows @ rows.mT
    eye = np.eye(k)
    # 5 standard errors: √(2n/draws) and about √(8 n³ · (1 + 6/n)/draws) on the diagonal.
    np.testing.assert_allclose(gram.mean(0).numpy(), n * eye, atol=5 * np.sqrt(2 * n / draws))
    expected = np.where(eye, n * n + 2 * n, n)
    np.testing.assert_allclose(gram.square().mean(0).numpy(), expected, atol=5 * np.sqrt(16 * n**3 / draws))
    # E (v_i·e_1)² (VVᵀ)_ii = n + 2: the first entry belongs to the tangent whose length it is part of.
    along = (rows[:, :, 0].square() * gram.diagonal(dim1=1, dim2=2)).mean(0)
    np.testing.assert_allclose(along.numpy(), n + 2, atol=0.3)


@pytest.mark.parametrize(("n", "shape"), [(3, (1, 3, 1, 4)), (8, (1, 3, 1, 3)), (8, (1, 3, 2, 4))])
def test_rotated_tangents_refuse_what_does_not_fit(n: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \(guess, k, 1, k \+ 1\) and n > k"):
        Rotated(n).draw(shape, torch.Generator(), torch.zeros(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"least_draws": 1}, "least_draws must be a whole number of at least 2, got 1"),
        ({"largest_n": -1}, "largest_n must be a whole number of at least 0, got -1"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tangents.Settings(**change)


def test_one_tangent_more_is_seen_by_the_rotated_route() -> None:
    """The negative control of the rotation: degrees of freedom of n instead of n − 1 across the gradient."""
    snapshot = cells._snapshot(6, 3, torch.device("cpu"))
    for n, right in ((6, True), (7, False)):
        guesses = MultiTangent(2, "orthogonal", Rotated(n))(snapshot, 20_000, torch.Generator().manual_seed(1))
        inner, squares = (scalars[1, 0].numpy() for scalars in guesses.inner_products(snapshot))
        cosine = inner / np.sqrt(6 * squares)
        error = cosine.std() / np.sqrt(len(cosine))
        assert (abs(cosine.mean() - projection.mean_cosine(2, 6)) < 4 * error) == right
