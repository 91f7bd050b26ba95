"""The batch that a training loop gives to a monitor, itself or by a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fganalysis.arguments import check_kind, described

Batch = tuple[Any, Any] | Callable[[], tuple[Any, Any]]


class WrongBatch(ValueError):
    """What a function for the batch returned is no batch."""


def check_batch(inputs: object, targets: object) -> None:
    """Raises ValueError for what no network or loss function is called with."""
    kinds = (torch.Tensor, tuple, dict)
    check_kind("inputs", inputs, kinds, "a tensor (example, …), a tuple of arguments or a dict of keyword arguments")
    check_kind("targets", targets, (*kinds, list), "a tensor (example, …), or a tuple, list or dict of tensors")


def pair_of(batch: Any) -> tuple[Any, Any]:
    """(inputs, targets). Raises `WrongBatch` for anything else."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise WrongBatch(f"batch must be (inputs, targets), or a function that returns them, got {described(batch)}")
    try:
        check_batch(*batch)
    except ValueError as error:
        raise WrongBatch(str(error)) from None
    return batch[0], batch[1]
