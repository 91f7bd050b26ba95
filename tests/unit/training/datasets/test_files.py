"""Files of data sets are found and read in their standard forms, and damaged ones are refused by name."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fganalysis.training import datafiles
from fganalysis.training.datafiles import data_folders, fetch, read_folder
from fganalysis.training.datasets import cifar, idx_images, load, read_idx
from tests.unit.training.datasets.tiny_files import (
    assert_equal,
    assert_well_formed,
    idx,
    source_of,
    tiny_cifar_files,
    tiny_idx_files,
    write_archive,
)


def test_digits_are_split_once_for_a_seed() -> None:
    dataset = load("digits")
    assert_well_formed(dataset, 1437, 360, 64)
    assert dataset.train_inputs.min() == 0
    assert dataset.train_inputs.max() == 1
    assert_equal(load("digits"), dataset)
    assert not torch.equal(load("digits", seed=1).train_targets, dataset.train_targets)
    both = torch.cat([dataset.train_targets, dataset.test_targets])
    other = load("digits", seed=1)
    assert torch.equal(both.bincount(), torch.cat([other.train_targets, other.test_targets]).bincount())


@pytest.mark.parametrize("folder", ["tiny", "Tiny/raw"])
@pytest.mark.parametrize("compressed", [False, True])
def test_idx_files_are_found_plain_or_gzipped(tmp_path: Path, folder: str, compressed: bool) -> None:
    files = tiny_idx_files()
    (tmp_path / folder).mkdir(parents=True)
    for name, text in files.items():
        if compressed:
            (tmp_path / folder / f"{name}.gz").write_bytes(gzip.compress(text))
        else:
            (tmp_path / folder / name).write_bytes(text)
    dataset = idx_images(fetch(source_of(files)))
    assert_well_formed(dataset, 3, 2, 6)
    assert torch.equal(dataset.train_inputs, torch.arange(18).reshape(3, 6) / 255)
    assert torch.equal(dataset.test_inputs, torch.arange(18, 30).reshape(2, 6) / 255)
    assert dataset.train_targets.tolist() == [7, 8, 9]
    assert dataset.test_targets.tolist() == [1, 2]


@pytest.mark.parametrize("archived", [False, True])
def test_cifar_is_read_from_batches_or_from_its_archive(tmp_path: Path, archived: bool) -> None:
    files = tiny_cifar_files()
    (tmp_path / "tiny").mkdir()
    if archived:
        write_archive(tmp_path / "tiny" / "tiny.tar.gz", files)
    else:
        for name, text in files.items():
            (tmp_path / "tiny" / name).write_bytes(text)
    dataset = cifar(fetch(source_of(files)))
    assert_well_formed(dataset, 5, 1, 3072)
    assert dataset.train_targets.tolist() == [1, 2, 3, 4, 5]
    assert dataset.test_targets.tolist() == [6]
    assert torch.equal(dataset.train_inputs[:, -1], torch.tensor([10, 20, 30, 40, 50]) / 255)
    assert dataset.test_inputs.unique().tolist() == pytest.approx([60 / 255])


def test_files_may_lie_in_several_folders_and_the_first_found_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny_idx_files()
    for folder, names in {"first": list(files)[:3], "second": list(files)[2:]}.items():
        (tmp_path / folder / "tiny").mkdir(parents=True)
        for name in names:
            (tmp_path / folder / "tiny" / name).write_bytes(files[name])
    monkeypatch.setattr(datafiles, "data_folders", lambda: [tmp_path / "first", tmp_path / "second"])
    assert fetch(source_of(files)) == files


def test_the_named_folder_is_searched_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGA_DATA", str(tmp_path))
    folders = data_folders()
    assert folders[0] == tmp_path
    monkeypatch.delenv("FGA_DATA")
    assert data_folders() == folders[1:]


@pytest.mark.parametrize("cut", [0, 10, -5])
def test_a_truncated_gzip_file_is_refused_by_name(tmp_path: Path, cut: int) -> None:
    files = tiny_idx_files()
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(files["train-images-idx3-ubyte"])[:cut])
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} .*: delete it, or replace it by an intact copy$"):
        read_folder(tmp_path, source_of(files))


def test_a_damaged_or_incomplete_archive_is_refused_by_name(tmp_path: Path) -> None:
    files = tiny_cifar_files()
    path = tmp_path / "tiny.tar.gz"
    write_archive(path, {name: text for name, text in files.items() if name != "test_batch.bin"})
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} cannot be read .'test_batch.bin'.: delete it"):
        read_folder(tmp_path, source_of(files))
    path.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} cannot be read .*: delete it"):
        read_folder(tmp_path, source_of(files))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\x00\x08", b"\x00\x00\x08\x00", idx(np.zeros(3, np.uint8))[:-1], b"\x00\x00\x0d\x01" + bytes(8)],
)
def test_what_is_no_idx_file_is_refused(content: bytes) -> None:
    expected = f"not an IDX file of unsigned bytes: {len(content)} bytes that begin with {content[:4].hex()}"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        read_idx(content)
