"""Seconds and memory of steps, such as those of training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

Step = Callable[[], None]
Name = TypeVar("Name")


def seconds_in_turn(
    steps: Mapping[Name, Step],
    rounds: int,
    *,
    takes_part: Callable[[Name, int], bool] = lambda key, turn: True,
    before: Step = lambda: None,
    device: torch.device | None = None,
    described: str | None = None,
) -> NDArray[np.float64]:
    """Wall time of every step in every round, (step, round), seconds; NaN where a step does not take part.

    Every round runs each step once, so that a machine that slows down for a while slows all of them.

    Args:
        takes_part: whether a step, by its key, runs in a round. before: what runs before each step, outside of its
            time. device: of the steps; a GPU is waited for. described: names a progress bar; None shows none.
    """
    times = np.full((len(steps), rounds), np.nan)
    for turn in tqdm(range(rounds), desc=described, unit="round", disable=described is None):
        for row, (key, step) in enumerate(steps.items()):
            if not takes_part(key, turn):
                continue
            before()
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            times[row, turn] = time.perf_counter() - start
    return times


def peak_memory(step: Step, device: torch.device) -> int:
    """Bytes that torch holds at most during a step, above what it holds before.

    On the CPU the allocations of the thread that calls, in which backward passes run too, and not those of other
    processes or of NumPy; on a GPU those of all threads.
    """
    if device.type == "cuda":
        _wait(device)
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        _wait(device)
        return max(0, torch.cuda.max_memory_allocated(device) - held)
    now = peak = 0
    for allocated in _allocations(step):
        now += allocated
        peak = max(peak, now)
    return peak


def _allocations(step: Step) -> list[int]:
    """Bytes of each allocation of torch's on the CPU, negative ones where memory is freed.

    By the older of torch's two profilers. The newer one gives the same numbers, and prints to the terminal.
    """
    autograd: Any = torch.autograd
    on = (autograd.ProfilerState.CPU, False, True, False, False, False, torch._C._profiler._ExperimentalConfig())
    autograd._enable_profiler_legacy(autograd.ProfilerConfig(*on))
    try:
        step()
    finally:
        threads = autograd._disable_profiler_legacy()
    events = (event for of_thread in threads for event in of_thread)
    return [event.cpu_memory_usage() for event in events if event.kind() == "memory_alloc"]


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
