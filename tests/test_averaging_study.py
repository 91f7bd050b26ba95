"""The study of averaged guesses, run whole on small networks, and the stream of means that it measures."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from fganalysis.estimators import ActivityPerturbation, Averaged, Estimator, WeightPerturbation
from studies import averaging
from studies.averaged_streams import means_of_guesses
from studies.averaging_page import _count
from tests import laws

TINY = {
    "widths": (8, 12),
    "epochs": 1,
    "seeds": (0, 1),
    "guess_kinds": ("activity, a pass a layer", "upstream", "weight"),
    "guesses": 1024,
    "batch": 8,
}


def run(folder: Path, **changes: int) -> xr.Dataset:
    settings = averaging.Settings(**(TINY | changes), out=folder / "out", page=folder / "page")
    return averaging.main(settings)


def test_measured_meets_predicted_and_a_second_run_computes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = run(tmp_path)
    page = (tmp_path / "page" / "averaging.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    for figure in ("error", "cosine"):
        assert (tmp_path / "page" / f"averaging_{figure}.png").stat().st_size > 5000
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
    cells = sorted((tmp_path / "out").rglob("width_*/**/*.nc"))
    assert len(cells) == 24
    written = [cell.stat().st_mtime_ns for cell in cells]
    assert run(tmp_path).identical(dataset)
    assert [cell.stat().st_mtime_ns for cell in cells] == written


def test_what_is_needed_is_between_the_sizes_that_were_measured(tmp_path: Path) -> None:
    """Where the curve reaches a cosine, the next size below does not and the next above does."""
    dataset = run(tmp_path).sel(layer="all", space="weight")
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
        ({"guess_kinds": ("guesswork",)}, "unknown guess 'guesswork'; known ones: weight; activity"),
        ({"seeds": (0,)}, "seeds must be at least 2"),
        ({"guesses": 100}, "guesses must be a multiple of 16 and at least 64, got 100"),
        ({"cosines": (1.0,)}, "cosines must be between 0 and 1"),
    ],
)
def test_bad_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        averaging.Settings(**change)
