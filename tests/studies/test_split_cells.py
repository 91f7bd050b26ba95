"""`studies.bias_variance --split`: the cells of a study whose guesses are drawn in parts are those drawn at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest

import fganalysis as fga
from fganalysis.measuring import parts_of_blocks
from fganalysis.results import store
from fganalysis.results.cells import Results, run_cells, unfinished
from fganalysis.results.identity import Cell, identity
from fganalysis.results.workers import Processes
from studies.bias_variance import __main__ as bias_variance
from studies.bias_variance.__main__ import Settings, cells, parts_of, trainings
from studies.bias_variance.cells import diagnosed

WANTED = {"widths": (4,), "epochs": 1, "guesses": 256, "batch": 16, "dataset": "digits", "steps": (0,)}
DATA = fga.datasets.load("digits")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("networks")
    return run_cells(trainings(settings(folder), DATA), folder)


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(out=folder, **{**WANTED, "estimators": ("activity",), **more})  # type: ignore[arg-type]


def split_cells(chosen: Settings, networks: Results) -> tuple[list[Cell], list[Cell]]:
    """The cells of the estimators that are not finished, and those of their parts."""
    wanted = [cell for cell in cells(chosen, DATA, networks) if cell.make is diagnosed]
    return wanted, parts_of(unfinished(wanted, chosen.out), chosen)


def test_parts_of_several_processes_are_the_whole_and_one_that_is_lost_is_computed_alone(
    networks: Results, tmp_path: Path
) -> None:
    (wanted,), parts = split_cells(settings(tmp_path, split=2), networks)
    assert run_cells(parts, tmp_path, runner=Processes(1)).computed == 2
    lost = parts[1].path(tmp_path)
    lost.write_bytes(lost.read_bytes()[:-100])
    assert run_cells(parts, tmp_path).computed == 1  # By another process than the other part.
    merged, at_once = (wanted.make(**wanted.settings, **(wanted.places | more)) for more in ({}, {"parts": None}))
    assert merged.identical(at_once)
    (alone,), none = split_cells(settings(tmp_path), networks)
    assert identity(alone) == identity(wanted) and not none


def test_what_cannot_be_measured_in_parts_is_left_to_the_whole(networks: Results, tmp_path: Path) -> None:
    """Of a layer of four units, "orthogonal" has no ten directions."""
    (wanted,), parts = split_cells(settings(tmp_path, split=2, estimators=("orthogonal",)), networks)
    for part in parts:
        content = part.make(**part.settings, **part.places)
        assert not content.variables and "k=10 is above the rank" in content.attrs["not_measured"]
        store.write(content, part.path(tmp_path))
    tree = wanted.make(**wanted.settings, **wanted.places)
    assert "orthogonal" in tree["measured"].attrs["not_measured"]


def test_the_study_merges_its_parts_and_removes_them(
    networks: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("figures", "pages", "bias_variance_page", "joined", "store", "fga.summary"):
        monkeypatch.setattr(f"studies.bias_variance.__main__.{name}", Mock())
    computed: list[Cell] = []

    def pretended(cells: list[Cell], folder: Path, **running: Any) -> Any:
        for cell in cells:
            cell.path(folder).parent.mkdir(parents=True, exist_ok=True)
            cell.path(folder).touch()
        computed.extend(cells)
        return networks if len(cells) == 1 else MagicMock()

    monkeypatch.setattr(bias_variance, "unfinished", lambda cells, folder: cells)
    monkeypatch.setattr(bias_variance, "run_cells", pretended)
    bias_variance.main(settings(tmp_path, split=2))
    parts = [f"activity.parts/part_{number}_of_2" for number in range(2)]
    assert [cell.name.partition("cells/")[2] for cell in computed] == [
        "training",
        *(f"step_000000/{name}" for name in [*parts, "activity", "subspaces"]),
    ]
    found = sorted(path.name for path in (tmp_path / "width_4" / "seed_0" / "cells" / "step_000000").iterdir())
    assert found == ["activity.nc", "subspaces.nc"]


def test_more_guesses_extend_the_parts(networks: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, original = [], parts_of_blocks.guesses_of

    def counted(*arguments: Any) -> Any:
        drawn.append(arguments[2])
        return original(*arguments)

    monkeypatch.setattr(parts_of_blocks, "guesses_of", counted)
    for guesses in (1024, 2048):
        drawn.clear()
        chosen = settings(tmp_path, guesses=guesses, estimators=("activity",), split=2, keep_sums=True)
        assert run_cells(split_cells(chosen, networks)[1], tmp_path).computed == 2
        assert drawn.count(16) == 64


def test_more_parts_than_groups_are_refused(networks: Results, tmp_path: Path) -> None:
    _, parts = split_cells(settings(tmp_path, split=17), networks)
    with pytest.raises(ValueError, match="n_parts must be at most the number of groups of these guesses, 16, got 17"):
        run_cells(parts, tmp_path)
