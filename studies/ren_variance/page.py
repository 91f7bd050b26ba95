"""What the page of `studies.ren_variance` says, computed from its Dataset; the sentences are in page.md.j2."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import special

from fganalysis.statistics.intervals import Z95
from studies.kit import pages

ALPHA = 0.01  # Of the whole page: the largest |z| of as many independent comparisons is below the bound.


def page(dataset: xr.Dataset) -> str:
    """The page docs/results/ren_variance.md."""
    return pages.render("ren_variance", values(dataset))


def values(dataset: xr.Dataset) -> dict[str, object]:
    """Everything that the template names."""
    z = np.abs(dataset["z"].values)
    return {
        "settings": dataset.attrs,
        "n_compared": z.size,
        "largest": float(z.max()),
        "agrees": bool(z.max() < special.ndtri(1 - ALPHA / 2 / z.size)),
        "beyond": [(bound, int((z > bound).sum()), z.size * 2 * float(special.ndtr(-bound))) for bound in (2.0, 3.0)],
        "guess_kinds": [str(name) for name in dataset["guess_kind"].values],
        "rows": [_row(dataset.isel(point=index)) for index in range(dataset.sizes["point"])],
    }


def _row(point: xr.Dataset) -> list[str]:
    """What is varied, and measured ± half an interval | formula for every guess."""
    cells = [str(point["sweep"].item()), str(point["value"].item())]
    for name in point["guess_kind"].values:
        own = point.sel(guess_kind=name)
        half = Z95 * own["variance_se"].item()
        cells.append(f"{own['variance'].item():.4g} ± {half:.1g} \\| {own['predicted'].item():.4g}")
    return cells
