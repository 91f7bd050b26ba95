"""The cost of a step: a tiny run, and what its page makes of known times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from fganalysis.estimators import ESTIMATORS, label, resolve
from studies import step_cost


def test_every_estimator_that_can_train_is_timed() -> None:
    timed = {label(resolve(one)).split("(")[0] for one in step_cost.STEPS.values()}
    assert set(ESTIMATORS) - timed == set()
    assert {step_cost.MLP_HEAD, step_cost.CNN_HEAD, step_cost.PROJECTED, step_cost.PRECONDITIONED} <= set(
        step_cost.STEPS
    )
    assert {*step_cost.WHY, *step_cost.FAST, *step_cost.SLOW} <= set(step_cost.STEPS)
    assert step_cost.Settings().slow_rounds >= 3


def test_a_tiny_run_times_every_step_and_writes_its_page(tmp_path: Path) -> None:
    settings = step_cost.Settings(
        widths=(16,), batch=64, rounds=2, slow_rounds=1, slow_examples=8, out=tmp_path, page=tmp_path / "page"
    )
    dataset = step_cost.main(settings)
    seconds = dataset["seconds"].sel(width=16)
    taken = seconds.notnull().sum("round")
    assert all(int(taken.sel(gradient=name)) == (1 if name in step_cost.SLOW else 2) for name in step_cost.STEPS)
    np.testing.assert_array_equal(dataset["ratio"].sel(gradient="backpropagation"), 1)
    assert (tmp_path / "page" / "step_cost.md").read_text() == (tmp_path / "step_cost.md").read_text()


def test_slow_steps_are_timed_on_some_examples_and_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that every example moves on by a second: 8 examples, times 8, are the batch of 64."""
    clock = [0.0]

    def step(estimator: object, width: int, inputs: torch.Tensor, targets: torch.Tensor) -> Callable[[], None]:
        def run() -> None:
            clock[0] += len(inputs)

        return run

    monkeypatch.setattr(step_cost, "_step", step)
    monkeypatch.setattr(step_cost.time, "perf_counter", lambda: clock[0])
    settings = step_cost.Settings(widths=(16,), batch=64, rounds=2, slow_rounds=1, slow_examples=8)
    before = clock[0]
    seconds = step_cost._measure(settings, 16)
    assert np.nanmin(seconds) == np.nanmax(seconds) == 64
    fast = len(step_cost.STEPS) - len(step_cost.SLOW)
    assert clock[0] - before == fast * 64 * 3 + len(step_cost.SLOW) * 8  # The fast ones are warmed by a step.


def known(times: dict[str, list[float]], other: float = 1.0, widths: tuple[int, ...] = (512,)) -> xr.Dataset:
    """Two rounds in which backpropagation takes 1 and 2 s, and what is not told ``other`` times that."""
    names = list(step_cost.STEPS)
    found = np.array([[1.0, 2.0]] * len(names)) * other
    found[names.index("backpropagation")] = [1, 2]
    for name, values in times.items():
        found[names.index(name)] = values
    dataset = xr.Dataset(
        {"seconds": (("width", "gradient", "round"), np.stack([found] * len(widths)))},
        coords={"width": list(widths), "gradient": names},
        attrs={"batch": 512, "threads": 1, "torch": "0", "slow_examples": 64},
    )
    dataset["ratio"] = dataset["seconds"] / dataset["seconds"].sel(gradient="backpropagation")
    return dataset


def test_ratios_are_taken_round_by_round() -> None:
    """The machine is twice as slow in the second round: the ratio is 20 in both, and of the medians it is not asked."""
    page = step_cost.page(known({step_cost.EXACT: [20, 40]}))
    assert "20.0 × faster (orthogonal (W̃⊥), Krylov; the fastest round with an SVD over its slowest is 10.0 ×)" in page
    assert "| orthogonal (W̃⊥), SVD of every example* | 3e+04 (2e+04–4e+04) | 20 (20–20) | 2 | – | – |" in page
    assert "Steps with * are timed on 64 examples and multiplied by 8" in page
    assert "| 512 | upstream (W̃ᵀ) | 0.65 | 1.5 |" in page


def test_the_page_says_that_the_bounds_hold_where_they_do() -> None:
    page = step_cost.page(known({step_cost.EXACT: [15, 30]}))
    assert "at least 15 × faster than with an SVD of every example holds, by the median" in page
    assert "every other step costs at most 3 backpropagation steps holds too." in page
    assert "| orthogonal (W̃⊥), Krylov | 1500 (1000–2000) | 1 (1–1) | 2 | SVD at least 15 × slower | yes |" in page
    assert "| weight | 1500 (1000–2000) | 1 (1–1) | 2 | at most 3 × | yes |" in page
    assert "bound" not in step_cost.page(known({}, widths=(128,)))  # Asked for at width 512 alone.


def test_the_page_names_what_breaks_its_bound_and_says_why() -> None:
    page = step_cost.page(
        known(
            {
                step_cost.EXACT: [20, 40],
                "orthogonal (W̃⊥), Krylov": [2, 4],
                "weight": [4, 8],
                step_cost.MLP_HEAD: [12, 24],
            }
        )
    )
    assert "SVD of every example does not hold for orthogonal (W̃⊥), Krylov, by the" in page
    assert "at most 3 backpropagation steps holds but for these:" in page
    assert f"- local loss, MLP head, 12 ×: {step_cost.WHY[step_cost.MLP_HEAD]}." in page
    assert "- weight, 4 ×: no reason is known." in page
    assert "\n- activity" not in page


def test_the_page_says_where_newton_schulz_is_slower_than_the_decomposition() -> None:
    slower = step_cost.page(known({step_cost.EXACT: [20, 40], step_cost.NEWTON_SCHULZ: [30, 60]}, widths=(128,)))
    assert "At width 128 W̃⊥-NS is 1.5 × slower here than an SVD of every example; in the paper 6.7 × faster." in slower
    assert "W̃⊥-NS does not spare time on every machine" in slower
    faster = step_cost.page(known({step_cost.EXACT: [20, 40], step_cost.NEWTON_SCHULZ: [10, 20]}, widths=(128,)))
    assert "At width 128 W̃⊥-NS is 2 × faster here" in faster and "on every machine" not in faster
