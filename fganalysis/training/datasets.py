"""Datasets as tensors: MNIST-1D (generated, the default), digits, Fashion-MNIST, MNIST, CIFAR-10 and any text."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from fganalysis.arguments import check_flag, check_kind, check_seed, check_whole, described
from fganalysis.training.checkpoints import digest_of
from fganalysis.training.datafiles import SOURCES, Damaged, data_folders, fetch, read_file, set_aside

CIFAR_RECORD = 1 + 3 * 32 * 32  # A label and the pixels.
N_CLASSES = 10  # Of every dataset here but text.
IMAGES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
TEXT = "text"
DEFAULT_LENGTH = 64
LARGEST_MNIST1D_SEED = 2**32 - 1 - 42  # NumPy's global generator, which the package seeds with 42 more, takes 32 bits.


@dataclass(frozen=True)
class Dataset:
    """Examples to train and to test with: inputs `(example, …)` and targets `(example, …)`, checked when it is made.

    Those of `load` have inputs `(example, unit)`, or `(example, channel, height, width)`, in float32 and targets
    `(example,)`, class numbers as int64; of text, both are `(example, position)`, int64. The test set may be empty.

    Raises
    ------
    ValueError
        If an array is no dense tensor or has NaN or infinite numbers, there is no example to train with, inputs and
        targets are not equally many, or those to test with have another shape or type than those to train with.
    """

    train_inputs: torch.Tensor
    train_targets: torch.Tensor
    test_inputs: torch.Tensor
    test_targets: torch.Tensor

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_array(field.name, getattr(self, field.name))
        if not len(self.train_inputs):
            raise ValueError("train_inputs has no example: there is nothing to train with")
        for part in ("train", "test"):
            inputs, targets = getattr(self, f"{part}_inputs"), getattr(self, f"{part}_targets")
            if len(inputs) != len(targets):
                raise ValueError(f"{part}_inputs has {len(inputs)} examples but {part}_targets {len(targets)}")
        for what in ("inputs", "targets"):
            train, test = getattr(self, f"train_{what}"), getattr(self, f"test_{what}")
            if len(test) and (train.shape[1:] != test.shape[1:] or train.dtype != test.dtype):
                raise ValueError(
                    f"train_{what} and test_{what} must be alike but for the number of examples, got "
                    f"{described(train)} and {described(test)}"
                )

    def digest(self) -> str:
        """SHA-256 of the four arrays, with their types and shapes: results of other data are told apart by it."""
        whole = hashlib.sha256()
        for field in fields(self):
            whole.update(digest_of(field.name, getattr(self, field.name)))
        return whole.hexdigest()

    def batch(self, size: int, seed: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of ``size`` training examples: the first ones, or with a seed a random choice of them.

        Raises
        ------
        ValueError
            If ``size`` is no whole number from 1 to the number of training examples.
        """
        check_whole("the size of a batch", size, 1)
        known = len(self.train_inputs)
        if size > known:
            raise ValueError(f"a batch must be of at most the {known} training examples, got {size}")
        if seed is None:
            return self.train_inputs[:size], self.train_targets[:size]
        check_seed("seed", seed)
        rows = torch.from_numpy(np.random.default_rng(seed).permutation(known)[:size])
        rows = rows.to(self.train_inputs.device)
        return self.train_inputs[rows], self.train_targets[rows]


def checked_data(data: object) -> Dataset:
    """A `Dataset`, or anything with the same four arrays, as a `Dataset`. Raises ValueError as that does."""
    if isinstance(data, Dataset):
        return data
    names = [field.name for field in fields(Dataset)]
    if isinstance(data, type) or not all(hasattr(data, name) for name in names):
        raise ValueError(
            f"data must be what fganalysis.datasets.load returns, or have its {', '.join(names)}, got {described(data)}"
        )
    return Dataset(*(getattr(data, name) for name in names))


def _check_array(name: str, array: object) -> None:
    check_kind(name, array, torch.Tensor, "a tensor (example, …)")
    assert isinstance(array, torch.Tensor)
    if array.ndim < 1 or array.layout != torch.strided or array.is_meta or array.is_complex():
        raise ValueError(f"{name} must be a dense real tensor (example, …) with numbers in it, got {described(array)}")
    if array.is_floating_point() and not array.isfinite().all():
        wrong = int((~array.isfinite()).reshape(len(array), -1).any(1).sum())
        raise ValueError(f"{name} has NaN or infinite numbers in {wrong} of {len(array)} examples")


def load(
    name: str, seed: int = 0, *, images: bool = False, path: str | Path | None = None, length: int = DEFAULT_LENGTH
) -> Dataset:
    """Load a dataset as float32 inputs, flat unless asked otherwise, and int64 targets, or a text as int64 of both.

    `mnist1d`: 4000 training and 1000 test examples of 40 units, by the mnist1d package with its default settings and no
    network; seed 0 is the published dataset (the package's own seed 42), seed n uses 42 + n. `digits`: scikit-learn's
    1797 examples of 64 units in [0, 1]; a seeded permutation puts four fifths into training. `mnist`, `fashion_mnist`:
    784 units in [0, 1], 60000 and 10000 examples. `cifar10`: 3072 units in [0, 1], 50000 and 10000 examples. The files
    of the last three are found or downloaded as `fganalysis.training.datafiles` says.

    `text`: the bytes of the file at ``path``, whatever it is, to predict the next byte. Inputs are
    `(example, position)`, numbers from 0 to 255, and targets the same one byte further on. The first nine tenths of
    the file are to train with, the rest to test with. Each part is cut into sequences that do not overlap, and what is
    left over is dropped.

    Parameters
    ----------
    name
        One of the names above.
    seed
        Which examples are generated, or which split is made; 0 for the datasets that come with a split.
    images
        Whether inputs are `(example, channel, height, width)`: (1, 8, 8) for digits, (1, 28, 28) for mnist and
        fashion_mnist, (3, 32, 32) for cifar10.
    path
        The file of a text.
    length
        Positions of a text's sequences.

    Raises
    ------
    ValueError
        If the name is unknown, an argument has no meaning for the dataset, a file found does not hold what it should,
        or a text cannot be read or is too short.
    FileNotFoundError
        If a file of a public dataset is in no folder and cannot be downloaded.
    """
    known = [*GENERATED, *SOURCES, TEXT]
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"unknown dataset {described(name)}, known are {', '.join(known)}")
    check_seed("seed", seed)
    check_flag("images", images)
    check_whole("length", length, 1)
    if seed != 0 and name not in GENERATED:
        raise ValueError(f"{name} comes with its own split, so seed must be 0, got {seed}")
    if images and name not in IMAGES:
        raise ValueError(f"{name} has no images, so images must be False; those that have: {', '.join(IMAGES)}")
    if name == TEXT:
        return _text(path, int(length))
    if path is not None or length != DEFAULT_LENGTH:
        given = "path" if path is not None else "length"
        raise ValueError(f"{given} has a meaning for text only, not for {name}: leave it out")
    dataset = GENERATED[name](int(seed)) if name in GENERATED else READERS[name](fetch(SOURCES[name]))
    return _as_images(dataset, IMAGES[name]) if images else dataset


def read_idx(content: bytes) -> np.ndarray:
    """Read an array of unsigned bytes in IDX form: two zeros, type 8, dimensions, big-endian sizes, then the entries.

    Raises
    ------
    ValueError
        If the header is another one or the length does not follow from it.
    """
    check_kind("content", content, bytes, "the bytes of a file")
    n_dimensions = content[3] if content[:3] == b"\x00\x00\x08" and len(content) > 3 else 0
    start = 4 + 4 * n_dimensions
    sizes = np.frombuffer(content[4:start], dtype=">u4").astype(int) if len(content) >= start else np.zeros(0, int)
    if len(sizes) == 0 or len(content) != start + np.prod(sizes):
        raise ValueError(f"not an IDX file of unsigned bytes: {len(content)} bytes that begin with {content[:4].hex()}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(sizes)


def idx_images(files: Mapping[str, bytes]) -> Dataset:
    """Make a dataset of four IDX files: images and labels to train and to test with; pixels are divided by 255."""
    files = _known(files, SOURCES["mnist"].content)
    train_inputs, test_inputs = (read_idx(files[f"{part}-images-idx3-ubyte"]) for part in ("train", "t10k"))
    train_targets, test_targets = (read_idx(files[f"{part}-labels-idx1-ubyte"]) for part in ("train", "t10k"))
    return _dataset(train_inputs, train_targets, test_inputs, test_targets, scale=255)


def cifar(files: Mapping[str, bytes]) -> Dataset:
    """Make a dataset of CIFAR-10's binary batches: records of a label and 3072 pixels, which are divided by 255."""
    files = _known(files, SOURCES["cifar10"].content)
    odd = [name for name, content in files.items() if len(content) % CIFAR_RECORD or not content]
    if odd:
        raise ValueError(f"{odd[0]} must be records of {CIFAR_RECORD} bytes, got {len(files[odd[0]])} bytes")
    records = {name: np.frombuffer(content, np.uint8).reshape(-1, CIFAR_RECORD) for name, content in files.items()}
    train = np.concatenate([records[name] for name in sorted(records) if name.startswith("data_batch_")])
    test = records["test_batch.bin"]
    return _dataset(train[:, 1:], train[:, 0], test[:, 1:], test[:, 0], scale=255)


def _known(files: Mapping[str, bytes], names: Iterable[str]) -> dict[str, bytes]:
    check_kind("files", files, Mapping, "a mapping from file names to bytes")
    for name in names:
        check_kind(name, files.get(name), bytes, "the bytes of a file")
    return {name: files[name] for name in names}


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
        if targets.ndim != 1 or targets.dtype.kind not in "iu" or not np.isin(targets, np.arange(N_CLASSES)).all():
            raise ValueError(f"targets must be one whole number from 0 to {N_CLASSES - 1} an example")
        return torch.from_numpy(targets.astype(np.int64))

    return Dataset(flat(train_inputs), classes(train_targets), flat(test_inputs), classes(test_targets))


def _as_images(dataset: Dataset, shape: tuple[int, int, int]) -> Dataset:
    train_inputs, test_inputs = (inputs.unflatten(1, shape) for inputs in (dataset.train_inputs, dataset.test_inputs))
    return Dataset(train_inputs, dataset.train_targets, test_inputs, dataset.test_targets)


def _text(path: object, length: int) -> Dataset:
    content = read_file(path)
    n_train = len(content) * 9 // 10
    # A sequence needs one byte more than its length: the last target.
    if len(content) - n_train <= length:
        raise ValueError(
            f"{described(str(path))} has {len(content)} bytes, too short for sequences of {length}: "
            f"give a file of at least {10 * length + 1} bytes, a tenth of it to test with, or a smaller length"
        )
    everything = torch.frombuffer(bytearray(content), dtype=torch.uint8).long()
    parts: list[torch.Tensor] = []
    for part in (everything[:n_train], everything[n_train:]):
        n_kept = (len(part) - 1) // length * length
        # Copies: inputs and targets are views of the same bytes otherwise, and who changes one changes both.
        parts += [part[first : first + n_kept].reshape(-1, length).clone() for first in (0, 1)]
    return Dataset(*parts)


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
    check_whole("the seed of mnist1d", seed, 0, LARGEST_MNIST1D_SEED)
    path = data_folders()[0] / "mnist1d" / f"{version('mnist1d')}-seed{seed}.npz"
    try:
        return _read_mnist1d(path)
    except Damaged as error:
        set_aside(error.path, f"{error.path} does not hold MNIST-1D ({error.__cause__}) and is made anew")
    except OSError:  # There is none, or it cannot be opened.
        pass
    dataset = _generate_mnist1d(seed)
    try:
        _save(dataset, path)
    except OSError:
        return dataset  # A home that cannot be written to costs a second at each load, nothing else.
    return dataset


def _read_mnist1d(path: Path) -> Dataset:
    """What `_save` wrote. Raises Damaged where it is anything else."""
    settings = _mnist1d_settings()
    n_train = int(settings.num_samples * settings.train_split)
    lengths = {"train": n_train, "test": settings.num_samples - n_train}
    # Given a path, numpy leaves the file of a truncated archive open.
    with path.open("rb") as stream:
        try:
            with np.load(stream) as stored:
                arrays = {field.name: stored[field.name] for field in fields(Dataset)}
            for name, array in arrays.items():
                part, what = name.split("_")
                shape = (lengths[part], settings.final_seq_length) if what == "inputs" else (lengths[part],)
                kind = np.float32 if what == "inputs" else np.int64
                if array.shape != shape or array.dtype != kind:
                    raise ValueError(f"{name} is {described(array)}, not of shape {shape} and {kind.__name__}")
            return _dataset(**arrays)
        except Exception as error:  # Whatever NumPy and the archive's reader say of a file that is damaged.
            raise Damaged(path, "does not hold MNIST-1D") from error


def _mnist1d_settings() -> SimpleNamespace:
    from mnist1d.data import get_dataset_args

    return get_dataset_args()


def _generate_mnist1d(seed: int) -> Dataset:
    from mnist1d.data import make_dataset

    settings = _mnist1d_settings()
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
    # Two processes may write the same file at once: each writes a temporary file, and the last rename wins.
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
