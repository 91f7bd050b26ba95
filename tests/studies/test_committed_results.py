"""The pages of docs/results that have their Dataset beside them are made from it, by the code as it is."""

from __future__ import annotations

from pathlib import Path

from fganalysis.results import store
from studies.progress import page as progress_page
from studies.subspaces import answers
from studies.wang2025 import collected
from studies.wang2025 import page as wang2025_page

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def test_the_page_on_subspaces_is_that_of_its_dataset() -> None:
    page = (RESULTS / "subspaces.md").read_text(encoding="utf-8")
    assert page == answers.answers(store.read(RESULTS / "subspaces.nc").to_dataset())


def test_the_page_on_progress_is_that_of_its_dataset() -> None:
    page = (RESULTS / "progress.md").read_text(encoding="utf-8")
    assert page == progress_page.page(store.read(RESULTS / "progress.nc"))


def test_the_seed_papers_tables_are_those_of_their_dataset() -> None:
    tree = store.read(RESULTS / "wang2025.nc")
    assert wang2025_page.text(tree) in (RESULTS / "wang2025.md").read_text(encoding="utf-8")
    cells = collected.cells(tree)
    assert tree.attrs["trainings"] == "123 of 123" and len(cells) == 123
    assert {"upstream", "orthogonal", "orthogonal, bottom"} <= {
        str(kind) for cell in cells.values() if "guess_kind" in cell.coords for kind in cell["guess_kind"].values
    }
