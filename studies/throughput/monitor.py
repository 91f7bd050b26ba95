"""What a monitor costs in a training loop: a measurement in steps of the training.

In each round some training steps and then one measurement are timed, so that both see the same state of the machine. On
the CPU times are those of one processor, which other programs do not lengthen.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import xarray as xr

from studies.kit.devices import finished
from studies.throughput import monitor_budget
from studies.throughput.monitored import GUESSES, NAMES, NETWORKS, WATCHED, clock_of, training
from studies.throughput.steps import case

EVERY = 100
SHARE = 0.05  # Of the training time, for which the steps between measurements are given.
MOST_ROUNDS_WRITTEN_OUT = 3  # A measurement of activity perturbation takes seconds.
STEPS = 5  # Timed before each measurement.


def measure(device: str, rounds: int, small: bool) -> xr.Dataset:
    """Seconds of a step and of a measurement, (network, watched, round)."""
    clock = clock_of(device)
    shape = (len(NETWORKS), len(WATCHED), rounds)
    steps, measurements = np.full(shape, np.nan), np.full(shape, np.nan)
    for row, name in enumerate(NETWORKS):
        step, monitor_of, batch = training(name, device, small)
        for column, watched in enumerate(WATCHED.values()):
            monitor = monitor_of(watched, every=1)
            step()
            monitor.step(*batch)  # The first has checks that the others have not.
            for repeat in range(min(rounds, MOST_ROUNDS_WRITTEN_OUT) if watched.written_out else rounds):
                start = clock()
                for _ in range(STEPS):
                    step()
                finished(device)
                middle = clock()
                monitor.step(*batch)
                finished(device)
                steps[row, column, repeat] = (middle - start) / STEPS
                measurements[row, column, repeat] = clock() - middle
    over = ("network", "watched", "round")
    made = {
        "step_seconds": (over, steps, "s", "time of a training step"),
        "measurement_seconds": (over, measurements, "s", "time of a measurement of the monitor"),
    }
    return xr.Dataset(
        {
            name: (dims, values, {"units": units, "long_name": words})
            for name, (dims, values, units, words) in made.items()
        },
        coords={"network": list(NETWORKS), "watched": list(WATCHED)},
        attrs={f"words_{n}": case(n, small=small).words.replace(" in evaluation mode,", "") for n in NETWORKS},
    )


def values(dataset: xr.Dataset) -> dict[str, object]:
    """What the template names."""
    in_steps = dataset["measurement_seconds"] / dataset["step_seconds"]
    rows = []
    for network, watched in itertools.product(NETWORKS, WATCHED):
        at = {"network": network, "watched": watched}
        own = in_steps.sel(at)
        rows.append(
            [
                NAMES[network],
                watched,
                f"{1e3 * float(dataset['step_seconds'].sel(at).median()):.1f}",
                f"{1e3 * float(dataset['measurement_seconds'].sel(at).median()):.0f}",
                f"{float(own.median()):.1f}",
                f"{float(own.min()):.1f} to {float(own.max()):.1f}",
                f"{100 * float(own.median()) / EVERY:.1f} %",
                f"{_steps_between(float(own.median()))}",
            ]
        )
    middle = in_steps.median("round")
    pairs = {
        f"{n}_{w}".replace(",", "").replace(" ", "_"): float(middle.sel(network=n, watched=w))
        for n, w in itertools.product(NETWORKS, WATCHED)
    }
    return {
        "settings": dataset.attrs,
        "every": EVERY,
        "guesses": GUESSES,
        "kept": f"{100 * SHARE:.0f} %",
        "steps": STEPS,
        "written_out": min(int(dataset.attrs["rounds"]), MOST_ROUNDS_WRITTEN_OUT),
        "rows": rows,
        "share": {pair: 100 * value / EVERY for pair, value in pairs.items()},
        "between": {pair: _steps_between(value) for pair, value in pairs.items()},
        "described": "; and a ".join(str(dataset.attrs[f"words_{network}"]) for network in NETWORKS),
        **monitor_budget.values(dataset),
    }


def _steps_between(in_steps: float) -> int:
    """Steps from one measurement to the next with which it takes the share of the training time, rounded up to tens."""
    return 10 * math.ceil(in_steps / SHARE / 10)
