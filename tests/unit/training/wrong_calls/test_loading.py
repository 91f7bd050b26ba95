"""Wrong values for every argument of what makes networks and loads data: right, or refused in a sentence of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.training.checkpoints import load_checkpoint, load_estimator_state
from fganalysis.training.datasets import Dataset, cifar, idx_images, load, read_idx
from fganalysis.training.networks import mlp
from tests.unit.training.wrong_calls.wrong_values import ANYTHING, DATA, NETWORK, NETWORKS, X, Y, walk


@pytest.mark.parametrize("name", ["path", "network", "optimizer", "scheduler"])
def test_load_checkpoint(name: str, tmp_path: Path) -> None:
    right = {"path": fga.train(NETWORK, DATA, epochs=1, checkpoints=[0], out=tmp_path).checkpoints[0]}
    right |= {"network": mlp([6, 5, 3])}
    assert walk(load_checkpoint, right, name, [*ANYTHING, *NETWORKS]) == {}
    assert walk(load_estimator_state, {}, "path", ANYTHING) == {}


@pytest.mark.parametrize("name", ["sizes", "bias", "seed", "activation", "dtype"])
def test_mlp(name: str) -> None:
    more = [[3, 2], (3, 2, 1), np.array([3, 2]), torch.tensor([3, 2]), ["a"], [3, 2.5], torch.float16, torch.int8]
    assert walk(mlp, {"sizes": [3, 2, 1]}, name, [*ANYTHING, *more]) == {}


@pytest.mark.parametrize("name", ["train_inputs", "train_targets", "test_inputs", "test_targets"])
def test_dataset(name: str) -> None:
    right = {"train_inputs": X, "train_targets": Y, "test_inputs": X, "test_targets": Y}
    assert walk(Dataset, right, name, ANYTHING) == {}


def test_batch_and_load() -> None:
    assert walk(DATA.batch, {}, "size", ANYTHING) == {}
    assert walk(DATA.batch, {"size": 3}, "seed", ANYTHING) == {}
    assert walk(load, {}, "name", ANYTHING) == {}
    assert walk(load, {"name": "digits"}, "seed", ANYTHING) == {}


def test_files_of_datasets() -> None:
    contents = [*ANYTHING, b"", bytes(16), bytes([0, 0, 8, 255]), bytes([0, 0, 8, 1, 255, 255, 255, 255])]
    assert walk(read_idx, {}, "content", contents) == {}
    files = [*ANYTHING, {"train-images-idx3-ubyte": b""}, {"test_batch.bin": b"123"}]
    assert walk(idx_images, {}, "files", files) == {}
    assert walk(cifar, {}, "files", files) == {}
