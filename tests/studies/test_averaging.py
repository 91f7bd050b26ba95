"""The study of averaged guesses, run whole on small networks, and the stream of means that it measures."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from fganalysis.estimators import (
    ESTIMATORS,
    ActivityPerturbation,
    Averaged,
    Backpropagation,
    DirectFeedback,
    Estimator,
    FeedbackAlignment,
    LocalLoss,
    WeightPerturbation,
)
from studies.averaging import __main__ as averaging
from studies.averaging import figures
from studies.averaging.cells import cell
from studies.averaging.kinds import FAMILIES, GUESSES, family_of, switches
from studies.averaging.page import _count
from studies.averaging.streams import means_of_guesses
from tests import laws
from tests.unit.results.damaged import damage

TINY = {
    "widths": (8, 12),
    "epochs": 1,
    "seeds": (0, 1),
    "guess_kinds": ("activity, a pass a layer", "upstream", "weight"),
    "guesses": 1024,
    "batch": 8,
}


STILL = ("feedback alignment", "direct feedback", "local loss", "backpropagation")


def run(folder: Path, **changes: object) -> xr.Dataset:
    settings = averaging.Settings(**(TINY | changes), out=folder / "out", page=folder / "page")
    return averaging.main(settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, xr.Dataset]:
    """The study run once, without its figures, which take as long: its folder and its Dataset."""
    folder = tmp_path_factory.mktemp("averaging")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(figures, "figures", lambda dataset: {})
        return folder, run(folder)


def test_measured_meets_predicted_and_a_second_run_computes_nothing(
    finished: tuple[Path, xr.Dataset], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "figures", lambda dataset: {})
    folder, dataset = finished
    assert all(array.attrs["units"] and array.attrs["long_name"] for array in dataset.values())
    assert dataset["averaged"].values.tolist() == [1, 4, 16, 64, 256]
    own = dataset.sel(layer="all", space="weight", averaged=[1, 4, 16])
    z = (own["relative_error"] - own["relative_error_predicted"]) / own["relative_error_se"]
    # 72 comparisons, groups of 64 and more; without the averaging the predictions would be off by m.
    assert float(abs(z).max()) < 5
    # An unbiased guess gets everywhere, a biased one no further than its ceiling.
    needed = dataset["needed_predicted"].sel(layer="all", space="weight")
    assert np.isfinite(needed.sel(guess_kind="weight")).all()
    ceiling = np.sqrt(dataset["squared_ceiling_predicted"].sel(layer="all", space="weight", guess_kind="upstream"))
    for target in needed["target"].values:
        never = np.isinf(needed.sel(target=target, guess_kind="upstream"))
        assert (never == (ceiling <= target)).all()
    cells = sorted((folder / "out").rglob("width_*/**/*.nc"))
    assert len(cells) == 24 + 4  # 3 estimators on 2 networks at 2 moments, from 2 seeds; and the trainings.
    written = [cell.stat().st_mtime_ns for cell in cells]
    assert run(folder).identical(dataset)
    assert [cell.stat().st_mtime_ns for cell in cells] == written
    assert (folder / "page" / "averaging.md").read_text(encoding="utf-8") in capsys.readouterr().out


def test_the_guesses_are_estimators_of_the_table_and_each_has_one_family() -> None:
    assert {type(guess) for guess in GUESSES.values()} <= set(ESTIMATORS.values())
    assert len(GUESSES) == sum(len(members) for members in FAMILIES.values())


def test_every_kind_of_guess_has_its_rows_on_the_page(tmp_path: Path) -> None:
    dataset = run(tmp_path, guess_kinds=tuple(GUESSES), widths=(16,), guesses=256, batch=32)
    page = (tmp_path / "page" / "averaging.md").read_text(encoding="utf-8")
    for figure in ("error", "cosine"):
        assert (tmp_path / "page" / f"averaging_{figure}.png").stat().st_size > 5000
    own = dataset.sel(layer="all", space="weight")
    for name in GUESSES:
        kind = own.sel(guess_kind=name)
        # Kinds, counts, changes, weight space at two steps; agreement if drawn, activation space if made there.
        rows = [row for row in page.splitlines() if row.startswith(f"| {name} |")]
        in_activations = bool(dataset["relative_error"].sel(guess_kind=name, space="activation").notnull().all())
        assert len(rows) == 5 + (name not in STILL) + 2 * in_activations
        assert f"| {name} | {family_of(name)} | {' | '.join(switches(GUESSES[name]))} |" in page
        assert page.count(f"- {name}: ") == 1
        assert (kind["relative_error_se"].values == 0).all() == (name in STILL)
        known = bool(kind["relative_error_predicted"].notnull().all())
        assert known == (name != "finite difference")
        assert all(("| –" in row.replace("\\", "")) != known for row in rows[-4 if in_activations else -2 :])
    z = (own["relative_error"] - own["relative_error_predicted"]) / own["relative_error_se"].where(lambda se: se > 0)
    # Some 140 comparisons, of 16 groups and more.
    assert float(abs(z.sel(averaged=[1, 4, 16])).max()) < 5


@pytest.mark.parametrize("estimator", [FeedbackAlignment(), DirectFeedback(), LocalLoss(), Backpropagation()])
def test_guesses_that_are_all_alike_are_measured_once_and_exactly(estimator: Estimator) -> None:
    calls = []

    def counted(snapshot: object, n_guesses: int, generator: torch.Generator) -> object:
        calls.append(n_guesses)
        return estimator(snapshot, n_guesses, generator)

    snapshot = laws.tiny_snapshot()
    cell(snapshot, counted, 8192, seed=0)
    assert calls == [1]
    found = cell(snapshot, estimator, 8192, seed=0)
    for name in ("relative_error", "cosine"):
        assert (found[name] == found[name].isel(averaged=0)).all() and (found[f"{name}_se"] == 0).all()
    assert (found["relative_variance"] == 0).all() and (found["squared_ceiling_se"] == 0).all()
    for name in ("squared_ceiling", "relative_squared_bias", "relative_squared_mean"):
        np.testing.assert_allclose(found[name], found[f"{name}_predicted"], rtol=1e-9, atol=1e-12)
    exact = isinstance(estimator, Backpropagation)
    assert ((found["relative_error"] == 0).all() and (found["cosine"] == 1).all()) == exact


def test_matrices_that_are_drawn_once_are_those_of_the_seed() -> None:
    snapshot = laws.tiny_snapshot()
    errors = [cell(snapshot, FeedbackAlignment(), 64, seed)["relative_error"].values for seed in (0, 0, 1)]
    np.testing.assert_array_equal(errors[0], errors[1])
    assert not np.allclose(errors[0][:, 0], errors[2][:, 0])


def test_a_mean_that_points_away_never_gets_anywhere() -> None:
    dims = ("space", "layer", "averaged")
    ones = {"space": ["weight"], "layer": ["all"], "averaged": [1, 4]}
    moments = {"squared_ceiling": -0.81, "relative_variance": 0.0, "relative_squared_mean": 1.0}
    moments |= {f"{name}_predicted": value for name, value in moments.items()} | {
        "relative_squared_bias_predicted": 2.8
    }
    variables = {name: (dims[:2], [[value]]) for name, value in moments.items()}
    found = averaging._with_needed(xr.Dataset(variables | {"cosine": (dims, [[[-0.9, -0.9]]])}, coords=ones), (0.5,))
    assert np.isinf(found["needed"]).all() and np.isinf(found["needed_predicted"]).all()
    np.testing.assert_allclose(found["cosine_predicted"], -0.9)


def test_what_is_needed_is_between_the_sizes_that_were_measured(
    finished: tuple[Path, xr.Dataset],
) -> None:
    """Where the curve reaches a cosine, the next size below does not and the next above does."""
    dataset = finished[1].sel(layer="all", space="weight")
    for name in TINY["guess_kinds"]:
        own = dataset.sel(guess_kind=name)
        for index in np.ndindex(2, 2, 2):
            one = own.isel(dict(zip(("width", "trained", "seed"), index, strict=True)))
            for target in dataset["target"].values:
                reached = one["averaged"].where(one["cosine"] >= target)
                needed = float(one["needed"].sel(target=target))
                if bool(one["extrapolated"].sel(target=target)) or np.isnan(needed):
                    assert reached.isnull().all()
                elif np.isfinite(needed):
                    first = float(reached.min())
                    assert max(1.0, first / 4) <= needed <= first


@pytest.mark.parametrize("estimator", [ActivityPerturbation(), WeightPerturbation()])
def test_a_stream_of_means_is_the_means_of_its_guesses(estimator: Estimator) -> None:
    snapshot = laws.tiny_snapshot()
    stream: dict[int, list[torch.Tensor]] = {}
    for n_averaged, block in means_of_guesses(estimator, snapshot, 128, torch.Generator().manual_seed(0)):
        stream.setdefault(n_averaged, []).append(block.dense(snapshot)[1])
    guesses = torch.cat(stream[1])
    assert {m: sum(map(len, parts)) for m, parts in stream.items()} == {1: 128, 4: 32, 16: 8, 64: 2}
    for m, parts in stream.items():
        torch.testing.assert_close(torch.cat(parts), guesses.unflatten(0, (-1, m)).mean(1))
    # And the estimator that averages, from the same noise.
    first = Averaged(estimator, 16)(snapshot, 1, torch.Generator().manual_seed(0)).dense(snapshot)[1]
    torch.testing.assert_close(torch.cat(stream[16])[:1], first)


def test_a_stream_refuses_a_broken_block() -> None:
    with pytest.raises(ValueError, match="n_guesses must be a multiple of 16, got 24"):
        next(means_of_guesses(WeightPerturbation(), laws.tiny_snapshot(), 24, torch.Generator()))


@pytest.mark.parametrize(
    ("target", "expected"),
    [(0.05, 1.0), (0.1, 1.0), (0.3, 10.0), (0.55, np.nan)],
)
def test_crossings_of_a_curve_of_known_law(target: float, expected: float) -> None:
    """cos² = 1/(1 + 99/m)/… with the ceiling 1: m = 99/(1/target² − 1), rounded up; beyond m = 16 unknown."""
    sizes = np.array([1, 4, 16])
    cosines = 1 / np.sqrt(1 + 99 / sizes)
    np.testing.assert_equal(averaging._crossing(cosines, sizes, target), expected)


def test_counts_say_never_and_unclear() -> None:
    assert _count(np.array([np.inf, np.inf]), "") == "never"
    assert _count(np.array([np.nan, np.nan]), "") == "unclear"
    assert _count(np.array([100.0, np.inf]), "*") == "100*; never in 1 of 2 seeds"
    assert _count(np.array([5.0, np.nan]), "") == "5; unclear in 1 of 2 seeds"
    assert _count(np.array([12_345.0, 12_345.0]), "") == "12 300"
    assert _count(np.array([100.0, 200.0]), "").startswith("141 (")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"guess_kinds": ("guesswork",)},
            "guess_kinds has the unknown name 'guesswork'; known ones: weight, ",
        ),
        ({"seeds": (0,)}, "seeds must be at least 2"),
        ({"guesses": 100}, "guesses must be a multiple of 16 and at least 64, got 100"),
        ({"cosines": (1.0,)}, "cosines must be between 0 and 1"),
    ],
)
def test_bad_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        averaging.Settings(**change)


def test_a_damaged_training_is_set_aside_and_what_was_measured_is_kept(
    finished: tuple[Path, xr.Dataset], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "figures", lambda dataset: {})
    folder, dataset = finished
    training = folder / "out" / "width_8" / "seed_1" / "training.nc"
    damage(training)
    assert run(folder).identical(dataset)
    shown = capsys.readouterr().out
    assert "the file is now training.nc.damaged, and the cell is computed anew" in shown
    assert "3 of 4 cells are finished" in shown and "24 of 24 cells are finished" in shown
