"""One run of the study of subspaces with tiny settings."""

from __future__ import annotations

import dataclasses

import pytest

from studies.subspaces import __main__ as subspaces
from tests.studies.subspaces.tiny_study import TINY, Finished


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("study")
    settings = dataclasses.replace(TINY, out=folder / "out", page=folder / "page")
    collected = subspaces.main(settings)
    return Finished(settings, collected, (settings.page / "subspaces.md").read_text(encoding="utf-8"))
