"""The cost of a step: a tiny run, and what its page makes of known times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch.utils.flop_counter import FlopCounterMode

import fganalysis as fga
from fganalysis.estimators import ESTIMATORS, resolve
from fganalysis.estimators.local import heads
from fganalysis.estimators.upstream.newton_schulz_polynomials import apply
from fganalysis.training import timing
from studies.step_cost import __main__ as step_cost
from studies.step_cost import arithmetic, cells, page


def test_every_step_that_is_timed_is_that_of_an_estimator_of_the_table() -> None:
    assert {type(resolve(step)) for step in cells.STEPS.values()} <= set(ESTIMATORS.values())
    assert {cells.MLP_HEAD, cells.CNN_HEAD, cells.PROJECTED, cells.PRECONDITIONED} <= set(cells.STEPS)
    assert {*page.LARGE_HEADS, *page.SMALL_HEADS, *page.FAST, *cells.SLOW} <= set(cells.STEPS)
    assert step_cost.Settings().slow_rounds >= 3


def test_a_tiny_run_times_every_step_and_writes_its_page(tmp_path: Path) -> None:
    settings = step_cost.Settings(
        widths=(16,), batch=64, rounds=2, slow_rounds=1, slow_examples=8, out=tmp_path, page=tmp_path / "page"
    )
    dataset = step_cost.main(settings)
    seconds = dataset["seconds"].sel(width=16)
    taken = seconds.notnull().sum("round")
    assert all(int(taken.sel(gradient=name)) == (1 if name in cells.SLOW else 2) for name in cells.STEPS)
    np.testing.assert_array_equal(dataset["ratio"].sel(gradient="backpropagation"), 1)
    assert (tmp_path / "page" / "step_cost.md").read_text(encoding="utf-8") == page.page(dataset)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["step_cost.nc"]


def test_slow_steps_are_timed_on_some_examples_and_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that every example moves on by a second: 8 examples, times 8, are the batch of 64."""
    clock = [0.0]

    def step(estimator: object, width: int, inputs: torch.Tensor, targets: torch.Tensor) -> Callable[[], None]:
        def run() -> None:
            clock[0] += len(inputs)

        return run

    monkeypatch.setattr(cells, "_step", step)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    before = clock[0]
    seconds = cells.measure(16, batch=64, rounds=2, slow_rounds=1, slow_examples=8)
    assert np.nanmin(seconds) == np.nanmax(seconds) == 64
    fast = len(cells.STEPS) - len(cells.SLOW)
    assert clock[0] - before == fast * 64 * 3 + len(cells.SLOW) * 8  # The fast ones are warmed by a step.


def known(times: dict[str, list[float]], other: float = 1.0, widths: tuple[int, ...] = (512,)) -> xr.Dataset:
    """Two rounds in which backpropagation takes 1 and 2 s, and what is not told ``other`` times that."""
    names = list(cells.STEPS)
    found = np.array([[1.0, 2.0]] * len(names)) * other
    found[names.index("backpropagation")] = [1, 2]
    for name, values in times.items():
        found[names.index(name)] = values
    dataset = xr.Dataset(
        {"seconds": (("width", "gradient", "round"), np.stack([found] * len(widths)))},
        coords={"width": list(widths), "gradient": names},
        attrs={"batch": 512, "threads": 1, "device": "a CPU", "torch": "0", "slow_examples": 64},
    )
    dataset["ratio"] = dataset["seconds"] / dataset["seconds"].sel(gradient="backpropagation")
    return dataset


def test_ratios_are_taken_round_by_round() -> None:
    """The machine is twice as slow in the second round: the ratio is 20 in both, and of the medians it is not asked."""
    text = page.page(known({cells.EXACT: [20, 40]}))
    assert "20.0 × faster (orthogonal (W̃⊥), Krylov; the fastest round with an SVD over its slowest is 10.0 ×)" in text
    assert "| orthogonal (W̃⊥), SVD of every example* | 3e+04 (2e+04–4e+04) | 20 (20–20) | 2 | – | – |" in text
    assert "Steps with * are timed on 64 examples and multiplied by 8" in text
    assert "| 512 | upstream (W̃ᵀ) | 0.65 | 1.5 |" in text


def test_the_page_says_that_the_bounds_hold_where_they_do() -> None:
    text = page.page(known({cells.EXACT: [15, 30]}))
    assert "at least 15 × faster than with an SVD of every example holds, by the median" in text
    assert "every other step costs at most 3 backpropagation steps holds too." in text
    assert "| orthogonal (W̃⊥), Krylov | 1500 (1000–2000) | 1 (1–1) | 2 | SVD at least 15 × slower | yes |" in text
    assert "| weight | 1500 (1000–2000) | 1 (1–1) | 2 | at most 3 × | yes |" in text
    assert "bound" not in page.page(known({}, widths=(128,)))  # Asked for at width 512 alone.


def test_the_page_names_what_breaks_its_bound_and_says_why() -> None:
    text = page.page(
        known(
            {
                cells.EXACT: [20, 40],
                "orthogonal (W̃⊥), Krylov": [2, 4],
                "weight": [4, 8],
                cells.MLP_HEAD: [12, 24],
                cells.NEWTON_SCHULZ: [300, 600],
                cells.PROJECTED: [4, 8],
            }
        )
    )
    assert "SVD of every example does not hold for orthogonal (W̃⊥), Krylov, by the" in text
    assert "at most 3 backpropagation steps holds except for these:" in text
    assert "- local loss, MLP head, 3 × 1024, 12 ×: a forward pass through its heads takes 7.9 million" in text
    assert "the network 0.55 million. Forward and back to the blocks, the heads take 9.7 backpropagation steps" in text
    assert "- Newton–Schulz (W̃⊥-NS), 300 ×: it takes a polynomial of degree 16807 of every example's" in text
    assert "and 82.3 by 511 such products, without which no polynomial of J takes given values at 256 singular" in text
    assert "4 ×: it draws ten directions of all weights" in text
    assert "- weight, 4 ×: no reason is known." in text
    assert "\n- activity" not in text


def test_the_page_says_whether_small_heads_keep_the_bound() -> None:
    exact = {cells.EXACT: [20.0, 40.0]}
    kept = page.page(known({**exact, cells.CNN_HEAD: [9, 18]}))
    assert "convolutions of so few channels run far below the speed of matrix products." in kept
    assert "keep the bound, MLP head, 3 × 128 (1 ×) and CNN head, 4 channels (1 ×)." in kept
    broken = page.page(known({**exact, cells.CNN_HEAD: [9, 18], cells.SMALL_CNN: [4, 8]}))
    assert "Heads smaller than the network do not all keep the bound: MLP" in broken
    assert "smaller than the network" not in page.page(known({**exact, cells.SMALL_CNN: [4, 8]}))


def test_multiply_adds_are_those_of_the_modules_themselves() -> None:
    """Counted by torch as it runs them, at 2 operations a multiply-add."""
    width = 32
    network = fga.networks.mlp(arithmetic.sizes(width), bias=False, seed=0)
    inputs, targets = torch.randn(5, 40), torch.zeros(5, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        network(inputs)
    assert counter.get_total_flops() == 2 * 5 * arithmetic.network(width)
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.cross_entropy(network(inputs), targets).backward()
    assert counter.get_total_flops() == 2 * 5 * arithmetic.backpropagation(width)
    for kind, head_width in (("mlp", 16), ("cnn", 4), ("linear", None)):
        (shapes, block) = heads.shapes_of(kind, width, 10, head_width, "0"), torch.rand(5, width)
        head = [tensor[0] for tensor in heads.drawn(shapes, 1, torch.Generator(), torch.zeros(0))]
        with FlopCounterMode(display=False) as counter:
            heads.outputs_of(head, block)
        assert 3 * counter.get_total_flops() == 2 * 5 * arithmetic.all_heads(kind, head_width, width)


def test_newton_schulz_multiplies_as_counted_and_fewer_products_leave_it_out_of_reach() -> None:
    width, n_examples = 32, 3
    with FlopCounterMode(display=False) as counter:
        for above, live in arithmetic.jacobians(width):
            apply(torch.ones(n_examples, 4), torch.rand(n_examples, above, live))
    counted = counter.get_total_flops() / (2 * n_examples * arithmetic.backpropagation(width))
    assert counted == pytest.approx(arithmetic.newton_schulz(width)["matrices"])
    # An odd polynomial through the values at r singular values: 2r − 1 is the degree, and one less misses.
    values = np.linspace(0.2, 1, 4)
    wanted = np.where(values > 0.5, 1.0, 0.1)
    powers = values[:, None] ** np.arange(1, arithmetic.fewest_products(9, 4) + 1, 2)
    np.testing.assert_allclose(powers @ np.linalg.lstsq(powers, wanted)[0], wanted)
    assert np.abs(powers[:, :-1] @ np.linalg.lstsq(powers[:, :-1], wanted)[0] - wanted).max() > 1e-2


def test_the_page_says_where_newton_schulz_is_slower_than_the_decomposition() -> None:
    slower = page.page(known({cells.EXACT: [20, 40], cells.NEWTON_SCHULZ: [30, 60]}, widths=(128,)))
    assert "At width 128 W̃⊥-NS is 1.5 × slower here than an SVD of every example; in the paper 6.7 × faster." in slower
    assert "W̃⊥-NS does not save time on every machine" in slower
    faster = page.page(known({cells.EXACT: [20, 40], cells.NEWTON_SCHULZ: [10, 20]}, widths=(128,)))
    assert "At width 128 W̃⊥-NS is 2 × faster here" in faster and "on every machine" not in faster
