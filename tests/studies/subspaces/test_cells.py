"""The cells of the study of subspaces: which there are, what they keep, and when they are computed again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tyro
import xarray as xr

from fganalysis.results import store
from studies.subspaces import __main__ as subspaces
from studies.subspaces.__main__ import Settings
from studies.subspaces.cells import METHODS, VERSION
from tests.studies.subspaces.tiny_study import TINY, Finished
from tests.unit.results.damaged import damage


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


def test_a_damaged_cell_is_not_finished_and_set_aside(finished: Finished, tmp_path: Path) -> None:
    cell = subspaces.cells(finished.settings)[-1]
    copy = dataclasses.replace(cell, path=tmp_path / "cell.nc")
    copy.path.write_bytes(cell.path.read_bytes())
    assert copy.finished()
    damage(copy.path)
    assert not copy.finished()
    assert [path.name for path in tmp_path.iterdir()] == ["cell.nc.damaged"]


def test_a_cell_that_keeps_less_is_computed_again(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subspaces, "VERSION", VERSION + 1)
    stale = {cell.path.parent.name for cell in subspaces.cells(finished.settings) if not cell.finished()}
    assert stale == {"width_8", "width_12"}


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
