"""What every test shares: no display, no home folder, and hypothesis without deadlines."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Figures are drawn in memory: without this matplotlib asks for a display where there is one.
os.environ["MPLBACKEND"] = "Agg"

# A deadline fails on a busy machine. With CI set, hypothesis' own profile for it makes runs deterministic.
hypothesis.settings.register_profile(
    "fganalysis", parent=hypothesis.settings.get_profile("ci" if "CI" in os.environ else "default"), deadline=None
)
hypothesis.settings.load_profile("fganalysis")


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> None:
    """Keep generated data out of the home folder, in one folder that all workers of a run share."""
    folder = tmp_path_factory.getbasetemp()
    os.environ["FGA_DATA"] = str((folder if worker_id == "master" else folder.parent) / "data")


@pytest.fixture(autouse=True)
def legible_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure that a test writes keeps what `tests/legible.py` says."""
    if "fganalysis.results.plotting" not in sys.modules:
        return
    from fganalysis.results import plotting
    from tests import legible

    write = plotting.save

    def save(figure: Figure, path: str | Path) -> Path:
        written = write(figure, path)
        found = legible.faults(figure)
        assert not found, f"{written.name}: " + "; ".join(found)
        return written

    monkeypatch.setattr(plotting, "save", save)
