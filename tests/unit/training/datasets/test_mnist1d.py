"""MNIST-1D equals its package's data set, is kept in a cache, and a damaged cache is made anew."""

import random
from pathlib import Path

import mnist1d.data
import numpy as np
import pytest
import torch

from fganalysis.training.datasets import load
from tests.unit.training.datasets.tiny_files import assert_equal, assert_well_formed, flip


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


def test_mnist1d_loads_where_nothing_can_be_written(tmp_path: Path, generated: list[int]) -> None:
    (tmp_path / "mnist1d").write_text("a file where the folder would be")
    assert_well_formed(load("mnist1d"), 4000, 1000, 40)
    assert_well_formed(load("mnist1d"), 4000, 1000, 40)
    assert generated == [42, 42]
