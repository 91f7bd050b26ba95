"""What the page of `studies.progress` says, computed from its Dataset; the sentences are in page.md.j2."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from studies.kit import pages
from studies.kit.seeds import Interval
from studies.kit.shares import clopper_pearson
from studies.progress import rank, width_fit
from studies.progress.cells import LEVEL_Z, WORDS_OF_CURVATURES

FACTOR = 2.0  # Between the advised step and the best of the sweep, at most.
WANTED = 0.9  # The share of cells in which that is asked for.
SMALL = 0.125  # The smaller of the two steps that the table of decreases shows, over the advised step.
HIDDEN = 1.0  # Unseen curvature from which on a step counts as one that the curvature does not describe.


def page(tree: xr.DataTree) -> str:
    """The page docs/results/progress.md."""
    parts = values(tree["steps"].to_dataset()) | rank.values(tree["training"].to_dataset())
    return pages.render("progress", parts | width_fit.values(tree["widths"].to_dataset()) | {"settings": tree.attrs})


def values(dataset: xr.Dataset) -> dict[str, object]:
    """What the page's own template names, of single steps."""
    return {
        "networks": dataset["network"].values.tolist(),
        "moments": dataset["steps"].values.tolist(),
        "estimators": dataset["estimator"].values.tolist(),
        "factors": dataset["factor"].values.tolist(),
        "factor": FACTOR,
        "wanted": WANTED,
        "small": SMALL,
        "level": LEVEL_Z,
        "verdicts": [_verdict(dataset, str(curvature)) for curvature in dataset["curvature"].values],
        "without_step": [_place(cell) for cell in _cells(dataset) if not np.isfinite(float(cell["best_step"]))],
        "downhill": _not_positive(dataset),
        "misses": [_miss(cell) for cell in _cells(dataset) if _known(cell) and not _within(cell)],
        "agreements": _agreements(dataset),
        "smooth": _smooth(dataset),
        "decreases": [_decreases(cell) for cell in _cells(dataset) if _known(cell)],
    }


def _cells(dataset: xr.Dataset) -> Iterator[xr.Dataset]:
    """Every curvature, network, moment and estimator."""
    for curvature in dataset["curvature"].values:
        for network in dataset["network"].values:
            for steps in dataset["steps"].values:
                for estimator in dataset["estimator"].values:
                    yield dataset.sel(curvature=curvature, network=network, steps=steps, estimator=estimator)


def _known(cell: xr.Dataset) -> bool:
    """Whether there is an advised step, and its sweep."""
    return bool(np.isfinite(float(cell["best"])))


def _within(cell: xr.Dataset) -> bool:
    return 1 / FACTOR <= float(cell["best"]) <= FACTOR


def _possible(cell: xr.Dataset) -> bool:
    """Whether steps that cannot be told from the best one reach to within the factor."""
    return float(cell["best_low"]) <= FACTOR and float(cell["best_high"]) >= 1 / FACTOR


def _verdict(dataset: xr.Dataset, curvature: str) -> dict[str, object]:
    """In how many cells the advised step is within the factor of the best of the sweep, with the share's interval."""
    cells = [cell for cell in _cells(dataset.sel(curvature=[curvature])) if _known(cell)]
    within, possible = sum(map(_within, cells)), sum(map(_possible, cells))
    low, high = clopper_pearson(within, len(cells))
    trained = [cell for cell in cells if int(cell["steps"]) > 0]
    of_trained = sum(map(_within, trained))
    trained_low, trained_high = clopper_pearson(of_trained, len(trained))
    return {
        "curvature": WORDS_OF_CURVATURES[curvature],
        "cells": len(cells),
        "within": within,
        "possible": possible,
        "low": float(low),
        "high": float(high),
        "holds": len(cells) > 0 and within >= WANTED * len(cells),
        "trained": len(trained),
        "trained_within": of_trained,
        "trained_low": float(trained_low),
        "trained_high": float(trained_high),
    }


def _moment(steps: int) -> str:
    return "initialisation" if steps == 0 else f"after {steps} steps"


def _place(cell: xr.Dataset) -> list[str]:
    names = [
        WORDS_OF_CURVATURES[str(cell["curvature"].values)],
        str(cell["network"].values),
        _moment(int(cell["steps"])),
    ]
    return [*names, str(cell["estimator"].values)]


def _miss(cell: xr.Dataset) -> list[str]:
    """Where the advised step is not within the factor, and what is known of the reason."""
    unseen, low, high = (float(cell["unseen_curvature" + end]) for end in ("", "_low", "_high"))
    best, least, most = (float(cell["best" + end]) for end in ("", "_low", "_high"))
    kinks = bool(float(cell["has_kinks"]) == 1)
    if _possible(cell):
        why = "the sweep cannot tell the best step from one within the factor"
    elif low > HIDDEN:
        why = ("kinks" if kinks else "higher derivatives") + " bend the loss more than the curvature shows"
    elif high < 0:
        why = "over the advised step the loss bends less than the curvature shows"
    else:
        why = "the mean second difference does not show why"
    shown = f"{unseen:.3g} ({low:.3g} to {high:.3g})".replace("inf", "∞")
    return [*_place(cell), f"{best:.3g} ({least:.3g} to {most:.3g})", shown, why]


def _not_positive(dataset: xr.Dataset) -> list[str]:
    """Networks and moments at which the curvature along the gradient is not positive."""
    single = dataset.isel(estimator=0)
    return [
        f"{network}, {_moment(int(steps))} ({WORDS_OF_CURVATURES[str(curvature)]})"
        for curvature in dataset["curvature"].values
        for network in dataset["network"].values
        for steps in dataset["steps"].values
        if float(single["gradient_curvature"].sel(curvature=curvature, network=network, steps=steps)) <= 0
    ]


def _agreements(dataset: xr.Dataset) -> list[list[str]]:
    """Shares of the comparisons in which predicted and actual decrease agree, up to the advised step and beyond."""
    rows = []
    z = (dataset["actual"] - dataset["predicted"]) / np.hypot(dataset["actual_se"], dataset["predicted_se"])
    for curvature in dataset["curvature"].values:
        for network in dataset["network"].values:
            part = z.sel(curvature=curvature, network=network)
            kinks = float(dataset["has_kinks"].sel(curvature=curvature, network=network).isel(steps=0)) == 1
            row = [WORDS_OF_CURVATURES[str(curvature)], str(network), "yes" if kinks else "no"]
            for chosen in (part.where(z["factor"] <= SMALL), part.where(z["factor"] <= 1), part.where(z["factor"] > 1)):
                known = chosen.values[np.isfinite(chosen.values)]
                agreeing = int((np.abs(known) <= LEVEL_Z).sum())
                low, high = clopper_pearson(agreeing, len(known))
                row.append(f"{agreeing} of {len(known)} ({float(low):.2f} to {float(high):.2f})")
            rows.append(row)
    return rows


def _smooth(dataset: xr.Dataset) -> list[tuple[str, int, int]]:
    """How many comparisons up to the advised step agree on networks without kinks, for each curvature."""
    z = (dataset["actual"] - dataset["predicted"]) / np.hypot(dataset["actual_se"], dataset["predicted_se"])
    found = []
    for curvature in dataset["curvature"].values:
        part = z.where((dataset["has_kinks"] == 0) & (z["factor"] <= 1)).sel(curvature=curvature).values
        known = part[np.isfinite(part)]
        found.append((WORDS_OF_CURVATURES[str(curvature)], int((np.abs(known) <= LEVEL_Z).sum()), len(known)))
    return [row for row in found if row[2]]


def _decreases(cell: xr.Dataset) -> list[str]:
    """Actual over predicted decrease at a small step and at the advised step, with intervals."""
    ratios = [str(_ratio(cell.sel(factor=factor))) for factor in (SMALL, 1.0)]
    best = f"{float(cell['best']):.3g} ({float(cell['best_low']):.3g} to {float(cell['best_high']):.3g})"
    return [*_place(cell), *ratios, best]


def _ratio(step: xr.Dataset) -> Interval:
    actual, predicted = float(step["actual"]), float(step["predicted"])
    errors = float(step["actual_se"]) / predicted, actual * float(step["predicted_se"]) / predicted**2
    return Interval(actual / predicted, LEVEL_Z * float(np.hypot(*errors)))
