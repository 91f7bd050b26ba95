"""Datasets as flat tensors: MNIST-1D (generated, the default), digits, Fashion-MNIST, MNIST and CIFAR-10."""

import os
import random
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from fganalysis.datafiles import SOURCES, data_folders, fetch


@dataclass(frozen=True)
class Dataset:
    """Inputs `(example, unit)`, float32, and targets `(example,)`, class numbers as int64, for training and testing."""

    train_inputs: torch.Tensor
    train_targets: torch.Tensor
    test_inputs: torch.Tensor
    test_targets: torch.Tensor


def load(name: str, seed: int = 0) -> Dataset:
    """Load a dataset as flat float32 inputs and int64 targets.

    `mnist1d`: 4000 training and 1000 test examples of 40 units, by the mnist1d package with its default settings and no
    network; seed 0 is the published dataset (the package's own seed 42), seed n uses 42 + n. `digits`: scikit-learn's
    1797 examples of 64 units in [0, 1]; a seeded permutation puts four fifths into training. `mnist`, `fashion_mnist`:
    784 units in [0, 1], 60000 and 10000 examples. `cifar10`: 3072 units in [0, 1], 50000 and 10000 examples. The files
    of the last three are found or downloaded as `fganalysis.datafiles` says.

    Parameters
    ----------
    name
        One of the names above.
    seed
        Which examples are generated, or which split is made; 0 for the datasets that come with a split.

    Raises
    ------
    ValueError
        If the name is unknown, the seed has no meaning for the dataset, or a file found does not hold what it should.
    FileNotFoundError
        If a file is in no folder and cannot be downloaded.
    """
    if name in GENERATED:
        return GENERATED[name](seed)
    if name not in SOURCES:
        raise ValueError(f"unknown dataset {name!r}, known are {', '.join([*GENERATED, *SOURCES])}")
    if seed != 0:
        raise ValueError(f"{name} comes with its own split, so seed must be 0, got {seed}")
    return READERS[name](fetch(SOURCES[name]))


def read_idx(content: bytes) -> np.ndarray:
    """Read an array of unsigned bytes in IDX form: two zeros, type 8, dimensions, big-endian sizes, then the entries.

    Raises
    ------
    ValueError
        If the header is another one or the length does not follow from it.
    """
    n_dimensions = content[3] if content[:3] == b"\x00\x00\x08" and len(content) > 3 else 0
    start = 4 + 4 * n_dimensions
    sizes = np.frombuffer(content[4:start], dtype=">u4").astype(int) if len(content) >= start else np.zeros(0, int)
    if len(sizes) == 0 or len(content) != start + np.prod(sizes):
        raise ValueError(f"not an IDX file of unsigned bytes: {len(content)} bytes that begin with {content[:4].hex()}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(sizes)


def idx_images(files: Mapping[str, bytes]) -> Dataset:
    """Make a dataset of four IDX files: images and labels to train and to test with; pixels are divided by 255."""
    train_inputs, test_inputs = (read_idx(files[f"{part}-images-idx3-ubyte"]) for part in ("train", "t10k"))
    train_targets, test_targets = (read_idx(files[f"{part}-labels-idx1-ubyte"]) for part in ("train", "t10k"))
    return _dataset(train_inputs, train_targets, test_inputs, test_targets, scale=255)


def cifar(files: Mapping[str, bytes]) -> Dataset:
    """Make a dataset of CIFAR-10's binary batches: records of a label and 3072 pixels, which are divided by 255."""
    records = {name: np.frombuffer(content, dtype=np.uint8).reshape(-1, 3073) for name, content in files.items()}
    train = np.concatenate([records[name] for name in sorted(records) if name.startswith("data_batch_")])
    test = records["test_batch.bin"]
    return _dataset(train[:, 1:], train[:, 0], test[:, 1:], test[:, 0], scale=255)


def _dataset(
    train_inputs: np.ndarray,
    train_targets: np.ndarray,
    test_inputs: np.ndarray,
    test_targets: np.ndarray,
    scale: float = 1,
) -> Dataset:
    def flat(inputs: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(inputs.reshape(len(inputs), -1).astype(np.float32)).div_(scale)

    def classes(targets: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(targets.astype(np.int64))

    return Dataset(flat(train_inputs), classes(train_targets), flat(test_inputs), classes(test_targets))


def _digits(seed: int) -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("digits comes with scikit-learn: pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    train, test = np.split(order, [len(images) * 4 // 5])
    return _dataset(images[train], labels[train], images[test], labels[test], scale=16)


def _mnist1d(seed: int) -> Dataset:
    path = data_folders()[0] / "mnist1d" / f"{version('mnist1d')}-seed{seed}.npz"
    try:
        # Given a path, numpy leaves the file of a truncated archive open.
        with path.open("rb") as stream, np.load(stream) as stored:
            return _dataset(*(stored[field.name] for field in fields(Dataset)))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        dataset = _generate_mnist1d(seed)
    try:
        _save(dataset, path)
    except OSError:
        return dataset  # A home that cannot be written to costs a second at each load, nothing else.
    return dataset


def _generate_mnist1d(seed: int) -> Dataset:
    from mnist1d.data import get_dataset_args, make_dataset

    settings = get_dataset_args()
    settings.seed += seed
    # The package seeds and advances the global generators of random and NumPy.
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        generated = make_dataset(settings)
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
    return _dataset(generated["x"], generated["y"], generated["x_test"], generated["y_test"])


def _save(dataset: Dataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may write the same file at once: each writes one of its own, and the last rename wins.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            np.savez(
                stream,
                train_inputs=dataset.train_inputs.numpy(),
                train_targets=dataset.train_targets.numpy(),
                test_inputs=dataset.test_inputs.numpy(),
                test_targets=dataset.test_targets.numpy(),
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


GENERATED: Mapping[str, Callable[[int], Dataset]] = {"mnist1d": _mnist1d, "digits": _digits}
READERS: Mapping[str, Callable[[Mapping[str, bytes]], Dataset]] = {
    "fashion_mnist": idx_images,
    "mnist": idx_images,
    "cifar10": cifar,
}
