"""Datasets: the generated one equals its package's, files are read in their standard forms, damage is refused."""

import dataclasses
import gzip
import hashlib
import io
import random
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import mnist1d.data
import numpy as np
import pooch
import pytest
import torch

from fganalysis.training import datafiles
from fganalysis.training.datafiles import SOURCES, Source, data_folders, fetch, read_folder
from fganalysis.training.datasets import GENERATED, READERS, Dataset, cifar, idx_images, load, read_idx
from tests.refusals import refusal


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


def test_mnist1d_is_the_package_s_default_dataset() -> None:
    python_state, numpy_state = random.getstate(), np.random.get_state()
    expected = mnist1d.data.make_dataset(mnist1d.data.get_dataset_args())
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    dataset = load("mnist1d")
    assert_well_formed(dataset, 4000, 1000, 40)
    np.testing.assert_array_equal(dataset.train_inputs.numpy(), expected["x"].astype(np.float32))
    np.testing.assert_array_equal(dataset.train_targets.numpy(), expected["y"])
    np.testing.assert_array_equal(dataset.test_inputs.numpy(), expected["x_test"].astype(np.float32))
    np.testing.assert_array_equal(dataset.test_targets.numpy(), expected["y_test"])


def test_mnist1d_leaves_every_global_generator_alone() -> None:
    random.seed(1)
    np.random.seed(1)
    torch_state = torch.get_rng_state()
    expected = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    load("mnist1d")
    assert (random.random(), np.random.random()) == expected
    assert torch.equal(torch_state, torch.get_rng_state())


def test_mnist1d_comes_from_the_cache_the_second_time(tmp_path: Path, generated: list[int]) -> None:
    first = load("mnist1d")
    assert [path.suffix for path in (tmp_path / "mnist1d").iterdir()] == [".npz"]
    assert_equal(load("mnist1d"), first)
    assert generated == [42]


def test_the_seed_names_the_generated_examples(generated: list[int]) -> None:
    assert [load("mnist1d", seed=seed).train_inputs[0, 0].item() for seed in (0, 1, 5, 1)] == [42, 43, 47, 43]
    assert generated == [42, 43, 47]


def with_arrays(path: Path, **changed: np.ndarray) -> None:
    """Write the cache file anew with other arrays, as an intact archive."""
    with np.load(path) as stored:
        arrays = dict(stored) | changed
    np.savez(path, **arrays)


def damaged(path: Path, damage: str) -> None:
    whole = path.read_bytes()
    # A byte of the first array's numbers: their checksum is what shows it.
    at = whole.index(np.float32(42).tobytes())
    with np.load(path) as stored:
        inputs, targets = stored["train_inputs"].copy(), stored["train_targets"].copy()
    if damage == "NaN":
        inputs[7, 3] = np.nan
        with_arrays(path, train_inputs=inputs)
    elif damage == "few targets":
        with_arrays(path, train_targets=targets[:9])
    elif damage == "few of both":
        with_arrays(path, train_inputs=inputs[:9], train_targets=targets[:9])
    elif damage in ("negative class", "class beyond"):
        targets[5] = -1 if damage == "negative class" else 10
        with_arrays(path, train_targets=targets)
    elif damage == "other types":
        with_arrays(path, train_inputs=inputs.astype(np.float64))
    elif damage == "fractions":
        with_arrays(path, train_targets=targets + 0.5)
    else:
        broken = {"cut": whole[:1000], "empty": b"", "flipped": flip(whole, at), "no archive": b"no archive"}
        path.write_bytes(broken[damage])


DAMAGE = ["cut", "empty", "flipped", "no archive", "NaN", "few targets", "few of both", "negative class"]
DAMAGE += ["class beyond", "other types", "fractions"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_of_mnist1d_is_set_aside_and_made_anew(
    tmp_path: Path, generated: list[int], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = load("mnist1d")
    (path,) = (tmp_path / "mnist1d").iterdir()
    damaged(path, damage)
    broken = path.read_bytes()
    assert_equal(load("mnist1d"), first)
    assert f"{path} does not hold MNIST-1D" in capsys.readouterr().err
    assert_equal(load("mnist1d"), first)
    assert capsys.readouterr().err == ""
    assert generated == [42, 42]
    (aside,) = (tmp_path / "mnist1d").glob("*.damaged-*")
    assert aside.read_bytes() == broken


def test_a_byte_flipped_anywhere_in_the_cache_changes_nothing(tmp_path: Path, generated: list[int]) -> None:
    first = load("mnist1d")
    (path,) = (tmp_path / "mnist1d").iterdir()
    whole = path.read_bytes()
    header, end = range(0, 200, 9), range(len(whole) - 400, len(whole), 19)
    for at in [*header, *end]:
        path.write_bytes(flip(whole, at))
        assert_equal(load("mnist1d"), first)


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def test_mnist1d_loads_where_nothing_can_be_written(tmp_path: Path, generated: list[int]) -> None:
    (tmp_path / "mnist1d").write_text("a file where the folder would be")
    assert_well_formed(load("mnist1d"), 4000, 1000, 40)
    assert_well_formed(load("mnist1d"), 4000, 1000, 40)
    assert generated == [42, 42]


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


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\x00\x08", b"\x00\x00\x08\x00", idx(np.zeros(3, np.uint8))[:-1], b"\x00\x00\x0d\x01" + bytes(8)],
)
def test_what_is_no_idx_file_is_refused(content: bytes) -> None:
    expected = f"not an IDX file of unsigned bytes: {len(content)} bytes that begin with {content[:4].hex()}"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        read_idx(content)


def test_an_unknown_name_lists_the_known_ones() -> None:
    known = ", ".join([*GENERATED, *SOURCES, "text"])
    assert known == "mnist1d, digits, fashion_mnist, mnist, cifar10, text"
    with pytest.raises(ValueError, match=f"^unknown dataset 'iris', known are {known}$"):
        load("iris")


def test_a_seed_without_a_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^mnist comes with its own split, so seed must be 0, got 1$"):
        load("mnist", seed=1)


TEXT = bytes(range(256)) * 3


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "some.bin"
    path.write_bytes(TEXT)
    return path


@pytest.mark.parametrize("length", [1, 5, 64, 76])
def test_a_text_is_cut_into_sequences_and_their_next_bytes(text: Path, length: int) -> None:
    dataset = load("text", path=text, length=length)
    n_train = 691  # Nine tenths of 768.
    for inputs, targets, part in [
        (dataset.train_inputs, dataset.train_targets, TEXT[:n_train]),
        (dataset.test_inputs, dataset.test_targets, TEXT[n_train:]),
    ]:
        n_examples = (len(part) - 1) // length
        assert n_examples >= 1
        assert inputs.shape == targets.shape == (n_examples, length)
        assert inputs.dtype == targets.dtype == torch.int64
        assert bytes(inputs.flatten().tolist()) == part[: n_examples * length]
        assert bytes(targets.flatten().tolist()) == part[1 : n_examples * length + 1]


def test_a_text_has_sequences_of_64_unless_told_and_its_inputs_are_not_its_targets(text: Path) -> None:
    dataset = load("text", path=str(text))
    assert dataset.train_inputs.shape == (10, 64)
    before = dataset.train_targets.clone()
    dataset.train_inputs[:] = 0
    assert torch.equal(dataset.train_targets, before)


def test_a_batch_of_text_keeps_its_numbers_whole(text: Path) -> None:
    inputs, targets = load("text", path=text, length=8).batch(5, seed=1)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": None}, "path must name the file of the text, got None"),
        ({"path": 3}, "path must be a path, got 3"),
        ({"path": ""}, "path must be a path, got ''"),
        ({"path": "/nowhere/at/all.txt"}, "'/nowhere/at/all.txt' cannot be read: no such file or directory"),
        ({"path": "/"}, "'/' cannot be read: is a directory"),
        ({"length": 0}, "length must be a whole number of at least 1, got 0"),
        ({"length": 2.0}, "length must be a whole number of at least 1, got 2.0"),
        ({"seed": 1}, "text comes with its own split, so seed must be 0, got 1"),
        ({"images": True}, "text has no images, so images must be False; those that have: digits, mnist"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(text: Path, given: dict[str, object], message: str) -> None:
    assert (refusal(lambda: load("text", **({"path": text} | given))) or "").startswith(message)


def test_a_text_that_is_too_short_is_refused_with_the_length_that_would_do(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(bytes(640))
    said = refusal(lambda: load("text", path=path))
    assert said is not None
    assert said.startswith(f"{str(path)[:30]!r}"[:-1])
    assert "has 640 bytes, too short for sequences of 64: give a file of at least 641 bytes" in said
    path.write_bytes(bytes(641))
    assert load("text", path=path).test_inputs.shape == (1, 64)
    path.write_bytes(b"")
    assert "has 0 bytes, too short for sequences of 1" in (refusal(lambda: load("text", path=path, length=1)) or "")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("mnist", {"path": "a"}, "path has a meaning for text only, not for mnist: leave it out"),
        ("digits", {"length": 8}, "length has a meaning for text only, not for digits: leave it out"),
        ("mnist1d", {"images": True}, "mnist1d has no images, so images must be False; those that have: digits, mnist"),
        ("digits", {"images": "yes"}, "images must be True or False, got 'yes'"),
    ],
)
def test_what_has_no_meaning_for_a_dataset_is_refused(name: str, given: dict[str, object], message: str) -> None:
    assert (refusal(lambda: load(name, **given)) or "").startswith(message)


def test_digits_are_images_where_asked(tmp_path: Path) -> None:
    images, flat = load("digits", images=True), load("digits")
    assert images.train_inputs.shape[1:] == images.test_inputs.shape[1:] == (1, 8, 8)
    assert torch.equal(images.train_inputs.flatten(1), flat.train_inputs)
    assert torch.equal(images.test_targets, flat.test_targets)


@pytest.mark.parametrize(("name", "shape"), [("mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))])
def test_files_of_images_are_images_where_asked(
    name: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of pixels, then columns; of CIFAR-10 the colours first, red to blue, as its files have them."""
    channels, height, width = shape
    pixels = np.arange(channels * height * width, dtype=np.uint32).astype(np.uint8)
    if name == "mnist":
        images = np.stack([pixels.reshape(height, width)] * 2)
        labels = idx(np.array([1, 2], dtype=np.uint8))
        files = {
            f"{part}-{what}-ubyte": content
            for part in ("train", "t10k")
            for what, content in (("images-idx3", idx(images)), ("labels-idx1", labels))
        }
    else:
        files = {batch: b"\x03" + pixels.tobytes() for batch in tiny_cifar_files()}
    monkeypatch.setattr("fganalysis.datasets.fetch", lambda source: files)
    dataset = load(name, images=True)
    assert dataset.train_inputs.shape[1:] == dataset.test_inputs.shape[1:] == shape
    expected = torch.from_numpy(pixels.astype(np.float32).reshape(shape)) / 255
    assert torch.equal(dataset.train_inputs[0], expected)
    assert torch.equal(load(name).train_inputs[0], expected.flatten())


GOOD = Dataset(torch.randn(8, 3), torch.arange(8) % 2, torch.randn(4, 3), torch.arange(4) % 2)
NOT_FINITE = GOOD.train_inputs.clone()
NOT_FINITE[2, 1] = float("nan")
BAD_ARRAYS = [
    ({"train_inputs": None}, "train_inputs must be a tensor (example, …), got None"),
    ({"test_targets": np.zeros(4)}, "test_targets must be a tensor (example, …), got a NumPy array of shape (4,) and"),
    ({"train_inputs": torch.tensor(1.0)}, "train_inputs must be a dense real tensor (example, …) with numbers in it"),
    ({"train_inputs": GOOD.train_inputs.to_sparse()}, "train_inputs must be a dense real tensor"),
    ({"train_inputs": GOOD.train_inputs.to("meta")}, "train_inputs must be a dense real tensor"),
    ({"train_inputs": NOT_FINITE}, "train_inputs has NaN or infinite numbers in 1 of 8 examples"),
    ({"train_targets": GOOD.train_targets[:3]}, "train_inputs has 8 examples but train_targets 3"),
    ({"train_inputs": torch.zeros(0, 3), "train_targets": torch.zeros(0).long()}, "train_inputs has no example"),
    ({"test_inputs": torch.randn(4, 2)}, "train_inputs and test_inputs must be alike but for the number of examples"),
    ({"test_targets": torch.zeros(4)}, "train_targets and test_targets must be alike but for the number of examples"),
]


@pytest.mark.parametrize(("changed", "message"), BAD_ARRAYS)
def test_arrays_that_are_no_dataset_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        dataclasses.replace(GOOD, **changed)


def test_a_batch_is_of_as_many_examples_as_asked_or_refused() -> None:
    inputs, targets = GOOD.batch(5)
    assert torch.equal(inputs, GOOD.train_inputs[:5]) and torch.equal(targets, GOOD.train_targets[:5])
    inputs, targets = GOOD.batch(8, seed=3)
    assert torch.equal(inputs, GOOD.batch(8, seed=3)[0]) and not torch.equal(inputs, GOOD.train_inputs)
    assert torch.equal(inputs.sort(0).values, GOOD.train_inputs.sort(0).values)
    for size, message in [
        (9, "a batch must be of at most the 8 training examples, got 9"),
        (0, "the size of a batch must be a whole number of at least 1, got 0"),
        (-1, "the size of a batch must be a whole number of at least 1, got -1"),
        (2.0, "the size of a batch must be a whole number of at least 1, got 2.0"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}$"):
            GOOD.batch(size)


@pytest.mark.parametrize("name", [None, 3, [], {}, b"mnist", "", "iris", ["mnist"], torch.zeros(3)])
def test_what_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match=r"^unknown dataset "):
        load(name)


@pytest.mark.parametrize("seed", [None, -1, 1.5, "0", True, 2**63, float("nan"), 2**32 - 42])
def test_what_is_no_seed_is_refused(seed: object) -> None:
    for name in ["mnist1d", "digits"] if seed != 2**32 - 42 else ["mnist1d"]:
        with pytest.raises(ValueError, match="seed"):
            load(name, seed)
