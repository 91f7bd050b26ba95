"""What a monitor costs in a training loop: a measurement in steps of the training, and the share that a budget keeps.

In each round some training steps and then one measurement are timed, so that both see the same state of the machine. On
the CPU times are those of one processor, which other programs do not lengthen.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import xarray as xr

import fganalysis as fga
from studies.kit.devices import finished
from studies.throughput.steps import Network, case

NETWORKS: tuple[Network, ...] = ("gpt", "resnet")
EVERY, GUESSES = 100, 64
WATCHED: dict[str, list[str]] = {
    "no estimator": [],
    "weight": ["weight"],
    "activity": ["activity"],
}
MOST_ROUNDS_WRITTEN_OUT = 3  # A measurement of activity perturbation takes seconds.
STEPS = 5  # Timed before each measurement.
BUDGET, OFTEN = 0.05, 20  # The share of a budget, and the steps between measurements that it does not allow.
BUDGET_STEPS = 200


def training(name: Network, device: str, small: bool) -> tuple[Callable[[], None], Callable[..., fga.Monitor], tuple]:
    """A training step by AdamW; what makes a monitor of the network; the batch."""
    timed = case(name, device, small=small)
    network = timed.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        timed.loss_fn(network(timed.inputs), timed.targets).backward()
        optimizer.step()

    def monitor(estimators: list[str], **settings: object) -> fga.Monitor:
        return fga.Monitor(network, timed.loss_fn, estimators, guesses=GUESSES, **settings)  # type: ignore[arg-type]

    return step, monitor, (timed.inputs, timed.targets)


def measure(device: str, rounds: int, small: bool) -> xr.Dataset:
    """Seconds of a step and of a measurement, (network, watched, round), and the shares that a budget left."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    shape = (len(NETWORKS), len(WATCHED), rounds)
    steps, measurements = np.full(shape, np.nan), np.full(shape, np.nan)
    shares, rows, skipped = (np.empty(len(NETWORKS)) for _ in range(3))
    for row, name in enumerate(NETWORKS):
        step, monitor_of, batch = training(name, device, small)
        for column, (watched, estimators) in enumerate(WATCHED.items()):
            written_out = watched == "activity"  # The closed form of such guesses takes longer than they do.
            monitor = monitor_of(estimators, every=1, predictions=not written_out)
            step()
            monitor.step(*batch)  # The first has checks that the others have not.
            for repeat in range(min(rounds, MOST_ROUNDS_WRITTEN_OUT) if written_out else rounds):
                start = clock()
                for _ in range(STEPS):
                    step()
                finished(device)
                middle = clock()
                monitor.step(*batch)
                finished(device)
                steps[row, column, repeat] = (middle - start) / STEPS
                measurements[row, column, repeat] = clock() - middle
        kept = monitor_of(["weight"], every=OFTEN, at_most=BUDGET, clock=clock)
        for _ in range(BUDGET_STEPS if not small else 4 * OFTEN):
            step()
            kept.step(*batch)
        dataset = kept.dataset
        shares[row], rows[row] = dataset.attrs["spent_share"], dataset.sizes["step"]
        skipped[row] = float(dataset["skipped"].sum()) + dataset.attrs["left_out_skipped"]
    over, by_network = ("network", "watched", "round"), ("network",)
    made = {
        "step_seconds": (over, steps, "s", "time of a training step"),
        "measurement_seconds": (over, measurements, "s", "time of a measurement of the monitor"),
        "budget_share": (by_network, shares, "1", "time of measuring over that of training, with a budget"),
        "budget_rows": (by_network, rows, "1", "measurements made with a budget"),
        "budget_skipped": (by_network, skipped, "1", "measurements left out with a budget"),
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
    for network in map(str, dataset["network"].values):
        for watched in map(str, dataset["watched"].values):
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
                ]
            )
    budget = [
        [
            NAMES[network],
            f"{100 * float(dataset['budget_share'].sel(network=network)):.1f} %",
            f"{float(dataset['budget_rows'].sel(network=network)):.0f}",
            f"{float(dataset['budget_skipped'].sel(network=network)):.0f}",
        ]
        for network in map(str, dataset["network"].values)
    ]
    share = in_steps.median("round") * 100 / EVERY
    return {
        "settings": dataset.attrs,
        "every": EVERY,
        "guesses": GUESSES,
        "steps": STEPS,
        "written_out": min(int(dataset.attrs["rounds"]), MOST_ROUNDS_WRITTEN_OUT),
        "often": OFTEN,
        "budget_steps": BUDGET_STEPS,
        "budget_share": f"{100 * BUDGET:.0f} %",
        "rows": rows,
        "budget": budget,
        "share": {
            f"{n}_{w}".replace(" ", "_"): float(share.sel(network=n, watched=w)) for n in NETWORKS for w in WATCHED
        },
        "most_share": 100 * float(dataset["budget_share"].max()),
        "described": "; and a ".join(str(dataset.attrs[f"words_{network}"]) for network in NETWORKS),
    }


NAMES = {"gpt": "GPT", "resnet": "ResNet"}
