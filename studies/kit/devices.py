"""Data on the device of a study's cells."""

from __future__ import annotations

from fganalysis.training.datasets import Dataset


def on(device: str, data: Dataset) -> Dataset:
    """The same examples on a device."""
    arrays = (data.train_inputs, data.train_targets, data.test_inputs, data.test_targets)
    return Dataset(*(array.to(device) for array in arrays))
