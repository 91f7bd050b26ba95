"""A cell is computed by one thread, of torch's and of each BLAS, wherever it is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import scipy.linalg  # noqa: F401  SciPy has a BLAS of its own, beside NumPy's.
import torch
from threadpoolctl import threadpool_limits

from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell
from tests.unit.results.small_cells import threads


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cell_has_one_thread(workers: int, tmp_path: Path) -> None:
    with threadpool_limits(2, user_api="blas"):
        found = run_cells(
            [Cell("one", threads, {}), Cell("as_it_is", threads, {}, threads=None)], tmp_path, workers=workers
        )
        assert len(found["one"]["threads"]) >= 2
        assert set(found["one"]["threads"].values.tolist()) == {1}
        if workers == 1:
            assert set(found["as_it_is"]["threads"].values[1:].tolist()) == {2}
            assert found["as_it_is"]["threads"].values[0] == torch.get_num_threads()
