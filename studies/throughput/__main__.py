"""How fast is a guess? Against merely drawing its noise, a loop of torch.func.jvp, and vmap(jvp); and W̃⊥ against SVD.

Everything is measured side by side in one run: in each round every contender is timed once, in turn, and the medians of
the rounds and the median of the round-by-round ratios are reported.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, WeightPerturbation
from fganalysis.measuring.sample import default_block_size
from fganalysis.results import store
from studies.kit import command_line
from studies.kit.command_line import Device

CONTENDERS = ("sample", "draw", "jvp_loop", "vmap_jvp")


@dataclass(frozen=True)
class Settings:
    """Time per guess over all layers, with every scalar metric, on an MLP of three hidden layers."""

    widths: tuple[int, ...] = (128, 512, 2048)
    """Widths of the hidden layers."""
    batch: int = 128
    """Examples in the batch."""
    rounds: int = 5
    """Interleaved repeats; medians are reported."""
    seconds: float = 3.0
    """At least how long the sampler runs in one round, so that it draws thousands of guesses; the others a third."""
    svd_width: int = 512
    """Width at which the directions of W̃⊥ (k=10) are timed against LAPACK's SVD of every example."""
    device: Device = "cpu"
    """Where the guesses are made."""
    memory: int = 2**30
    """Bytes of working space for the sampler."""
    out: Path = Path("results/throughput")
    """Where the result goes."""

    def __post_init__(self) -> None:
        command_line.check(self)


def main(settings: Settings) -> xr.Dataset:
    results = [
        _measure(_snapshot(width, settings), key, settings).expand_dims(width=[width], estimator=[key])
        for width in settings.widths
        for key in ("activity", "weight")
    ]
    dataset = xr.combine_by_coords([r.to_dataset(name="seconds_per_guess") for r in results])
    assert isinstance(dataset, xr.Dataset)
    dataset["seconds_per_guess"].attrs = {"units": "s", "long_name": "wall time per guess"}
    directions = _measure_directions(_snapshot(settings.svd_width, settings), settings)
    dataset["directions_seconds"] = directions
    dataset.attrs |= {
        "device": _device_name(settings.device),
        "threads": torch.get_num_threads(),
        "batch": settings.batch,
        "svd_width": settings.svd_width,
    }
    _print(dataset)
    store.write(dataset, settings.out / "throughput.nc")
    return dataset


def _snapshot(width: int, settings: Settings) -> Snapshot:
    network = fga.networks.mlp([40, width, width, width, 10], bias=False, seed=0).to(settings.device)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(settings.batch, 40, generator=generator).to(settings.device)
    targets = torch.randint(0, 10, (settings.batch,), generator=generator).to(settings.device)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, targets)


def _measure(snapshot: Snapshot, key: str, settings: Settings) -> xr.DataArray:
    """Seconds per guess, (contender, round)."""
    estimator = fga.estimators.resolve(key)
    contenders = _contenders(snapshot, estimator, settings)
    shares = {name: 1.0 if name == "sample" else 1 / 3 for name in contenders}
    sizes = {
        name: _calibrated(run, shares[name] * settings.seconds, settings.device) for name, run in contenders.items()
    }
    times = np.empty((len(contenders), settings.rounds))
    for repeat in range(settings.rounds):
        for row, (name, run) in enumerate(contenders.items()):
            times[row, repeat] = _timed(run, sizes[name], settings.device) / sizes[name]
    return xr.DataArray(times, dims=("contender", "round"), coords={"contender": list(contenders)})


def _contenders(snapshot: Snapshot, estimator: Estimator, settings: Settings) -> dict[str, Callable[[int], object]]:
    """What is compared; each is a function of the number of guesses."""
    device = snapshot.outputs.device
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        numbers = estimator(snapshot, 1, generator).numbers_per_guess()
    block = default_block_size(numbers)

    def sample(n_guesses: int) -> object:
        return fga.sample(snapshot, estimator, n_guesses=max(n_guesses, 2), memory=settings.memory)

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


def _measure_directions(snapshot: Snapshot, settings: Settings) -> xr.DataArray:
    """Seconds to find every example's ten leading directions, over all upstream Jacobians, (method, round)."""

    def all_examples(exact: bool) -> Callable[[int], object]:
        return lambda _: [jacobian.singular_vectors(10, exact=exact) for jacobian in snapshot.upstream]

    all_examples(False)(1)
    times = np.array(
        [
            [_timed(all_examples(exact), 1, settings.device) for exact in (False, True)]
            for _ in range(min(settings.rounds, 3))
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
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device != "cpu" else "cpu"


def _print(dataset: xr.Dataset) -> None:
    times = dataset["seconds_per_guess"]
    print(f"{'width':>6} {'estimator':>10} {'ms/guess':>9} {'/ draw':>8} {'jvp loop /':>11} {'vmap(jvp) /':>12}")
    for width in dataset["width"].values:
        for key in dataset["estimator"].values:
            own = times.sel(width=width, estimator=key)
            sample = own.sel(contender="sample")
            ratios = {name: statistics.median((own.sel(contender=name) / sample).values) for name in CONTENDERS}
            slower = statistics.median((sample / own.sel(contender="draw")).values)
            print(
                f"{width:>6} {key:>10} {float(sample.median()) * 1e3:>9.3f} {slower:>8.2f} "
                f"{ratios['jvp_loop']:>11.1f} {ratios['vmap_jvp']:>12.1f}"
            )
    finder, lapack = (dataset["directions_seconds"].sel({"method": m}) for m in ("range_finder", "lapack"))
    print(
        f"W⊥ directions, k=10, width {dataset.attrs['svd_width']}: range finder {float(finder.median()):.3f} s, "
        f"LAPACK {float(lapack.median()):.2f} s, ratio {float((lapack / finder).median()):.1f}"
    )


if __name__ == "__main__":
    command_line.run(Settings, main, __doc__)
