"""The study of progress, run whole on tiny settings, and what its page makes of known decreases, losses and ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from fganalysis.results import store
from studies.progress import __main__ as progress
from studies.progress import decreases, losses, page, pairs, rank, width_fit
from studies.progress.cells import ESTIMATORS, FACTORS, best_factors
from studies.progress.training import DIVERGED, SHOWN_TARGETS, TRAINED_BY, Protocol

TRAINED = ("backpropagation", "weight", "finite difference", "upstream, mean of 4", "direct feedback")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, xr.DataTree]:
    folder = tmp_path_factory.mktemp("progress")
    settings = progress.Settings(
        networks=("tanh MLP",),
        steps=(0, 100),
        width=12,
        guesses=32,
        losses=64,
        batch=8,
        training_networks=("tanh MLP",),
        late_networks=(),
        batches=("one",),
        training_seeds=(0, 1),
        training_steps=12,
        training_guesses=16,
        start_guesses=16,
        widths=(8, 16),
        width_seeds=(0, 1),
        width_steps=(0, 100),
        out=folder,
        page=folder / "page",
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(progress.training, "TRAINED_BY", {name: TRAINED_BY[name] for name in TRAINED})
        return folder, progress.main(settings)


def test_a_tiny_run_predicts_small_steps_and_writes_its_page(finished: tuple[Path, xr.DataTree]) -> None:
    folder, tree = finished
    for part in ("steps", "training", "widths"):
        assert all(array.attrs["units"] and array.attrs["long_name"] for array in tree[part].data_vars.values())
    small = tree["steps"].to_dataset().isel(factor=0)
    z = (small["actual"] - small["predicted"]) / np.hypot(small["actual_se"], small["predicted_se"])
    assert (
        np.isfinite(z).any() and float(abs(z).max()) < 5
    )  # The same guesses serve both curvatures and all estimators.
    # Along the same guesses the model has no noise: what is left at small steps is the third derivative's, of step³.
    error = tree["steps"].to_dataset().sel(curvature="hessian")["model_error"].isel(factor=[0, 1])
    assert float(np.log2(abs(error.isel(factor=1) / error.isel(factor=0))).median()) == pytest.approx(3, abs=0.3)
    text = (folder / "page" / "progress.md").read_text(encoding="utf-8")
    assert text == page.page(tree) == page.page(store.read(folder / "page" / "progress.nc"))
    for figure in ("decrease", "error", "best", "ranks", "training", "width"):
        assert (folder / "page" / f"progress_{figure}.png").stat().st_size > 5000


def test_every_estimator_starts_from_the_same_network_and_is_measured(finished: tuple[Path, xr.DataTree]) -> None:
    training = finished[1]["training"].to_dataset()
    start = training["loss"].isel(training_step=0)
    assert float(abs(start - start.isel(estimator=0)).max()) == 0
    assert list(training["estimator"].values) == list(TRAINED)
    assert bool(np.isfinite(training["curved_efficiency"]).all()) and float(training["passes"].min()) == 2
    first = training.sel(estimator=rank.FIRST)
    np.testing.assert_allclose(first["curved_efficiency"], 1, rtol=1e-6)
    assert bool((first["loss"].isel(training_step=-1) < first["loss"].isel(training_step=0)).all())


def test_the_best_step_of_a_parabola_is_the_advised_one() -> None:
    """Exact decreases leave no doubt; noise that differs from step to step leaves some."""
    factors = np.array(FACTORS)[:, None]
    exact = factors * (2 - factors) * np.ones(64)
    assert best_factors(exact) == (1, 1, 1)
    noise = np.random.default_rng(0).standard_normal((len(FACTORS), 64))
    low, best, high = best_factors(exact + 5 * noise)
    assert low < high and low <= best <= high


@pytest.mark.parametrize(("best", "within"), [(0.25, False), (0.5, True), (2.0, True), (4.0, False)])
def test_the_page_judges_by_the_factor(finished: tuple[Path, xr.DataTree], best: float, within: bool) -> None:
    tree = finished[1].copy(deep=True)
    dataset = tree["steps"].to_dataset()
    for end in ("", "_low", "_high"):
        dataset["best" + end] = xr.full_like(dataset["best"], best)
    for end, unseen in (("", 3.0), ("_low", 2.0), ("_high", 4.0)):
        dataset["unseen_curvature" + end] = xr.full_like(dataset["unseen_curvature"], unseen)
    tree["steps"] = xr.DataTree(dataset)
    text, n = page.page(tree), 2 * len(ESTIMATORS)
    assert f"in {n if within else 0} of {n} cells**" in text
    assert ("That does not hold in at least nine of ten cells" in text) != within
    assert text.count("higher derivatives bend the loss more than the curvature shows") == (0 if within else 2 * n)


def made_up(numbers: list[float], losses: list[float], *, passes: list[float] | None = None) -> xr.Dataset:
    """Trainings of the first estimators with these curved efficiencies and last losses, the same in three seeds."""
    n, seeds = len(numbers), 3
    dims = ("network", "batches", "seed", "estimator")
    shape = (1, 1, seeds, n)
    noise = 1 + 1e-3 * np.random.default_rng(0).standard_normal(shape)
    efficiency = np.array(numbers) * noise
    loss = np.stack([np.full(shape, 2.0), np.sqrt(2 * np.array(losses)) * np.ones(shape), losses * noise], -1)
    per_step = np.ones(shape) * (passes or [2.0] * n)
    found = {name: (dims, efficiency) for name in ("curved_efficiency", "efficiency", "cosine", "unseen_curvature")}
    found |= {"variance": (dims, 1 / efficiency), "passes": (dims, per_step), "diverged_at": (dims, 0 * noise * np.nan)}
    found |= {"loss": ((*dims, "training_step"), loss), "advised_step": ((*dims, "moment"), noise[..., None])}
    found["curved_efficiency_along"] = ((*dims, "moment"), efficiency[..., None])
    coordinates = {"network": ["MLP"], "batches": ["one"], "seed": range(seeds), "estimator": list(TRAINED_BY)[:n]}
    return xr.Dataset(found, coords=coordinates | {"training_step": [0, 1, 2], "moment": [0]})


def test_ranks_of_known_losses() -> None:
    """A perfect order has the correlation 1 and no pair ranked wrongly; its reverse −1 and every pair."""
    numbers = [1.0, 0.1, 0.2, 0.3, 0.4]
    in_order, reversed_order = (
        made_up(numbers, ends) for ends in ([0.1, 0.9, 0.8, 0.7, 0.6], [0.1, 0.6, 0.7, 0.8, 0.9])
    )
    along = in_order["curved_efficiency_along"]  # One without a logarithm is left out of the mean.
    in_order["curved_efficiency_along"] = along.where(along["estimator"] != "weight", -0.1)
    right, reverse = rank.values(in_order), rank.values(reversed_order)
    assert right["by_steps"][0][:2] == ["MLP, one batch", "1.00"] and right["by_cost"][0][1] == "1.00"
    assert right["by_steps"][0][-1] == "1.00, of 4"
    assert reverse["by_steps"][0][1] == "-1.00"
    assert [found["summaries_of_steps"][0]["ranks"] for found in (right, reverse)] == [1, 0]
    of_right, of_reverse = (pairs.values(dataset)["pairs"]["steps"] for dataset in (in_order, reversed_order))
    assert of_right["counts"] == [["MLP, one batch", "6", "0", "0"]] and not of_right["wrong"]
    assert of_reverse["counts"] == [["MLP, one batch", "0", "6", "0"]] and not of_reverse["of_diverging"]
    assert "weight, mean of 4 is ranked above weight (2 (2 to 2) times, loss higher by 0.100" in "".join(
        of_reverse["of_others"]
    )


def test_equal_cost_is_that_of_the_cheapest_estimator() -> None:
    """Twice the price, half the steps: the loss there is the geometric mean of start and end, by construction."""
    dataset = made_up([1.0, 0.1, 0.2], [0.1, 0.4, 0.5], passes=[2.0, 2.0, 4.0])
    assert rank.budget(dataset) == 4
    expected = [0.1, 0.4, 1.0]
    np.testing.assert_allclose(rank.after_cost(dataset).mean("seed").squeeze(), expected, rtol=2e-3)


def test_a_training_that_diverges_is_last_and_has_no_mean_loss() -> None:
    dataset = made_up([1.0, 0.3, 0.2, 0.1], [0.1, 0.4, 0.5, 0.6])
    dataset["loss"][..., 1, -1] = 2.0 * DIVERGED
    dataset["diverged_at"][..., 1] = 2.0
    row = rank.values(dataset)["by_steps"][0]
    assert row[1] == "-0.50" and row[-1] == "–, of 2"
    assert losses.values(dataset)["losses_of_steps"][1] == ["weight", "3 of 3 diverge"]
    (sentence,) = pairs.values(dataset)["pairs"]["steps"]["of_diverging"]
    assert sentence == (
        "MLP, one batch: weight, of which 3 of 3 trainings diverge, is ranked above weight, mean of 4 (1.5 times); "
        "weight, mean of 16 (3 times)."
    )


def test_backpropagation_that_diverges_is_said() -> None:
    dataset = made_up([1.0, 0.3, 0.2, 0.1], [0.1, 0.4, 0.5, 0.6])
    assert not rank.values(dataset)["overshooting"]
    dataset["diverged_at"][0, 0, 1, 0] = 1.0
    found = rank.values(dataset)
    assert [network for network, _ in found["overshooting"]] == ["MLP"]
    assert "diverges in 1 of 3 trainings" in found["gradients"][0]


def test_the_loss_of_a_large_training_set_is_that_of_a_part() -> None:
    class Data:
        def __init__(self, examples: int, positions: int) -> None:
            self.train_inputs = self.train_targets = torch.arange(examples * positions).view(examples, positions)

    def counted(examples: int, positions: int) -> int:
        data: Any = Data(examples, positions)
        protocol = Protocol(torch.nn.Identity(), data, lambda outputs, targets: targets.numel(), 0, "new", 1, 1, 1, 1)  # type: ignore[arg-type,return-value]
        return int(protocol.loss(torch.nn.Identity(), data.train_inputs, data.train_targets))

    assert counted(SHOWN_TARGETS, 1) == SHOWN_TARGETS
    assert counted(SHOWN_TARGETS, 2) == SHOWN_TARGETS and counted(1001, 8) == 8008
    assert SHOWN_TARGETS / 2 < counted(SHOWN_TARGETS + 1, 1) <= SHOWN_TARGETS


@pytest.mark.parametrize("power", [2, 3])
def test_errors_of_a_known_power_of_the_step(power: int) -> None:
    """An odd power is odd in the step; relative to the decrease the error is that of the coefficient."""
    factors = np.array(FACTORS)
    model, error = factors * (2 - factors), 0.1 * factors**power
    dims = ("curvature", "network", "steps", "estimator", "factor")
    found = {"model": model, "actual": model + error, "predicted": model, "model_error": error}
    found |= {"odd_error": error * (power % 2), "actual_se": error / 1.5, "predicted_se": 0 * error}
    dataset = xr.Dataset(
        {name: (dims, values[None, None, None, None]) for name, values in found.items()},
        coords={"curvature": ["hessian"], "network": ["tanh MLP"], "steps": [0], "estimator": ["weight"]}
        | {"factor": factors},
    )
    dataset["has_kinks"] = dataset["loss"] = (dims[:3], np.zeros((1, 1, 1)))
    for end in ("", "_low", "_high"):
        dataset["best" + end] = (dims[:4], np.ones((1, 1, 1, 1)))
    (smooth,) = decreases.values(dataset)["smooth"]
    assert (smooth["agreeing"], smooth["total"]) == (6, 6) and smooth["power"] == pytest.approx(power)
    assert smooth["medians"][-1] == "10 % at η\\*" and (smooth["odd"], smooth["of_odd"]) == (power % 2, 1)


@pytest.mark.parametrize(("power", "verdict"), [(0.0, "flat"), (0.5, "rises"), (-0.5, "falls")])
def test_the_power_of_the_width(power: float, verdict: str) -> None:
    widths, noise = np.array([8, 16, 32]), np.random.default_rng(0).normal(0, 0.02, (3, 4, 1))
    rank_of = widths[:, None, None] ** power * np.exp(noise)
    dims = ("width", "seed", "steps")
    dataset = xr.Dataset(
        {"effective_rank": (dims, rank_of), "parameters": (dims, widths[:, None, None] ** 2 * np.ones((3, 4, 1)))},
        coords={"width": widths, "seed": range(4), "steps": [0]},
    )
    found = width_fit.values(dataset)
    assert found["fits"][0]["verdict"] == verdict and found["weights_power"] == pytest.approx(2)
