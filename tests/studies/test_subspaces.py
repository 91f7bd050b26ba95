"""The study of subspaces with tiny settings: its cells, its resumption, its answers and its figures."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
import xarray as xr
from scipy import stats

from fganalysis.measuring import subspace
from fganalysis.results import store
from studies.kit.seeds import Interval, over_seeds
from studies.subspaces import __main__ as subspaces
from studies.subspaces.__main__ import Settings
from studies.subspaces.answers import answers
from studies.subspaces.best_k import PAPER_SWEEP, Ranking, _mean_square
from studies.subspaces.cells import METHODS, VERSION
from studies.subspaces.collection import NOTES, _sampled
from studies.subspaces.descent import BRANCHES, JACOBIAN_BRANCHES, projected_gradients
from studies.subspaces.figures import progress_of
from studies.subspaces.mean_guesses import beside
from studies.subspaces.picks import factor
from studies.subspaces.turning import leading_of_all, turning
from tests.laws import tiny_snapshot
from tests.unit.results.damaged import damage

TINY = Settings(
    widths=(8, 12),
    epochs=(2, 1),
    seeds=(0, 1),
    k=3,
    ks=(1,),
    guesses=2048,
    sampled_width=8,
    batch=6,
    training_batch=500,
    descent_width=6,
    descent_steps=4,
    workers=1,
)


@dataclasses.dataclass(frozen=True)
class Finished:
    settings: Settings
    collected: xr.Dataset
    text: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("study")
    settings = dataclasses.replace(TINY, out=folder / "out", page=folder / "page")
    collected = subspaces.main(settings)
    return Finished(settings, collected, (settings.page / "subspaces.md").read_text(encoding="utf-8"))


def test_there_is_a_cell_for_every_training_and_descent(finished: Finished) -> None:
    found = subspaces.cells(finished.settings)
    assert len(found) == 2 * len(METHODS) * 2 + 2
    assert len({cell.path for cell in found}) == len(found)
    assert [cell.path.parent.name for cell in found][:: len(METHODS) * 2] == ["width_12", "width_8", "descent"]
    assert all(cell.finished() for cell in found)
    left = sorted(path.name for path in finished.settings.out.rglob("*") if path.is_dir())
    assert left == ["descent", "width_12", "width_8"]  # no checkpoints


def test_a_killed_study_goes_on_where_it_was(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    found = subspaces.cells(finished.settings)
    lost, kept = found[-1], found[:-1]
    expected, times = store.read(lost.path), {cell.path: cell.path.stat().st_mtime_ns for cell in kept}
    lost.path.unlink()
    computed: list[Path] = []
    compute = subspaces._finish
    monkeypatch.setattr(subspaces, "_finish", lambda cell: computed.append(cell.path) or compute(cell))
    subspaces.run(subspaces.cells(finished.settings), workers=1)
    assert computed == [lost.path]
    assert times == {cell.path: cell.path.stat().st_mtime_ns for cell in kept}
    assert store.read(lost.path).to_dataset().equals(expected.to_dataset())
    other = dataclasses.replace(finished.settings, guesses=128)
    stale = [cell for cell in subspaces.cells(other) if not cell.finished()]
    assert {cell.path.parent.name for cell in stale} == {"width_8", "width_12"}


def test_processes_change_nothing(finished: Finished, tmp_path: Path) -> None:
    found = [cell for cell in subspaces.cells(finished.settings) if "orthogonal_seed_1" in cell.path.name]
    moved = [dataclasses.replace(cell, path=tmp_path / f"{index}.nc") for index, cell in enumerate(found)]
    subspaces.run(moved, workers=2)
    for cell, again in zip(found, moved, strict=True):
        one, two = store.read(cell.path), store.read(again.path)
        for node in one.children:
            xr.testing.assert_allclose(one[node].to_dataset(), two[node].to_dataset(), rtol=1e-4, atol=1e-7)


def test_the_collected_dataset_names_everything(finished: Finished) -> None:
    collected = store.read(finished.settings.page / "subspaces.nc").to_dataset()
    assert collected.sizes["width"] == 2 and list(collected["trained_by"].values) == list(METHODS)
    for name, array in collected.data_vars.items():
        assert array.attrs.get("units") and array.attrs.get("long_name"), name
    assert set(NOTES) <= set(collected.data_vars)
    start = collected.sel(trained_by="initialisation")
    xr.testing.assert_equal(
        start["overlap"].sel(moment="common", drop=True), start["overlap"].sel(moment="last", drop=True)
    )


def test_sampled_efficiencies_are_the_predicted_ones(finished: Finished) -> None:
    """Some 800 comparisons: one beyond 4.5 comes by chance in two hundred runs, and the seeds are fixed."""
    for quantity in ("efficiency", "variance", "squared_bias"):
        z = finished.collected["z"].sel(quantity=quantity).values
        z = z[np.isfinite(z)]
        assert len(z) > 50
        assert np.abs(z).max() < 4.5, quantity


def test_a_snapshot_is_counted_once(finished: Finished) -> None:
    """A network at initialisation, or trained for the common step alone, has its comparisons at one moment only."""
    known = np.isfinite(finished.collected["z"]).any(["seed", "space", "layer", "k", "quantity"])
    expected = [[False, True, True, True], [False, False, False, False]]
    np.testing.assert_array_equal(known.sel(moment="common").transpose("width", "trained_by"), expected)
    assert bool(known.sel(moment="last").all())


def test_the_nets_efficiency_is_kept_energy_over_directions(finished: Finished) -> None:
    """What answer (c) says of it, where all examples have k directions."""
    own = finished.collected.sel(layer="all", space="activation", trained_by="initialisation", width=12)
    directions = 3 * 3 + 10
    np.testing.assert_allclose(own["orthogonal_efficiency"], own["kept_energy"] / (directions + 2), rtol=1e-2)


def test_cross_layer_noise_makes_a_layers_efficiency(finished: Finished) -> None:
    own = finished.collected.sel(layer="2", space="activation", trained_by="initialisation", width=12)
    expected = own["kept_energy"] / (3 * own["cross_layer"] + 2)
    np.testing.assert_allclose(own["orthogonal_efficiency"], expected, rtol=1e-6)


def test_a_damaged_cell_is_not_finished_and_set_aside(finished: Finished, tmp_path: Path) -> None:
    cell = subspaces.cells(finished.settings)[-1]
    copy = dataclasses.replace(cell, path=tmp_path / "cell.nc")
    copy.path.write_bytes(cell.path.read_bytes())
    assert copy.finished()
    damage(copy.path)
    assert not copy.finished()
    assert [path.name for path in tmp_path.iterdir()] == ["cell.nc.damaged"]


def test_the_page_follows_from_the_kept_dataset_alone(finished: Finished, tmp_path: Path) -> None:
    kept = store.read(finished.settings.page / "subspaces.nc").to_dataset()
    assert answers(kept) == finished.text
    again = store.write(kept, tmp_path / "again.nc")
    assert answers(store.read(again).to_dataset()) == finished.text
    for name in ("branch", "trained_by", "layer", "matrix", "quantity"):
        np.testing.assert_array_equal(kept[name], finished.collected[name])


def test_the_page_says_how_long_a_whole_run_took(finished: Finished) -> None:
    """Collecting again keeps what the whole run took; a run that was resumed has no such number."""
    settings = finished.settings
    run = json.loads(finished.collected.attrs["whole_run"])
    assert run["minutes"] > 0 and run["workers"] == 1 and run["cores"] >= 1
    assert f"The study took {run['minutes']:.1f} minutes with 1 processes on {run['cores']} cores." in finished.text
    again = subspaces.main(settings)
    assert again.attrs["whole_run"] == finished.collected.attrs["whole_run"]
    subspaces.cells(settings)[-1].path.unlink()
    resumed = subspaces.main(settings)
    assert "whole_run" not in resumed.attrs
    page = (settings.page / "subspaces.md").read_text(encoding="utf-8")
    assert "was resumed" in page and page == answers(resumed)
    for folder in (settings.out, settings.page):
        store.write(finished.collected, folder / "subspaces.nc")


def test_a_cell_that_keeps_less_is_computed_again(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subspaces, "VERSION", VERSION + 1)
    stale = {cell.path.parent.name for cell in subspaces.cells(finished.settings) if not cell.finished()}
    assert stale == {"width_8", "width_12"}


def test_z_takes_the_bound_on_the_side_of_the_prediction(finished: Finished) -> None:
    tree = store.read(finished.settings.out / "width_8" / "backpropagation_seed_0.nc")
    measured, spaces = tree["measured"].to_dataset(), tree["subspace"].to_dataset()
    wider = measured.copy()
    for name in ("efficiency", "variance"):
        wider[name + "_low"] = 2 * measured[name + "_low"] - measured[name]
    before, after = (_sampled(one, spaces)["z"] for one in (measured, wider))
    for name in ("efficiency", "variance"):
        z, changed = before.sel(quantity=name), after.sel(quantity=name)
        np.testing.assert_allclose(changed.where(z > 0), z.where(z > 0) / 2, rtol=1e-9)
        np.testing.assert_allclose(changed.where(z <= 0), z.where(z <= 0), rtol=1e-9)
        assert bool((z > 0).any()) and bool((z < 0).any())


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


def test_random_values_have_their_spread(finished: Finished) -> None:
    start = finished.collected.sel(trained_by="initialisation", moment="last", layer="0", width=12, seed=0)
    np.testing.assert_allclose(start["random_overlap_spread"], subspace.random_overlap(3, 12).spread)
    share = float(start["random_overlap_in_range"])
    variance = stats.beta(3 / 2, (3 / share - 3) / 2).var()
    np.testing.assert_allclose(start["random_overlap_in_range_spread"], variance**0.5)
    assert f"{float(start['random_overlap']):.3g} (spread {float(start['random_overlap_spread']):.2g})" in finished.text


def test_the_mean_guess_of_the_weights() -> None:
    snapshot = tiny_snapshot((3, 5, 4, 2), n_examples=6)
    found = beside(snapshot, 2)
    inner, square, whole, alone = (np.zeros(4) for _ in range(4))
    for layer, (tap, gradient) in enumerate(zip(snapshot.taps, snapshot.gradients, strict=True)):
        parts = []
        for example, (g, x) in enumerate(zip(gradient.numpy(), tap.inputs.numpy(), strict=True)):
            if layer < 2:
                right = np.linalg.svd(snapshot.upstream[layer].dense()[example].numpy())[2][:2].T
                g = right @ (right.T @ g)
            parts.append(np.outer(g, x))
        guess, truth = np.sum(parts, axis=0), snapshot.weight_gradients[layer].numpy()
        for own, value in zip(
            (inner, square, whole, alone),
            (np.sum(guess * truth), np.sum(guess**2), np.sum(truth**2), np.sum(np.square(parts))),
            strict=True,
        ):
            own[layer] = value
            own[3] += value
    used = [0, 1, 2, 3]
    np.testing.assert_allclose(found["weight_overlap"], (inner**2 / (square * whole))[used], rtol=1e-6)
    np.testing.assert_allclose(found["agreement"], (square / alone)[used], rtol=1e-6)


def test_overlap_agreement_and_noise_make_the_efficiency_of_the_weights(finished: Finished) -> None:
    """c²·A/(1 + A + N): with the own squares s = ‖Ḡ‖²/A, N + 1 = variance/s."""
    tree = store.read(finished.settings.out / "width_12" / "initialisation_seed_0.nc")
    spaces = tree["subspace"].to_dataset().sel(space="weight", mode=3).isel(step=0)
    beside = tree["beside"].to_dataset().isel(step=0)
    gradient = (tree["subspace"].to_dataset()["singular_value"].isel(step=0).sel(matrix="weight_gradient") ** 2).sum(
        "mode"
    )
    for layer in ("0", "2"):
        overlap, agreement = (float(beside[name].sel(layer=layer)) for name in ("weight_overlap", "agreement"))
        own, whole = spaces.sel(layer=layer), float(gradient.sel(layer=layer))
        # ‖Ḡ − G‖² = ‖Ḡ‖² − 2 c ‖Ḡ‖ ‖G‖ + ‖G‖², and the mean guess is no longer than its projection on G allows.
        roots = np.roots([1, -2 * (overlap * whole) ** 0.5, whole - float(own["orthogonal_bias"]) ** 2])
        expected = [
            overlap * agreement / (agreement + agreement * float(own["orthogonal_variance"]) / root.real**2)
            for root in roots
        ]
        assert min(abs(np.array(expected) / float(own["orthogonal_efficiency"]) - 1)) < 1e-3


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
    training = store.read(Path(__file__).parents[2] / "docs" / "results" / "wang2025.nc")["training"].to_dataset()
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


def test_figures_are_written_and_named_on_the_page(finished: Finished) -> None:
    written = sorted(path.name for path in finished.settings.page.glob("*.png"))
    assert written == sorted(set(re.findall(r"\]\((subspaces_\w+\.png)\)", finished.text)))
    assert len(written) == 6
    assert all((finished.settings.page / name).stat().st_size > 10_000 for name in written)


def test_parts_of_the_gradient(finished: Finished) -> None:
    share = finished.collected["descent_share"]
    for whole in ("whole", "hidden"):
        np.testing.assert_allclose(share.sel(branch=whole), 1)
        np.testing.assert_allclose(progress_of(finished.collected["descent_loss"])[BRANCHES.index(whole)], 1)
    # The Hessian's parts add up to the gradient, each along its own path; the Jacobians' overlap at the weights.
    np.testing.assert_allclose(share.sel(branch="dominant") + share.sel(branch="bulk"), 1, atol=0.02)
    assert bool((share.sel(branch=list(JACOBIAN_BRANCHES)) > 0).all())


def test_all_directions_of_the_row_spaces_hold_the_whole_gradient() -> None:
    snapshot = tiny_snapshot((3, 5, 4, 2), n_examples=6)
    for generator in (None, torch.Generator().manual_seed(0)):
        for found, whole in zip(projected_gradients(snapshot, 4, generator), snapshot.weight_gradients, strict=False):
            np.testing.assert_allclose(found, whole, atol=1e-12)


def test_angles_between_steps() -> None:
    snapshots = [tiny_snapshot((3, 5, 4, 2), n_examples=6, seed=seed) for seed in (0, 1)]
    stacked = snapshots[0].upstream[0].dense().flatten(0, 1)
    between = subspace.principal_angles(leading_of_all(snapshots[0], 0, 2), subspace.modes(stacked).leading(2))
    np.testing.assert_allclose(between, 0, atol=1e-7)
    snapshots[1] = dataclasses.replace(snapshots[1], step=3)
    found = turning(snapshots, 2)
    angle = found["angle"].values
    np.testing.assert_allclose(angle.diagonal(0, 2, 3), 0, atol=1e-5)
    np.testing.assert_allclose(angle, angle.swapaxes(2, 3), atol=1e-5)
    assert float(found["stacked_rank"].min()) >= float(found["single_rank"].min())
    np.testing.assert_allclose(found["random_alignment"], [2 / 5, 2 / 4])
    expected = [subspace.random_alignment(2, 2, units).spread for units in (5, 4)]
    np.testing.assert_allclose(found["random_alignment_spread"], expected)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": (1,)}, "epochs must be one number a width, got 1 for 2 widths"),
        ({"seeds": (0,)}, "seeds must be at least 2, as intervals are over them, got 1"),
        ({"sampled_width": 4}, "sampled_width must be at least the first width, 8"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_help_says_what_every_setting_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(Settings, description=subspaces.__doc__, args=["--help"])
    text = capsys.readouterr().out
    for name in vars(Settings()):
        assert f"--{name.replace('_', '-')}" in text
