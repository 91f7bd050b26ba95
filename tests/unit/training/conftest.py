"""A checkpoint of a short run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.training.checkpointed_run import trained


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run")).checkpoints[2]
