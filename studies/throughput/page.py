"""What the page of `studies.throughput` says, computed from its Dataset; the sentences are in page.md.j2."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from studies.kit import pages
from studies.throughput.cells import K

SHOWN = 512  # The width of the answer, where it was measured; the widest otherwise.
COMPARED = {"draw": "drawing its noise", "jvp_loop": "a loop of jvp", "vmap_jvp": "vmap of jvp"}


def page(dataset: xr.Dataset) -> str:
    """The page docs/results/throughput.md."""
    return pages.render("throughput", values(dataset))


def values(dataset: xr.Dataset) -> dict[str, object]:
    """Everything that the template names."""
    widths = [int(width) for width in dataset["width"].values]
    shown = SHOWN if SHOWN in widths else widths[-1]
    times = dataset["seconds_per_guess"].sel(width=shown, estimator="activity")
    finder, lapack = (dataset["directions_seconds"].sel(method=method) for method in ("range_finder", "lapack"))
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


def times_of(dataset: xr.Dataset, width: int, key: str, contender: str) -> NDArray[np.float64]:
    """Round by round, the sampler's time over that of drawing the noise, or another contender's over the sampler's."""
    own = dataset["seconds_per_guess"].sel(width=width, estimator=key)
    ratio = own.sel(contender=contender) / own.sel(contender="sample")
    return np.asarray(1 / ratio if contender == "draw" else ratio)


def _row(dataset: xr.Dataset, width: int, key: str) -> list[str]:
    own = dataset["seconds_per_guess"].sel(width=width, estimator=key, contender="sample")
    ratios = [float(np.median(times_of(dataset, width, key, contender))) for contender in COMPARED]
    return [str(width), key, f"{1e3 * float(own.median()):.3f}", f"{ratios[0]:.2f}", *(f"{x:.1f}" for x in ratios[1:])]
