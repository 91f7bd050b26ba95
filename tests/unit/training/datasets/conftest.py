"""No test of data sets sees the files of this machine or reaches the network."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import mnist1d.data
import numpy as np
import pooch
import pytest

from fganalysis.training import datafiles


@pytest.fixture(autouse=True)
def only_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the files of this machine, and none reaches the network."""

    def refuse(url: str, known_hash: None, fname: str, path: Path, progressbar: bool) -> NoReturn:
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(datafiles, "data_folders", lambda: [tmp_path])
    monkeypatch.setattr("fganalysis.datasets.data_folders", lambda: [tmp_path])
    monkeypatch.setattr(pooch, "retrieve", refuse)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stand in for the second that the package takes: plain numbers; gives the seeds that it was called with."""
    seeds: list[int] = []

    def make_dataset(settings: mnist1d.data.ObjectView) -> dict[str, np.ndarray]:
        seeds.append(settings.seed)
        train, test = np.full((4000, 40), float(settings.seed)), np.zeros((1000, 40))
        return {"x": train, "y": np.arange(4000) % 10, "x_test": test, "y_test": np.arange(1000) % 10}

    monkeypatch.setattr(mnist1d.data, "make_dataset", make_dataset)
    return seeds
