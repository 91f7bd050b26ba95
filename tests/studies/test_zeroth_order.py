"""The study of zeroth-order directions, run whole on a small network, and its slips against their exact means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from studies.zeroth_order import __main__ as zeroth_order
from studies.zeroth_order import directions, page, slips

TINY: dict[str, Any] = {
    "steps": (0,),
    "width": 6,
    "batch": 32,
    "guesses": 256,
    "curved_guesses": 16,
    "slips": ("losses standardised",),
    "tolerance": 0.5,
    "max_guesses": 4096,
}

LEFT_OUT = ("on a sphere", "rank 4", "rank 16", "scaled by size", "guided by 1 example")


def run(folder: Path) -> Any:
    return zeroth_order.main(zeroth_order.Settings(**TINY, out=folder / "out", page=folder / "page"))


def test_measured_meets_predicted_and_the_page_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the directions that the page has in its tables alone."""
    fewer = {name: estimator for name, estimator in directions.ESTIMATORS.items() if name not in LEFT_OUT}
    monkeypatch.setattr(directions, "ESTIMATORS", fewer)
    tree = run(tmp_path)
    dataset = tree["directions"].to_dataset().isel(steps=0)
    assert list(dataset["estimator"].values) == list(fewer)
    for quantity in ("relative_variance", "efficiency"):
        known = dataset[f"{quantity}_predicted"].notnull()
        # Of ten intervals of 95 %.
        inside = dataset[f"{quantity}_low"] <= dataset[f"{quantity}_predicted"]
        inside &= dataset[f"{quantity}_predicted"] <= dataset[f"{quantity}_high"]
        assert int(known.sum()) == 10
        assert int(inside.sum()) >= 7
    assert int(dataset["numbers"].sel(estimator="rank 1")) == (40 + 6) + 2 * (6 + 6) + (6 + 10)
    assert int(dataset["numbers"].sel(estimator="subspace of rank 4")) == 4 * 16
    of_slips = tree["slips"].to_dataset()
    assert of_slips["verdict"].values.tolist() == ["biased"]
    text = (tmp_path / "page" / "zeroth_order.md").read_text(encoding="utf-8")
    for figure in ("efficiency", "slips"):
        assert f"(zeroth_order_{figure}.png)" in text
        assert (tmp_path / "page" / f"zeroth_order_{figure}.png").stat().st_size > 5000
    assert "nan" not in text
    variables = [array for node in (dataset, of_slips) for array in node.data_vars.values()]
    assert all(array.attrs["units"] and array.attrs["long_name"] for array in variables)
    assert page.page(tree) == text


@pytest.mark.parametrize("name", slips.SLIPS)
def test_the_mean_of_a_slip_is_its_exact_mean(name: str) -> None:
    """Of 20 000 guesses, along the exact mean, the gradient and their difference: 5 standard errors."""
    slip, snapshot = slips.SLIPS[name], slips.snapshot_of(0, "cpu")
    gradients = [gradient.numpy() for gradient in snapshot.weight_gradients]
    exact = np.concatenate([part.ravel() for part in slip.exact(gradients)])
    gradient = np.concatenate([part.ravel() for part in gradients])
    guesses = slip.guess(snapshot, 20_000, torch.Generator().manual_seed(0)).dense(snapshot)[1].numpy()
    seen = []
    for direction in (exact, gradient, np.ones_like(exact)):
        along = guesses @ direction
        error = along.std() / len(along) ** 0.5
        assert abs(along.mean() - exact @ direction) < 5 * error
        seen.append(abs(along.mean() - gradient @ direction) > 5 * error)
    assert any(seen), "it is not the gradient"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 8}, "batch must be a whole number of at least 32, got 8"),
        ({"slips": ("none",)}, "slips has the unknown name 'none'"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zeroth_order.Settings(**change)
