"""How many threads share the arithmetic of a cell: one, since how many share a sum changes its last digit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def at_most(limit: int | None) -> Iterator[None]:
    """So many threads of torch, and of the BLAS of NumPy and SciPy, in this process; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if limit is None else limit)
    try:
        with threadpool_limits(limit, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """The environment of a process whose libraries read their number of threads when they are first loaded."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(dict.fromkeys(VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
