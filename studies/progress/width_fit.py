"""Is the effective rank flat in width? Lines of its logarithm over that of the width, seed by seed."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from studies.kit.figures import geometric
from studies.kit.seeds import Interval, over_seeds

Array = NDArray[np.float64]


def slopes(quantity: xr.DataArray) -> Interval:
    """The power of the width with which a quantity over (width, seed) grows: a least-squares line a seed."""
    logs = np.log(quantity.transpose("width", "seed").values)
    return over_seeds(np.polyfit(np.log(quantity["width"].values.astype(float)), logs, 1)[0])


def values(dataset: xr.Dataset) -> dict[str, object]:
    """What the template widths.md.j2 names."""
    rank, weights = dataset["effective_rank"], dataset["parameters"].isel(seed=0, drop=True)
    moments = dataset["steps"].values.tolist()
    fits = [_fit(rank.sel(steps=steps), int(steps)) for steps in moments]
    widest, narrowest = (dataset["width"].values[end] for end in (-1, 0))
    return {
        "width_moments": moments,
        "widths": dataset["width"].values.tolist(),
        "width_seeds": dataset.sizes["seed"],
        "fits": fits,
        "flat": [fit for fit in fits if fit["verdict"] == "flat"],
        "weights_power": float(np.polyfit(np.log(dataset["width"].values), np.log(weights.isel(steps=0).values), 1)[0]),
        "weights_factor": float(weights.sel(width=widest).isel(steps=0) / weights.sel(width=narrowest).isel(steps=0)),
        "largest_rank": float(_middle(rank).max()),
        "smallest_rank": float(_middle(rank).min()),
        "over_training": _over_training(rank),
        "rank_titles": [f"effective rank {moment(int(steps))}" for steps in moments],
        "by_width": [_row(dataset, int(width)) for width in dataset["width"].values],
    }


def _fit(rank: xr.DataArray, steps: int) -> dict[str, object]:
    slope = slopes(rank)
    verdict = "rises" if slope.low > 0 else "falls" if slope.high < 0 else "flat"
    return {"moment": moment(steps), "slope": slope, "verdict": verdict}


def moment(steps: int) -> str:
    """In words."""
    return "at initialisation" if steps == 0 else f"after {steps} steps"


def _middle(rank: xr.DataArray) -> Array:
    """Geometric means over seeds, (width, steps)."""
    return geometric(np.log(rank.transpose("seed", "width", "steps").values))[1]


def _over_training(rank: xr.DataArray) -> list[tuple[str, Interval]]:
    """Log ratio of the rank at every later moment to that at the first one, over all widths, seed by seed."""
    logs = rank.copy(data=np.log(rank.values))
    later = [(int(steps), logs.sel(steps=steps) - logs.isel(steps=0)) for steps in rank["steps"].values[1:]]
    return [(moment(steps), over_seeds(ratio.mean("width"))) for steps, ratio in later]


def _row(dataset: xr.Dataset, width: int) -> list[str]:
    own = dataset.sel(width=width)
    logs = np.log(own["effective_rank"].transpose("seed", "steps").values)
    cells = [f"{middle:.3g} ({low:.3g} to {high:.3g})" for low, middle, high in zip(*geometric(logs), strict=True)]
    return [str(width), f"{int(own['parameters'].max()):,}".replace(",", " "), *cells]
