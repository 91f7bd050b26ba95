"""What a study's cells carry to another process: settings and paths, never weights or data."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fganalysis.results import cells as engine
from fganalysis.results.cells import Results
from fganalysis.results.identity import Cell, identity
from studies.kit import command_line
from tests.studies.test_command_line import FOLDER, STUDIES, settings_of

MOST_BYTES = 20 * 1024


@pytest.mark.parametrize("study", STUDIES)
def test_no_task_of_a_study_is_heavy(study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell that a study asks for, as if those that it reads were there."""
    found: list[Cell] = []

    def asked_for(cells: Sequence[Cell], folder: Path, **settings: object) -> Results:
        identities = {cell.name: identity(cell) for cell in cells}
        computing = engine._Study(Path(folder), identities)
        for cell in cells:
            assert len(pickle.dumps(computing._task(cell))) < MOST_BYTES, cell.name
        found.extend(cells)
        return Results(Path(folder), identities)

    module: Any = import_module(f"studies.{study}.__main__")
    monkeypatch.setattr(module, "run_cells", asked_for)
    with pytest.raises(ValueError, match="there is no result at"):
        module.main(settings_of(study)(out=tmp_path))
    assert found


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_that_offers_workers_offers_a_scheduler_too(study: str) -> None:
    if issubclass(settings_of(study), command_line.Running):
        text = (FOLDER / study / "__main__.py").read_text(encoding="utf-8")
        text = " ".join(text.split())
        passed = text.count("workers=settings.workers, scheduler=settings.scheduler")
        assert passed and passed == text.count("workers=settings.workers") == text.count("run_cells(")
