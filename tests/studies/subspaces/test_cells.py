"""The cells of the study of subspaces: which there are, what they keep, and when they are computed again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tyro
import xarray as xr

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.results.cells import run_cells, same
from studies.subspaces import __main__ as subspaces
from studies.subspaces.__main__ import Settings
from studies.subspaces.cells import METHODS
from tests.studies.subspaces.tiny_study import TINY, Finished


def test_there_is_a_cell_for_every_training_and_descent(finished: Finished) -> None:
    found = subspaces.cells(finished.settings)
    assert len(found) == 2 * len(METHODS) * 2 + 2
    assert len({cell.name for cell in found}) == len(found)
    assert [cell.name.split("/")[0] for cell in found][:: len(METHODS) * 2] == ["width_12", "width_8", "descent"]
    assert all(cell.path(finished.settings.out).exists() for cell in found)
    left = sorted(path.name for path in finished.settings.out.rglob("*") if path.is_dir())
    assert left == ["descent", "width_12", "width_8"]  # no checkpoints


def test_a_killed_cell_goes_on_from_what_it_had_finished(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it looks at the last k, a cell neither trains again nor samples again what it has sampled."""
    cell = next(cell for cell in subspaces.cells(finished.settings) if cell.name == "width_8/orthogonal_seed_1")
    sample, sampled = fga.sample, []

    def dying(snapshot: Snapshot, guess: object, *arguments: object, **settings: object) -> xr.Dataset:
        sampled.append(guess)
        if len(sampled) == 4:
            raise KeyboardInterrupt
        return sample(snapshot, guess, *arguments, **settings)

    monkeypatch.setattr(fga, "sample", dying)
    with pytest.raises(KeyboardInterrupt):
        run_cells([cell], tmp_path)
    train, trained = fga.train, []
    monkeypatch.setattr(fga, "train", lambda *a, **s: trained.append(s["continue_from"]) or train(*a, **s))
    results = run_cells([cell], tmp_path)
    assert len(trained) == 1 and trained[0].name == "step_000016.safetensors"  # The last: nothing is trained again.
    assert len(sampled) == 7  # Three k at two steps, one of them twice.
    undisturbed = run_cells(subspaces.cells(finished.settings), finished.settings.out)
    assert undisturbed.computed == 0 and same(results[cell.name], undisturbed[cell.name])


def test_processes_change_nothing(finished: Finished, tmp_path: Path) -> None:
    found = [cell for cell in subspaces.cells(finished.settings) if "orthogonal_seed_1" in cell.name]
    again, before = run_cells(found, tmp_path, workers=2), run_cells(found, finished.settings.out)
    assert before.computed == 0 and all(same(again[name], before[name]) for name in again)


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
