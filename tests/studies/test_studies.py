"""The studies, run whole with tiny settings: what they write, what they print, that a second run computes nothing."""

import dataclasses
import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import tyro
import xarray as xr

import fganalysis as fga
from fganalysis.measuring import parts_of_blocks
from fganalysis.results.cells import run_cells
from studies.bias_variance import __main__ as bias_variance
from studies.facts import __main__ as facts
from studies.facts import cells as facts_cells
from studies.ren_variance import __main__ as ren_variance
from studies.throughput import __main__ as throughput
from studies.throughput import scaling
from studies.throughput.cells import CONTENDERS
from tests.unit.results.damaged import damage

LOSS = torch.nn.functional.cross_entropy
TINY = bias_variance.Settings(
    widths=(16,), epochs=1, guesses=256, batch=16, dataset="digits", estimators=("activity", "upstream"), steps=(0, 3)
)


def test_bias_variance_writes_results_and_figures_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = bias_variance.Settings(**(vars(TINY) | {"out": tmp_path}))
    bias_variance.main(settings)
    folder = tmp_path / "width_16" / "seed_0"
    cells = sorted((folder / "cells").rglob("*.nc"))
    names = [str(path.relative_to(folder / "cells").with_suffix("")) for path in cells]
    kinds = ("activity", "subspaces", "upstream")
    assert names == [f"step_{step:06d}/{kind}" for step in (0, 3) for kind in kinds] + ["training"]
    for name in ("overview", "bias_variance_weight", "cosine_activation"):
        assert (folder / f"{name}.png").stat().st_size > 5000
    tree = fga.open_results(folder / "bias_variance.nc")
    assert tree["measured"]["estimator"].to_numpy().tolist() == ["activity", "upstream"]
    assert tree["measured"]["step"].to_numpy().tolist() == tree["subspace"]["step"].to_numpy().tolist() == [0, 3]
    table = fga.agreement(tree)
    # Some 400 comparisons: one beyond 4.5 comes by chance in a thousandth of runs, and the seed is fixed.
    assert (table["largest |z|"] < 4.5).all()
    shown = capsys.readouterr().out
    assert "by chance" in shown
    times = [path.stat().st_mtime_ns for path in cells]
    monkeypatch.setattr(bias_variance, "figures", Mock())  # The figures, drawn by now, take most of the time.
    bias_variance.main(settings)
    assert [path.stat().st_mtime_ns for path in cells] == times
    again = capsys.readouterr().out
    assert "1 of 1 cells are finished" in again and "6 of 6 cells are finished" in again
    # Accuracy, table and agreement are those of the first run, from what was kept.
    text = (folder / "bias_variance.md").read_text(encoding="utf-8")
    assert text in again and text in shown
    assert re.search(r"`(activity|upstream)` at step 0 \([\d.e-]+\) and `(activity|upstream)` at step 3 \(", text)
    for figure in re.findall(r"\]\((\w+\.png)\)", text):
        assert (folder / figure).exists()
    damage(cells[3])
    bias_variance.main(settings)
    kept = [path for path in cells if path != cells[3]]
    assert [path.stat().st_mtime_ns for path in kept] == [*times[:3], *times[4:]]
    shown = capsys.readouterr().out
    assert "5 of 6 cells are finished" in shown
    assert f"{cells[3]} is damaged: " in shown and "the file is now activity.nc.damaged, and" in shown
    assert cells[3].with_name("activity.nc.damaged").exists()
    assert fga.open_results(folder / "bias_variance.nc").equals(tree)


def test_more_guesses_continue_from_kept_sums(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bias_variance, "figures", Mock())
    wanted = vars(TINY) | {"steps": (0,), "estimators": ("activity",)}
    drawn, original = [], parts_of_blocks.guesses_of

    def counted(estimator, snapshot, n_guesses, generator):  # type: ignore[no-untyped-def]
        if isinstance(estimator, fga.estimators.ActivityPerturbation):
            drawn.append(n_guesses)
        return original(estimator, snapshot, n_guesses, generator)

    monkeypatch.setattr(parts_of_blocks, "guesses_of", counted)

    def run(name: str, guesses: int, keep_sums: bool) -> int:
        """The number of blocks that were drawn."""
        drawn.clear()
        changed = {"out": tmp_path / name, "guesses": guesses, "keep_sums": keep_sums}
        bias_variance.main(bias_variance.Settings(**(wanted | changed)))
        return drawn.count(16)

    assert run("extended", 1024, True) == 64
    capsys.readouterr()
    assert run("extended", 2048, True) == 64
    assert "guesses 1024 instead of 2048" in capsys.readouterr().out
    assert run("at once", 2048, False) == 128
    name = "width_16/seed_0/bias_variance.nc"
    extended, at_once = (fga.open_results(tmp_path / folder / name) for folder in ("extended", "at once"))
    assert extended["measured"].to_dataset().identical(at_once["measured"].to_dataset())


def test_an_estimator_that_cannot_be_measured_is_nan_with_its_reason(tmp_path: Path) -> None:
    """A layer of four units has no ten directions: the guess refuses, and the others are measured."""
    settings = bias_variance.Settings(**(vars(TINY) | {"out": tmp_path, "widths": (4,), "steps": (0,)}))
    data = fga.datasets.load("digits")
    networks = run_cells(bias_variance.trainings(settings, data), tmp_path)
    chosen = dataclasses.replace(settings, estimators=("orthogonal", "activity"))
    results = run_cells(bias_variance.cells(chosen, data, networks), tmp_path)
    parts = [results[name] for name in results]
    tree = bias_variance.joined([parts])
    efficiency = tree["measured"]["efficiency"].isel(step=0).sel(space="weight", layer="all")
    assert np.isnan(efficiency.sel(estimator="orthogonal")) and np.isfinite(efficiency.sel(estimator="activity"))
    assert "orthogonal" in tree["measured"].attrs["not_measured"]
    snapshot = fga.capture(fga.networks.mlp([64, 4, 4, 4, 10], bias=False, seed=0), LOSS, *data.batch(16))
    whole = fga.diagnose(snapshot, ["orthogonal", "activity"], 256, 0, subspace=True)
    for node in whole.children:
        xr.testing.assert_equal(tree[node].to_dataset(), whole[node].to_dataset())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimators": ("guesswork",)}, "unknown estimator 'guesswork'"),
        ({"guesses": 1}, "guesses must be a whole number of at least 2, got 1"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_computed(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bias_variance.Settings(**(vars(TINY) | change))


@pytest.mark.parametrize(("n_gpus", "words"), [(0, "torch finds no GPU here"), (2, "torch finds 2 here, from cuda:0")])
def test_a_missing_gpu_is_said_in_one_sentence(n_gpus: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    for device in ["cuda:2", *([] if n_gpus else ["cuda"])]:
        with pytest.raises(ValueError, match=f"^device is {device}, but {words}: use --device auto$"):
            bias_variance.Settings(**(vars(TINY) | {"device": device}))


@pytest.mark.parametrize("n_gpus", [0, 2])
def test_a_study_names_the_device_that_auto_means(n_gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    for device in ["auto", "cpu", *(["cuda", "cuda:1"] if n_gpus else [])]:
        settings = bias_variance.Settings(**(vars(TINY) | {"device": device}))
        assert settings.device == (device if device != "auto" else "cuda" if n_gpus else "cpu")


def test_ren_formulas_hold(tmp_path: Path) -> None:
    dataset = ren_variance.main(
        ren_variance.Settings(batch_sizes=(1, 16), fans=(1, 4), draws=2000, population=256, out=tmp_path)
    )
    assert (tmp_path / "ren_variance.png").exists() and (tmp_path / "ren_variance.nc").exists()
    assert abs(dataset["z"]).max() < 4.5
    # The control: the four formulas differ by more than the intervals at a batch of 16.
    wrong = dataset["predicted"].sel(guess_kind="weights shared", drop=True)
    measured = dataset.sel(guess_kind="activities independent").isel(point=1)
    assert abs(measured["variance"] - wrong.isel(point=1)) > 4.5 * measured["variance_se"]


def test_throughput_compares_every_contender(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = throughput.main(
        throughput.Settings(
            widths=(16,), batch=8, rounds=2, seconds=0.02, svd_width=32, blocks=4, out=tmp_path, page=tmp_path / "page"
        )
    )
    assert set(dataset["contender"].values) == set(CONTENDERS)
    assert (dataset["seconds_per_guess"] > 0).all()
    shown = capsys.readouterr().out
    assert "by the range finder" in shown
    assert (tmp_path / "page" / "throughput.md").read_text(encoding="utf-8") in shown
    assert (tmp_path / "page" / "throughput_ratio.png").stat().st_size > 5000
    # What the page says of it is the sampler's time over that of drawing, round by round.
    own = dataset["seconds_per_guess"].isel(width=0).sel(estimator="weight")
    ratio = (own.sel(contender="sample") / own.sel(contender="draw")).median()
    assert f"| {float(ratio):.2f} |" in shown


@pytest.mark.parametrize("network", ["resnet", "gpt"])
def test_throughput_compares_a_guess_with_a_step(
    network: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = throughput.main(throughput.Settings(network, rounds=2, blocks=4, small=True, out=tmp_path))
    shown = capsys.readouterr().out
    assert (tmp_path / f"throughput_{network}.md").read_text(encoding="utf-8") in shown
    assert (tmp_path / f"throughput_{network}_steps.png").stat().st_size > 5000
    assert (dataset[["step_seconds", "capture_seconds"]] > 0).all().to_array().all()
    captures = (dataset["capture_seconds"] / dataset["step_seconds"].sel(compared="capture")).median()
    assert f"| {float(captures):.2f} |" in shown
    # A run twice as long takes what is done once, and twice the time of its guesses.
    assert set(dataset["timed"].values) == {"activity", "upstream", "weight"}


def test_throughput_times_guesses_drawn_by_their_law(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = throughput.main(
        throughput.Settings(by_law=True, weights=(10**4, 10**8), guesses=4000, rounds=2, out=tmp_path)
    )
    shown = capsys.readouterr().out
    assert (tmp_path / "throughput_by_law.md").read_text(encoding="utf-8") in shown
    assert (tmp_path / "throughput_by_law_times.png").stat().st_size > 5000
    assert (dataset.to_array() > 0).all()
    assert "10⁴ weights | 10⁸ weights" in shown
    microseconds = 1e6 * float(dataset["by_law_seconds"].sel(estimator="weight", weights=10**8).median())
    assert f"takes {microseconds:.2f} µs of one processor on 10⁸ weights" in shown


def test_throughput_times_a_monitor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = throughput.main(throughput.Settings(monitor=True, small=True, rounds=1, device="cpu", out=tmp_path))
    shown = capsys.readouterr().out
    assert (tmp_path / "throughput_monitor.md").read_text(encoding="utf-8") in shown
    assert (dataset[["step_seconds", "measurement_seconds"]] > 0).all().to_array().all()
    in_steps = float((dataset["measurement_seconds"] / dataset["step_seconds"]).sel(network="gpt", watched="weight")[0])
    assert f"{in_steps:.1f} % of the training time on a GPT" in shown  # every 100 steps
    due = dataset["budget_made"] + dataset["budget_skipped"]
    assert (due == 2).all() and (dataset["budget_made"] >= 1).all()
    assert (dataset["budget_fewest_guesses"] >= 32).all() and (dataset["budget_most_guesses"] <= 64).all()


def test_facts_writes_its_parts_once_and_prints_every_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = facts.Settings(
        width=32,
        guesses=512,
        examples=4,
        seeds=2,
        table_guesses=64,
        batch=16,
        table_2_epochs=1,
        table_5_width=40,
        table_5_epochs=1,
        out=tmp_path,
    )
    facts.main(settings)
    parts = [tmp_path / f"{name}.nc" for name in ("same_law", "joint_pass", "table_2", "table_5")]
    written = [part.stat().st_mtime_ns for part in parts]
    figure = (tmp_path / "facts.png").read_bytes()
    shown = capsys.readouterr().out
    assert (tmp_path / "facts.md").read_text(encoding="utf-8") in shown
    for text in ("Facts 1 to 3", "Fact 4", "Table 2", "Table 5", "ours / printed"):
        assert text in shown
    for part in parts:
        with xr.open_dataset(part, engine="netcdf4") as plain:
            assert all(array.attrs["units"] and array.attrs["long_name"] for array in plain.values())
            compared = [name for name in ("relative_bias", "relative_variance", "ratio", "variance") if name in plain]
            for name in compared:
                z = (plain[name] - plain[f"{name}_predicted"]) / plain[f"{name}_se"]
                assert float(abs(z).max()) < 4.5, (part, name)
    facts.main(settings)
    assert [part.stat().st_mtime_ns for part in parts] == written
    assert (tmp_path / "facts.png").read_bytes() == figure
    assert capsys.readouterr().out[-1000:] == shown[-1000:]
    same_law = fga.open_results(parts[0])
    alive = same_law["relative_variance_predicted"].sel(guess_kind="activity, live units", layer=["0", "2"])
    ours = same_law["relative_variance_predicted"].sel(guess_kind="orthogonal, k = rank", layer=["0", "2"])
    np.testing.assert_allclose(ours, alive, rtol=1e-9)
    assert float(same_law["covariance_distance"].max()) < 1e-10


def test_fact_4_is_measured_on_the_seeds_that_it_names() -> None:
    sizes = {"width": 4, "examples": 4, "guesses": 64, "device": "cpu"}
    both = facts_cells.joint_pass(**sizes, seed=3, n_seeds=2)
    second = facts_cells.joint_pass(**sizes, seed=4, n_seeds=1)
    assert both["seed"].values.tolist() == [3, 4]
    xr.testing.assert_equal(both["ratio_predicted"].sel(seed=[4]), second["ratio_predicted"])


@pytest.mark.parametrize("part", ["same_law", "joint_pass"])
def test_facts_about_more_examples_than_there_are_is_refused(part: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a batch must be of at most the 4000 training examples, got 4001"):
        run_cells([cell for cell in facts.cells(facts.Settings(examples=4001)) if cell.name == part], tmp_path)


def test_a_change_of_settings_is_computed_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bias_variance, "figures", Mock())
    settings = vars(TINY) | {"out": tmp_path, "steps": (0,)}
    bias_variance.main(bias_variance.Settings(**settings))
    bias_variance.main(bias_variance.Settings(**(settings | {"guesses": 64})))
    shown = capsys.readouterr().out
    assert shown.count("was made with guesses 256 instead of 64; the file is now ") == 2
    tree = fga.open_results(tmp_path / "width_16" / "seed_0" / "bias_variance.nc")
    assert tree["measured"].sizes["guess"] == 64


@pytest.mark.parametrize("study", [bias_variance, facts, ren_variance, throughput])
def test_help_says_what_every_setting_means(study: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(study.Settings, description=study.__doc__, args=["--help"])
    text = capsys.readouterr().out
    for name in vars(study.Settings()):
        assert f"--{name.replace('_', '-')}" in text


def test_the_times_of_both_ways_to_directions_are_told_apart() -> None:
    """`method` is a dimension there and a keyword of `sel` as well."""
    import numpy as np
    import xarray as xr

    from studies.throughput import page

    seconds = xr.DataArray(np.array([[1.0, 2.0, 3.0], [40.0, 50.0, 60.0]]), dims=("method", "svd_round"))
    seconds = seconds.assign_coords(method=["range_finder", "lapack"])
    assert page.seconds_of(xr.Dataset({"directions_seconds": seconds}), "range_finder").values.tolist() == [1, 2, 3]
    assert page.seconds_of(xr.Dataset({"directions_seconds": seconds}), "lapack").values.tolist() == [40, 50, 60]


def test_scaling_is_timed_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "CELLS", 2)
    monkeypatch.setattr(scaling, "EMPTY", 10)
    monkeypatch.setattr(scaling, "WIDTH", 8)
    settings = throughput.Settings(
        scaling=True, rounds=1, scaling_seconds=0.1, scaling_workers=(1, 2), out=tmp_path / "out", page=tmp_path
    )
    dataset = throughput.main(settings)
    assert (dataset["study_seconds"] > 0).all() and dict(dataset.sizes) == {"workers": 2, "round": 1}
    text = (tmp_path / "throughput_scaling.md").read_text(encoding="utf-8")
    assert "With 2 workers a study is" in text and "{{" not in text
