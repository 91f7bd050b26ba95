"""The device of a study's cells: data on it, and when it has done its work."""

from __future__ import annotations

import torch

from fganalysis.training.datasets import Dataset


def on(device: str, data: Dataset) -> Dataset:
    """The same examples on a device."""
    arrays = (data.train_inputs, data.train_targets, data.test_inputs, data.test_targets)
    return Dataset(*(array.to(device) for array in arrays))


def finished(device: str | torch.device) -> None:
    """Waits until a GPU has done what it was given, without which its time is not that of the work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
