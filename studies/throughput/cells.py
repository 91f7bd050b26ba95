"""What `studies.throughput` times: the sampler beside what it is compared with, and W̃⊥'s directions beside LAPACK's."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, WeightPerturbation
from fganalysis.measuring.blocks import calling_thread_single
from fganalysis.measuring.direct import default_block_size
from studies.kit.devices import finished
from studies.throughput import by_law, monitor, monitor_budget, scaling, steps

CONTENDERS = ("sample", "draw", "jvp_loop", "vmap_jvp")
K = 10  # Directions of W̃⊥.
MOST_SVD_ROUNDS = 3  # A decomposition of every example takes seconds.


@dataclass(frozen=True)
class Sizes:
    """How large the batch is, how often and how long is timed, where, and with how many bytes for the sampler."""

    batch: int
    rounds: int
    seconds: float
    device: str
    memory: int


def snapshot_of(width: int, sizes: Sizes) -> Snapshot:
    return steps.case("mlp", sizes.device, width=width, batch=sizes.batch).capture()


def measure(snapshot: Snapshot, key: str, sizes: Sizes) -> xr.DataArray:
    """Seconds per guess, (contender, round)."""
    estimator = fga.estimators.resolve(key)
    contenders = _contenders(snapshot, estimator, sizes)
    shares = {name: 1.0 if name == "sample" else 1 / 3 for name in contenders}
    counts = {name: _calibrated(run, shares[name] * sizes.seconds, sizes.device) for name, run in contenders.items()}
    times = np.empty((len(contenders), sizes.rounds))
    for repeat in range(sizes.rounds):
        for row, (name, run) in enumerate(contenders.items()):
            times[row, repeat] = _timed(run, counts[name], sizes.device) / counts[name]
    return xr.DataArray(times, dims=("contender", "round"), coords={"contender": list(contenders)})


def _contenders(snapshot: Snapshot, estimator: Estimator, sizes: Sizes) -> dict[str, Callable[[int], object]]:
    """What is compared; each is a function of the number of guesses."""
    device = snapshot.device
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        numbers = estimator(snapshot, 1, generator).numbers_per_guess()
    block = default_block_size(numbers)

    def sample(n_guesses: int) -> object:
        return fga.sample(snapshot, estimator, n_guesses=max(n_guesses, 2), memory=sizes.memory)

    shapes = [
        tap.weight.shape if isinstance(estimator, WeightPerturbation) else tap.outputs.shape for tap in snapshot.taps
    ]

    def draw(n_guesses: int) -> object:
        for _ in range(-(-n_guesses // block)):
            noise = [torch.randn((block, *shape), generator=generator, device=device) for shape in shapes]
        return noise

    def jvp_loop(n_guesses: int) -> object:
        with torch.no_grad():
            return [_true_guess(snapshot, estimator, 1, generator) for _ in range(n_guesses)]

    def vmap_jvp(n_guesses: int) -> object:
        with torch.no_grad():
            at_once = min(block, n_guesses)
            return [_true_guess(snapshot, estimator, at_once, generator) for _ in range(-(-n_guesses // at_once))]

    return dict(zip(CONTENDERS, (sample, draw, jvp_loop, vmap_jvp), strict=True))


def _true_guess(snapshot: Snapshot, estimator: Estimator, n_guesses: int, generator: torch.Generator) -> tuple:
    """Guesses by a real forward-mode pass and their scalar metrics against the exact gradient."""
    forward = snapshot.remember("forward mode", lambda: _in_forward_mode(snapshot))
    guesses = estimator(forward, n_guesses, generator)
    return guesses.inner_products(snapshot)


def _in_forward_mode(snapshot: Snapshot) -> Snapshot:
    return fga.capture(snapshot.network, snapshot.loss_fn, snapshot.inputs, snapshot.targets, autodiff="forward")


def measure_directions(snapshot: Snapshot, sizes: Sizes) -> xr.DataArray:
    """Seconds to find the K leading directions of every example, over all upstream Jacobians, (method, round)."""

    def all_examples(exact: bool) -> Callable[[int], object]:
        return lambda _: [jacobian.singular_vectors(K, exact=exact) for jacobian in snapshot.upstream]

    all_examples(False)(1)
    times = np.array(
        [
            [_timed(all_examples(exact), 1, sizes.device) for exact in (False, True)]
            for _ in range(min(sizes.rounds, MOST_SVD_ROUNDS))
        ]
    ).T
    return xr.DataArray(
        times,
        dims=("method", "svd_round"),
        coords={"method": ["range_finder", "lapack"]},
        attrs={"units": "s", "long_name": "wall time to find the directions of every example and layer"},
    )


def _calibrated(run: Callable[[int], object], seconds: float, device: str) -> int:
    """How many guesses take one to two times ``seconds``; a power of two, at least 16 (with warm-up)."""
    n_guesses = 16
    run(n_guesses)
    while n_guesses < 2**16:
        spent = _timed(run, n_guesses, device)
        if spent > seconds / 2:
            return n_guesses * (2 if spent < seconds else 1)
        n_guesses *= 2
    return n_guesses


def _timed(run: Callable[[int], object], n_guesses: int, device: str) -> float:
    start = time.perf_counter()
    run(n_guesses)
    finished(device)
    return time.perf_counter() - start


def timed_steps(
    network: steps.Network,
    width: int,
    small: bool,
    blocks: int,
    device: str,
    memory: int,
    rounds: int,
    batch: int,
    threads: int,
    machine: str,
) -> xr.Dataset:
    """What `steps.measure` times, by a number of torch's threads on a machine, which the process is told beforehand."""
    timed = steps.case(network, device, width=width, batch=batch, small=small)
    dataset = steps.measure(timed, rounds, memory, blocks)
    return dataset.assign_attrs(words=timed.words, threads=threads, machine=machine)


def timed_guesses(
    width: int,
    estimator: str,
    device: str,
    memory: int,
    rounds: int,
    batch: int,
    seconds: float,
    threads: int,
    machine: str,
) -> xr.Dataset:
    """What `measure` times of one estimator at one width."""
    sizes = Sizes(batch, rounds, seconds, device, memory)
    times = measure(snapshot_of(width, sizes), estimator, sizes)
    return times.to_dataset(name="seconds_per_guess").assign_attrs(threads=threads, machine=machine)


def timed_directions(
    width: int, device: str, memory: int, rounds: int, batch: int, seconds: float, threads: int, machine: str
) -> xr.Dataset:
    """What `measure_directions` times at one width."""
    sizes = Sizes(batch, rounds, seconds, device, memory)
    times = measure_directions(snapshot_of(width, sizes), sizes)
    return times.to_dataset(name="directions_seconds").assign_attrs(threads=threads, machine=machine)


def timed_by_law(weights: tuple[int, ...], n_guesses: int, rounds: int, threads: int, machine: str) -> xr.Dataset:
    """What `by_law.measure` times."""
    return by_law.measure(weights, n_guesses, rounds).assign_attrs(threads=threads, machine=machine)


def timed_whole(n_weights: int, n_guesses: int, rounds: int, threads: int, machine: str) -> xr.Dataset:
    """What `by_law.whole` times."""
    return by_law.whole(n_weights, n_guesses, rounds).assign_attrs(threads=threads, machine=machine)


def timed_scaling(n_workers: tuple[int, ...], rounds: int, seconds: float, threads: int, machine: str) -> xr.Dataset:
    """What `scaling.measure` times."""
    return scaling.measure(tuple(n_workers), rounds, seconds).assign_attrs(threads=threads, machine=machine)


def timed_monitor(device: str, rounds: int, small: bool, threads: int, machine: str) -> xr.Dataset:
    """What `monitor.measure` times, on the CPU by one thread of torch's."""
    with calling_thread_single():
        return monitor.measure(device, rounds, small).assign_attrs(threads=threads, machine=machine)


def timed_budgets(device: str, small: bool, threads: int, machine: str) -> xr.Dataset:
    """What `monitor_budget.measure` times, on the CPU by one thread of torch's."""
    with calling_thread_single():
        return monitor_budget.measure(device, small).assign_attrs(threads=threads, machine=machine)
