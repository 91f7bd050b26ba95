"""The share of the training time that a monitor takes where it is given a budget.

The first measurement is made whatever it takes, as nobody knows what that is. So what is to be seen is that the share
comes down to the budget by the second measurement, and stays there.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import xarray as xr

from studies.throughput.monitored import NAMES, NETWORKS, WATCHED, clock_of, training

OFTEN = 20  # Steps from one measurement to the next that are asked for.


@dataclass(frozen=True)
class Budget:
    """at_most: the share of the training time. steps: of training, so many that several measurements are made."""

    at_most: float
    steps: int


BUDGETS = {"weight": Budget(0.05, 400), "activity": Budget(0.25, 1000), "activity, 1 example": Budget(0.05, 1000)}


def measure(device: str, small: bool) -> xr.Dataset:
    """Shares, and numbers of measurements and of guesses, (network, budgeted)."""
    names = ("share", "largest_share", "fewest_guesses", "most_guesses", "made", "skipped")
    found = {name: np.full((len(NETWORKS), len(BUDGETS)), np.nan) for name in names}
    for (row, network), (column, (watched, budget)) in itertools.product(
        enumerate(NETWORKS), enumerate(BUDGETS.items())
    ):
        step, monitor_of, batch = training(network, device, small)
        monitor = monitor_of(WATCHED[watched], every=OFTEN, at_most=budget.at_most, clock=clock_of(device))
        for _ in range(OFTEN + 1 if small else budget.steps):
            step()
            monitor.step(*batch)
        dataset = monitor.dataset
        # Of the first measurement alone the share is that of a few steps.
        after = (dataset["measuring_seconds"].cumsum() / dataset["training_seconds"].values)[1:]
        numbers = (
            dataset.attrs["spent_share"],
            after.max() if after.size else np.nan,
            dataset["n_guesses"].min(),
            dataset["n_guesses"].max(),
            dataset.sizes["step"],
            dataset["skipped"].sum() + dataset.attrs["left_out_skipped"],
        )
        for name, number in zip(names, numbers, strict=True):
            found[name][row, column] = float(number)
    words = {
        "share": "time of measuring over that of training, at the end",
        "largest_share": "the largest such share right after a measurement, from the second on",
        "fewest_guesses": "fewest guesses of a measurement",
        "most_guesses": "most guesses of a measurement",
        "made": "measurements made",
        "skipped": "measurements left out",
    }
    return xr.Dataset(
        {
            f"budget_{name}": (("network", "budgeted"), values, {"units": "1", "long_name": words[name]})
            for name, values in found.items()
        },
        coords={"network": list(NETWORKS), "budgeted": list(BUDGETS)},
    )


def values(dataset: xr.Dataset) -> dict[str, object]:
    """What the template names of budgets."""
    rows = []
    for network, budgeted in itertools.product(NETWORKS, BUDGETS):
        budget, at = BUDGETS[budgeted], dataset.sel(network=network, budgeted=budgeted)
        guesses = sorted({int(at["budget_fewest_guesses"]), int(at["budget_most_guesses"])})
        rows.append(
            [
                NAMES[network],
                budgeted,
                f"{100 * budget.at_most:.0f} %",
                f"{budget.steps}",
                f"{int(at['budget_made'])}",
                f"{int(at['budget_skipped'])}",
                " to ".join(map(str, guesses)),
                _percent(at["budget_largest_share"]),
                _percent(at["budget_share"]),
            ]
        )
    return {"often": OFTEN, "budget": rows}


def _percent(share: xr.DataArray) -> str:
    return "–" if share.isnull() else f"{100 * float(share):.1f} %"
