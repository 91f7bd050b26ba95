"""Is the advised step within a factor of the best of the sweep? Of every cell of single steps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from studies.kit.shares import clopper_pearson
from studies.progress.cells import WORDS_OF_CURVATURES

FACTOR = 2.0  # Between the advised step and the best of the sweep, at most.
WANTED = 0.9  # The share of cells in which that is asked for.
HIDDEN = 1.0  # Unseen curvature from which on a step counts as one that the curvature does not describe.


def values(dataset: xr.Dataset) -> dict[str, object]:
    """What the page's own template names, of the best step."""
    return {
        "factor": FACTOR,
        "wanted": WANTED,
        "verdicts": [_verdict(dataset, str(curvature)) for curvature in dataset["curvature"].values],
        "without_step": [place(cell) for cell in cells(dataset) if not np.isfinite(float(cell["best_step"]))],
        "downhill": _not_positive(dataset),
        "misses": [_miss(cell) for cell in cells(dataset) if known(cell) and not _within(cell)],
    }


def cells(dataset: xr.Dataset) -> Iterator[xr.Dataset]:
    """Every curvature, network, moment and estimator."""
    for curvature in dataset["curvature"].values:
        for network in dataset["network"].values:
            for steps in dataset["steps"].values:
                for estimator in dataset["estimator"].values:
                    yield dataset.sel(curvature=curvature, network=network, steps=steps, estimator=estimator)


def known(cell: xr.Dataset) -> bool:
    """Whether there is an advised step, and its sweep."""
    return bool(np.isfinite(float(cell["best"])))


def moment(steps: int) -> str:
    """In words."""
    return "initialisation" if steps == 0 else f"after {steps} steps"


def place(cell: xr.Dataset) -> list[str]:
    """Curvature, network, moment and guess, in words."""
    names = [str(cell["network"].values), moment(int(cell["steps"])), str(cell["estimator"].values)]
    return [WORDS_OF_CURVATURES[str(cell["curvature"].values)], *names]


def of_sweep(cell: xr.Dataset) -> str:
    """The best step of the sweep over the advised one, and those that cannot be told from it."""
    return f"{float(cell['best']):.3g} ({float(cell['best_low']):.3g} to {float(cell['best_high']):.3g})"


def _within(cell: xr.Dataset) -> bool:
    return 1 / FACTOR <= float(cell["best"]) <= FACTOR


def _possible(cell: xr.Dataset) -> bool:
    """Whether steps that cannot be told from the best one reach to within the factor."""
    return float(cell["best_low"]) <= FACTOR and float(cell["best_high"]) >= 1 / FACTOR


def _verdict(dataset: xr.Dataset, curvature: str) -> dict[str, object]:
    """In how many cells the advised step is within the factor of the best of the sweep, with the share's interval."""
    chosen = [cell for cell in cells(dataset.sel(curvature=[curvature])) if known(cell)]
    within, possible = sum(map(_within, chosen)), sum(map(_possible, chosen))
    low, high = clopper_pearson(within, len(chosen))
    trained = [cell for cell in chosen if int(cell["steps"]) > 0]
    of_trained = sum(map(_within, trained))
    trained_low, trained_high = clopper_pearson(of_trained, len(trained))
    return {
        "curvature": WORDS_OF_CURVATURES[curvature],
        "cells": len(chosen),
        "within": within,
        "possible": possible,
        "low": float(low),
        "high": float(high),
        "holds": len(chosen) > 0 and within >= WANTED * len(chosen),
        "trained": len(trained),
        "trained_within": of_trained,
        "trained_low": float(trained_low),
        "trained_high": float(trained_high),
    }


def _miss(cell: xr.Dataset) -> list[str]:
    """Where the advised step is not within the factor, and what is known of the reason."""
    unseen, low, high = (float(cell["unseen_curvature" + end]) for end in ("", "_low", "_high"))
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
    return [*place(cell), of_sweep(cell), shown, why]


def _not_positive(dataset: xr.Dataset) -> list[str]:
    """Networks and moments at which the curvature along the gradient is not positive."""
    single = dataset.isel(estimator=0)
    return [
        f"{network}, {moment(int(steps))} ({WORDS_OF_CURVATURES[str(curvature)]})"
        for curvature in dataset["curvature"].values
        for network in dataset["network"].values
        for steps in dataset["steps"].values
        if float(single["gradient_curvature"].sel(curvature=curvature, network=network, steps=steps)) <= 0
    ]
