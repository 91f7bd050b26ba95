"""The trapezoidal rule in the logarithm on integrals that are known."""

from __future__ import annotations

import numpy as np
import pytest

from theory.quadrature import log_nodes, log_trapezoid


def test_nodes_are_equally_spaced_and_reach_the_end() -> None:
    np.testing.assert_allclose(log_nodes(-1.0, 1.0, 0.5), [-1.0, -0.5, 0.0, 0.5, 1.0])
    assert log_nodes(-1.0, 1.1, 0.5)[-1] == 1.5


@pytest.mark.parametrize("step", [0.1, 0.25])
def test_known_integrals(step: float) -> None:
    u = np.exp(log_nodes(-20.0, 20.0, step))
    assert log_trapezoid(u * np.exp(-u), step) == pytest.approx(1.0, rel=1e-9)
    # Falls off as u^(−½): the sum itself ends 5e-5 short, the series for the rest makes it good.
    slow = u * (1 + u) ** -1.5
    assert log_trapezoid(slow, step) == pytest.approx(2.0, rel=1e-9)
    assert abs(step * slow.sum() / 2.0 - 1) > 2e-5


def test_the_error_falls_exponentially_with_the_step() -> None:
    errors = []
    for step in (1.0, 0.5):
        u = np.exp(log_nodes(-40.0, 40.0, step))
        errors.append(abs(float(log_trapezoid(np.sqrt(u / np.pi) * np.exp(-u), step)) - 1.0))
    # e^(−π²/h), by the strip in which e^(−u) is bounded: half of the step squares the error, up to a constant.
    assert 1e-6 < errors[0] < 1e-3
    assert errors[1] < 10 * errors[0] ** 2


def test_an_end_that_does_not_fall_off_counts_for_nothing() -> None:
    values = np.array([[0.0, 1.0, 0.0], [2.0, 1.0, 2.0]])
    np.testing.assert_allclose(log_trapezoid(values, 0.5), [0.5, 2.5])
