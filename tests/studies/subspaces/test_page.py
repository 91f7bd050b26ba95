"""The page of the study of subspaces follows from its Dataset, with its figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from fganalysis.results import store
from studies.subspaces import __main__ as subspaces
from studies.subspaces.answers import answers
from tests.studies.subspaces.tiny_study import Finished


def test_the_page_follows_from_the_kept_dataset_alone(finished: Finished, tmp_path: Path) -> None:
    kept = store.read(finished.settings.page / "subspaces.nc").to_dataset()
    assert answers(kept) == finished.text
    again = store.write(kept, tmp_path / "again.nc")
    assert answers(store.read(again).to_dataset()) == finished.text
    for name in ("branch", "trained_by", "layer", "matrix", "quantity"):
        np.testing.assert_array_equal(kept[name], finished.collected[name])


def test_the_page_says_how_long_a_whole_run_took(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting again keeps what the whole run took; a run that was resumed has no such number."""
    settings = finished.settings
    monkeypatch.setattr(subspaces.subspace_figures, "figures", lambda *_: {})  # They take most of the time.
    run = json.loads(finished.collected.attrs["whole_run"])
    assert run["minutes"] > 0 and run["workers"] == 1 and run["cores"] >= 1
    assert f"The study took {run['minutes']:.1f} minutes with 1 processes on {run['cores']} cores." in finished.text
    again = subspaces.main(settings)
    assert again.attrs["whole_run"] == finished.collected.attrs["whole_run"]
    subspaces.cells(settings)[-1].path(settings.out).unlink()
    resumed = subspaces.main(settings)
    assert "whole_run" not in resumed.attrs
    page = (settings.page / "subspaces.md").read_text(encoding="utf-8")
    assert "was resumed" in page and page == answers(resumed)
    for folder in (settings.out, settings.page):
        store.write(finished.collected, folder / "subspaces.nc")


def test_figures_are_written_and_named_on_the_page(finished: Finished) -> None:
    written = sorted(path.name for path in finished.settings.page.glob("*.png"))
    assert written == sorted(set(re.findall(r"\]\((subspaces_\w+\.png)\)", finished.text)))
    assert len(written) == 7
    assert all((finished.settings.page / name).stat().st_size > 10_000 for name in written)
