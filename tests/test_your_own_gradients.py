"""docs/your_own_gradients.md: its cases run as printed, and say what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "your_own_gradients.md").read_text(encoding="utf-8")
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


def test_a_function_in_jax() -> None:
    pytest.importorskip("jax", reason="JAX is not installed: the case of JAX is not run")
    names = run(JAX)
    at = names["measured"].sel(space="parameter", layer="all")
    assert inside(at, "bias", 0.0)
    assert inside(at, "variance", 9 * float(at["gradient_norm"]) ** 2)
