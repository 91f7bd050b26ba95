"""Tiny files in the forms of the data sets, and what a data set must be."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from fganalysis.training.datafiles import Source
from fganalysis.training.datasets import Dataset


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


def tiny_idx_files() -> dict[str, bytes]:
    images = np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3)
    return {
        "train-images-idx3-ubyte": idx(images[:3]),
        "train-labels-idx1-ubyte": idx(np.array([7, 8, 9], dtype=np.uint8)),
        "t10k-images-idx3-ubyte": idx(images[3:]),
        "t10k-labels-idx1-ubyte": idx(np.array([1, 2], dtype=np.uint8)),
    }


def tiny_cifar_files() -> dict[str, bytes]:
    """Six batches of one record each; the label is the batch's number, every pixel ten times that."""
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    return {name: bytes([number]) + bytes([10 * number]) * 3072 for number, name in enumerate(names, start=1)}


def source_of(files: Mapping[str, bytes], download: str = "tiny.tar.gz") -> Source:
    content = {name: hashlib.sha256(text).hexdigest() for name, text in files.items()}
    return Source(folders=("tiny", "Tiny/raw"), content=content, url="https://nowhere.invalid/", downloads=(download,))


def write_archive(path: Path, files: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"tiny-batches-bin/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))


def assert_equal(left: Dataset, right: Dataset) -> None:
    for field in dataclasses.fields(Dataset):
        assert torch.equal(getattr(left, field.name), getattr(right, field.name)), field.name


def assert_well_formed(dataset: Dataset, n_train: int, n_test: int, n_units: int) -> None:
    assert dataset.train_inputs.shape == (n_train, n_units)
    assert dataset.test_inputs.shape == (n_test, n_units)
    assert dataset.train_targets.shape == (n_train,)
    assert dataset.test_targets.shape == (n_test,)
    assert {dataset.train_inputs.dtype, dataset.test_inputs.dtype} == {torch.float32}
    assert {dataset.train_targets.dtype, dataset.test_targets.dtype} == {torch.int64}


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
