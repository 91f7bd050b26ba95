"""docs/your_own_gradients.md: its cases run as printed, and say what the page says."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fganalysis as fga
from tests.unit.measuring.measure.laws import GRADIENT, VARIANCE, with_numpy, with_torch

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "your_own_gradients.md").read_text(encoding="utf-8")
BANDIT, CIRCUIT, HARDWARE, JAX = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
LINES = 120


def run(*blocks: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "pasted"}
    exec(compile("\n".join(blocks), "your_own_gradients.md", "exec"), names)
    return names


def inside(at: Any, name: str, truth: float) -> bool:
    return bool(at[name + "_low"] <= truth <= at[name + "_high"])


def test_no_line_of_the_page_is_too_long_to_read() -> None:
    assert max(map(len, PAGE.splitlines())) <= LINES


def test_a_policy_gradient(capsys: pytest.CaptureFixture[str]) -> None:
    names = run(BANDIT)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["reinforce", "with_baseline", "batch_mean"]
    variances = [float(line.split()[-1]) for line in lines[:3]]
    policy, rewards, gradient = names["policy"], names["rewards"], names["truth"]["theta"]
    lengths = ((np.eye(4) - policy) ** 2).sum(1)
    for variance, baseline in zip(variances, (0.0, names["value"]), strict=False):
        exact = policy @ ((rewards - baseline) ** 2 * lengths) - gradient @ gradient
        assert variance == pytest.approx(exact, rel=0.1)
    assert variances[1] < 0.4 * variances[0]  # "takes most of the variance away"
    assert "is biased in parameter space" in lines[3] and "most evident along the gradient" in lines[3]
    low, high = map(float, re.findall(r"times it, between ([\d.]+\d) and ([\d.]+\d)", lines[3])[0])
    assert low < 1 - 1 / 8 < high < 1


def test_a_quantum_circuit_and_one_without_expectations() -> None:
    names = run(CIRCUIT, HARDWARE)
    theta, expectation, gradient = names["theta"], names["expectation"], names["truth"]["theta"]
    for place in range(4):
        step = 1e-6 * np.eye(4)[place]
        difference = (expectation(theta + step) - expectation(theta - step)) / 2e-6
        assert gradient[place] == pytest.approx(difference, abs=1e-8)
    values = [expectation(theta + sign * names["shifts"]) for sign in (1, -1)]
    variance = sum(float((1 - value**2).sum()) for value in values) / 4
    assert inside(names["shift"], "bias", 0.0) and inside(names["shift"], "variance", variance)
    # SPSA by all sixteen signs.
    signs = np.array([[1 - 2 * (number >> place & 1) for place in range(4)] for number in range(16)])
    up, down = (expectation(theta + sign * 0.5 * signs) for sign in (1, -1))
    mean = ((up - down)[:, None] * signs).mean(0)
    bias = float(np.linalg.norm(mean - gradient))
    second = 4 * float((2 - 2 * up * down).mean())  # (o₊ − o₋)² of outcomes ±1, four entries of one
    assert bias > 0.05
    for at in (names["moved"], names["compared"]):
        assert inside(at, "bias", bias) and inside(at, "variance", second - float(mean @ mean))
    assert float(names["moved"]["bias_low"]) > 0


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed: its draws are not run")
def test_a_function_in_jax_and_the_law_of_numpy_and_torch_in_jax() -> None:
    command = [sys.executable, "-m", "tests.unit.measuring.measure.in_jax"]
    process = subprocess.run(command, input=JAX, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout[process.stdout.rindex('{"page"') :])
    page, in_jax = found["page"], found["law"]
    assert inside(page, "bias", 0.0)
    assert inside(page, "variance", 9 * page["gradient_norm"] ** 2)
    assert inside(in_jax, "bias", 0.0) and inside(in_jax, "variance", VARIANCE)
    for draw, generator in ((with_numpy, "numpy"), (with_torch, "torch")):
        other = fga.measure(draw, GRADIENT, seed=1, generator=generator).sel(space="parameter", layer="all")
        for name in ("shrinkage", "variance", "cosine", "efficiency"):
            error = float(np.hypot(in_jax[name + "_se"], other[name + "_se"]))
            assert abs(in_jax[name] - float(other[name])) < 3.5 * error
            assert error < 0.1 * in_jax[name]
