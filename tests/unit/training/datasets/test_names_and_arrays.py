"""Names, seeds and arrays that are no data set are refused."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from fganalysis.training.datafiles import SOURCES
from fganalysis.training.datasets import GENERATED, Dataset, load


def test_an_unknown_name_lists_the_known_ones() -> None:
    known = ", ".join([*GENERATED, *SOURCES, "text"])
    assert known == "mnist1d, digits, fashion_mnist, mnist, cifar10, text"
    with pytest.raises(ValueError, match=f"^unknown dataset 'iris', known are {known}$"):
        load("iris")


def test_a_seed_without_a_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^mnist comes with its own split, so seed must be 0, got 1$"):
        load("mnist", seed=1)


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
