"""Files with another content than their hash are refused, and what is missing is downloaded and checked."""

import dataclasses
import gzip
import hashlib
import re
from pathlib import Path

import pooch
import pytest

from fganalysis.training import datafiles
from fganalysis.training.datafiles import SOURCES, fetch, read_folder
from fganalysis.training.datasets import READERS, load
from tests.unit.training.datasets.tiny_files import flip, source_of, tiny_cifar_files, tiny_idx_files, write_archive


def test_a_file_with_other_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fashion_mnist").mkdir()
    path = tmp_path / "fashion_mnist" / "t10k-labels-idx1-ubyte"
    path.write_bytes(b"other")
    monkeypatch.setattr(datafiles, "data_folders", lambda: [tmp_path / "mine", tmp_path])
    expected = (
        f"{path} does not hold the known t10k-labels-idx1-ubyte (SHA-256 "
        f"{hashlib.sha256(b'other').hexdigest()}, not {SOURCES['fashion_mnist'].content[path.name]}): delete it, or "
        "replace it by an intact copy"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        load("fashion_mnist")


def test_a_damaged_file_where_downloads_go_is_set_aside_and_downloaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tiny_idx_files()
    source = dataclasses.replace(source_of(files), downloads=tuple(f"{name}.gz" for name in files))

    def deliver(url: str, known_hash: None, fname: str, path: Path, progressbar: bool) -> None:
        (path / fname).write_bytes(gzip.compress(files[fname.removesuffix(".gz")]))

    monkeypatch.setattr(pooch, "retrieve", deliver)
    (tmp_path / "tiny").mkdir()
    bad = tmp_path / "tiny" / "train-images-idx3-ubyte.gz"
    bad.write_bytes(b"damaged")
    assert fetch(source) == files
    assert str(bad) in capsys.readouterr().err
    assert [path.read_bytes() for path in bad.parent.glob("*.damaged-*")] == [b"damaged"]
    assert fetch(source) == files


def test_one_flipped_bit_is_refused(tmp_path: Path) -> None:
    files = tiny_idx_files()
    source = source_of(files)
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)
    assert read_folder(tmp_path, source) == files
    (tmp_path / "train-images-idx3-ubyte").write_bytes(flip(files["train-images-idx3-ubyte"], 20))
    with pytest.raises(ValueError, match="does not hold the known train-images-idx3-ubyte"):
        read_folder(tmp_path, source)


@pytest.mark.parametrize("name", SOURCES)
def test_a_missing_file_says_where_to_put_it(tmp_path: Path, name: str) -> None:
    first = SOURCES[name].downloads[0]
    expected = (
        f"{tmp_path / name / first} does not exist and {SOURCES[name].url}{first} cannot be downloaded "
        f"(ConnectionError): put the file there, or set FGA_DATA to a folder that has it under {name}"
    )
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(expected)}$"):
        load(name)


def test_what_is_missing_is_downloaded_with_its_hash_and_checked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny_cifar_files()
    asked: list[str] = []

    def deliver(url: str, known_hash: None, fname: str, path: Path, progressbar: bool) -> None:
        asked.append(url)
        path.mkdir()
        write_archive(path / fname, files)

    monkeypatch.setattr(pooch, "retrieve", deliver)
    assert fetch(source_of(files)) == files
    assert fetch(source_of(files)) == files
    assert asked == ["https://nowhere.invalid/tiny.tar.gz"]


def test_a_download_with_other_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tiny_cifar_files()

    def deliver(url: str, known_hash: None, fname: str, path: Path, progressbar: bool) -> None:
        path.mkdir()
        write_archive(path / fname, files | {"test_batch.bin": b"other"})

    monkeypatch.setattr(pooch, "retrieve", deliver)
    path = tmp_path / "tiny" / "tiny.tar.gz"
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} does not hold the known test_batch.bin .SHA-256"):
        fetch(source_of(files))


def test_every_source_has_a_reader_well_formed_hashes_and_a_safe_address() -> None:
    assert set(READERS) == set(SOURCES)
    for source in SOURCES.values():
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in source.content.values())
        assert source.url.startswith("https://")
