"""Files as sequences of bytes, and images with their axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fganalysis.training.datasets import load
from tests.refusals import refusal
from tests.unit.training.datasets.tiny_files import idx, tiny_cifar_files

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
