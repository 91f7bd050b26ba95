"""What the page of `studies.throughput` says, computed from its Dataset; the sentences are in page.md.j2."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from studies.kit import pages
from studies.throughput.cells import K
from studies.throughput.steps import FLOOR

SHOWN = 512  # The width of the answer, where it was measured; the widest otherwise.
COMPARED = {"draw": "drawing its noise", "jvp_loop": "a loop of jvp", "vmap_jvp": "vmap of jvp"}


def page(dataset: xr.Dataset) -> str:
    """The page docs/results/throughput.md, or throughput_NAME.md of another network than the MLP."""
    if dataset.attrs["network"] == "mlp":
        return pages.render("throughput", values(dataset) | step_values(dataset))
    return pages.render("throughput", step_values(dataset), "network.md.j2")


def step_values(dataset: xr.Dataset) -> dict[str, object]:
    """What both templates name: the times of a guess and of a capture in steps of backpropagation."""
    ratios = {key: step_ratios(dataset, key) for key in map(str, dataset["compared"].values)}
    rows = []
    for key, values in ratios.items():
        once = ""
        if key in dataset["timed"].values:
            once = f"{1e3 * float(dataset['once_seconds'].sel(timed=key).median()):.0f}"
        reach = f"{values.min():.2f} to {values.max():.2f}"
        milliseconds = 1e3 * float(seconds_each(dataset, key).median())
        rows.append([name_of(key), f"{milliseconds:.2f}", f"{np.median(values):.2f}", reach, once])
    return {
        "settings": dataset.attrs,
        "step": 1e3 * float(dataset["step_seconds"].median()),
        "in_steps": {key: float(np.median(values)) for key, values in ratios.items()},
        "step_rows": rows,
    }


def step_ratios(dataset: xr.Dataset, key: str) -> NDArray[np.float64]:
    """Round by round, the time of a capture or a guess over that of the steps that were timed before it."""
    return np.asarray(seconds_each(dataset, key) / dataset["step_seconds"].sel(compared=key))


def seconds_each(dataset: xr.Dataset, key: str) -> xr.DataArray:
    """Seconds of what is compared with steps, (round,)."""
    return dataset["guess_seconds"].sel(timed=key) if key in dataset["timed"].values else dataset[f"{key}_seconds"]


def name_of(key: str) -> str:
    """What is compared with steps, in words."""
    others = {"capture": "a capture", FLOOR: "a guess, activity, bare"}
    return others.get(key) or f"a guess, {key}"


def values(dataset: xr.Dataset) -> dict[str, object]:
    """What the template of the MLP names besides."""
    widths = [int(width) for width in dataset["width"].values]
    shown = SHOWN if SHOWN in widths else widths[-1]
    times = dataset["seconds_per_guess"].sel(width=shown, estimator="activity")
    finder, lapack = (seconds_of(dataset, method) for method in ("range_finder", "lapack"))
    return {
        "settings": dataset.attrs,
        "shown": shown,
        "milliseconds": 1e3 * float(times.sel(contender="sample").median()),
        "over_draw": float(np.median(times_of(dataset, shown, "activity", "draw"))),
        "rows": [_row(dataset, width, str(key)) for width in widths for key in dataset["estimator"].values],
        "k": K,
        "finder": float(finder.median()),
        "lapack": float(lapack.median()),
        "gain": float((lapack / finder).median()),
    }


def seconds_of(dataset: xr.Dataset, method: str) -> xr.DataArray:
    """Seconds of one method to find directions, (svd_round,)."""
    # By a dict: `method` is also a keyword of `sel`, the way to look up what is not there.
    return dataset["directions_seconds"].sel({"method": method})


def times_of(dataset: xr.Dataset, width: int, key: str, contender: str) -> NDArray[np.float64]:
    """Round by round, the sampler's time over that of drawing the noise, or another contender's over the sampler's."""
    own = dataset["seconds_per_guess"].sel(width=width, estimator=key)
    ratio = own.sel(contender=contender) / own.sel(contender="sample")
    return np.asarray(1 / ratio if contender == "draw" else ratio)


def _row(dataset: xr.Dataset, width: int, key: str) -> list[str]:
    own = dataset["seconds_per_guess"].sel(width=width, estimator=key, contender="sample")
    ratios = [float(np.median(times_of(dataset, width, key, contender))) for contender in COMPARED]
    return [str(width), key, f"{1e3 * float(own.median()):.3f}", f"{ratios[0]:.2f}", *(f"{x:.1f}" for x in ratios[1:])]
