"""What a study's cells carry to another process: settings and paths, never weights or data."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.results import cells as engine
from fganalysis.results import store
from fganalysis.results.cells import Results
from fganalysis.results.identity import Cell, identity
from studies.kit import command_line, kept_data, kept_networks
from studies.kit.digests import digests
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


def test_cells_of_a_process_share_the_dataset_and_the_network_that_they_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = kept_data.load("mnist1d")
    assert kept_data.load("mnist1d") is data and kept_data.load("digits", images=True).train_inputs.ndim == 4
    assert digests("mnist1d") == {"mnist1d": fga.datasets.load("mnist1d").digest()}

    reads: list[Path] = []
    read = store.read
    monkeypatch.setattr(store, "read", lambda path: (reads.append(path), read(path))[1])
    networks = [fga.networks.mlp([4, 3, 2], seed=seed) for seed in (0, 1, 2)]
    paths = [tmp_path / "first.nc", tmp_path / "second.nc"]
    for path, network in zip(paths, networks, strict=False):
        store.write(xr.DataTree.from_dict({kept_networks.NODE: kept_networks.as_dataset(network)}), path)
    for _ in range(3):
        restored = kept_networks.restored(fga.networks.mlp([4, 3, 2], seed=5), paths[0])
        assert all(torch.equal(one, restored.state_dict()[name]) for name, one in networks[0].state_dict().items())
        for weights in restored.parameters():  # What a cell does to its network is not seen by others.
            weights.data.zero_()
    assert reads == paths[:1]
    # Another file, and the same one with another content, are read.
    kept_networks.restored(networks[2], paths[1])
    store.write(store.read(paths[1]), paths[0])
    kept_networks.restored(networks[2], paths[0])
    assert all(torch.equal(one, networks[2].state_dict()[name]) for name, one in networks[1].state_dict().items())
