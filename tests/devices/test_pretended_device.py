"""Every path of the package on a pretended accelerator, in a process of its own: see tests/devices/paths.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fganalysis as fga
from tests.devices.paths import CELLS, MISTAKES, paths

ROOT = Path(__file__).resolve().parents[2]
NAMES = list(paths())
MESSAGES = {
    "noise": "Expected all tensors to be on the same device",
    "generator": "Expected a 'pretended' device type for generator but found 'cpu'",
    "draw": "Expected a 'cpu' device type for generator but found 'pretended'",
    "numpy": "can't convert pretended:0 device type tensor to numpy",
}


@pytest.fixture(scope="module")
def lines() -> dict[str, Any]:
    """What the process printed, by path."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.devices.paths"], cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return {line["path"]: line for line in map(json.loads, process.stdout.splitlines())}


@pytest.mark.parametrize("name", NAMES)
def test_a_path_makes_no_tensor_on_the_wrong_device_and_gives_the_numbers_of_the_cpu(
    name: str, lines: dict[str, Any]
) -> None:
    assert lines[name]["error"] == ""


@pytest.mark.parametrize("key", fga.estimators.ESTIMATORS)
def test_the_host_waits_once_in_a_block_of_guesses(key: str, lines: dict[str, Any]) -> None:
    # It asks whether any guess is beyond single precision; scalars and sums stay on the device until the end. The
    # differences of losses are asked whether they are finite and not all zero, as that is refused. Guesses of zero, as
    # those of feedback that is not learnt yet, are made again in double precision.
    asked = {"finite_difference": {"item": 1, "copy to the CPU": 1}}
    asked["forward_direct_feedback"] = {"item": 1, "nonzero": 1, "copy to the CPU": 1}
    # Of products of thin matrices no size is asked. The default scales are norms.
    factored = ("row_sampling", "row_sketch", "input_sketch", "random_projection", "gradient_projection")
    asked |= {key: {} for key in (*factored, "low_rank", "random_subspace")}
    asked["scaled"] = {"item": 3}
    waits = {kind: count for kind, count in lines[f"block {key}"]["waits"].items() if count}
    assert waits == asked.get(key, {"item": 1})


def test_the_cells_of_studies_are_computed_on_the_device_that_they_are_given(lines: dict[str, Any]) -> None:
    assert not [name for name in CELLS if not sum(lines[f"cell of {name}"]["waits"].values())]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught(mistake: str, lines: dict[str, Any]) -> None:
    assert MESSAGES[mistake] in lines[f"mistake: {mistake}"]["error"]
