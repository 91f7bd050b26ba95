"""Answer (a) of `studies.subspaces`: is the high overlap one of gradients or of training?

Every number and every verdict is read from the collected Dataset. Intervals are 95 % over seeds. A verdict says "more"
or "less" only where the interval of a difference, taken seed by seed, leaves zero out.
"""

from __future__ import annotations

import xarray as xr

from studies.kit.markdown import verb
from studies.kit.seeds import Interval, over_seeds
from studies.subspaces.cells import METHODS
from studies.subspaces.figures import NAMES
from studies.subspaces.picks import all_widths, hidden_layers, trained, within

# Wang et al. 2025, Figure 1: least and largest overlap, not squared, in layers 1 and 2 after training by W̃⊥.
PAPER_OVERLAP = {128: ((0.91, 0.91), (0.84, 0.84)), 512: ((0.93, 0.95), (0.93, 0.95))}
EQUAL = ("step", "loss", "overlap")  # What is compared at equal training loss.


def overlaps(collected: xr.Dataset, k: int) -> dict[str, object]:
    """What answer (a) says: the names of the template overlaps.md.j2."""
    layers, widths = hidden_layers(collected)[:-1], all_widths(collected)
    start = collected.sel(layer=layers, moment="last", trained_by="initialisation").mean("layer")
    rows = []
    for width in widths:
        random = [_random(start.sel(width=width), name) for name in ("random_overlap", "random_overlap_in_range")]
        rows.append([str(width), *random, *(str(over_seeds(_overlap(collected, width, m))) for m in METHODS)])
    changes = {method: _changes(collected, method, "initialisation") for method in METHODS[1:]}
    risen = {
        method: [width for width, change in zip(widths, by_width, strict=True) if change.low > 0]
        for method, by_width in changes.items()
    }
    against = _changes(collected, "orthogonal", "backpropagation")
    equal = collected[["equal_step", "equal_loss", "equal_overlap"]].sel(layer=layers).mean("layer")
    both = [equal.sel(trained_by=method) for method in ("orthogonal", "backpropagation")]
    lead = [over_seeds((both[0] - both[1])["equal_overlap"].sel(width=width)) for width in widths]
    level = [
        {
            "width": width,
            "cells": [over_seeds(part[f"equal_{name}"].sel(width=width)) for name in EQUAL for part in both],
            "difference": change,
        }
        for width, change in zip(widths, lead, strict=True)
    ]
    whose = "neither"
    if 2 * len(risen["backpropagation"]) > len(widths):
        whose = "training"
    elif 2 * len(risen["orthogonal"]) > len(widths):
        whose = "estimator"
    over_random = (start["overlap"] / start["random_overlap_in_range"]).mean("seed").values
    return {
        "layers": layers,
        "whose": whose,
        "risen": risen,
        "widest": widths[-1],
        "ends": [over_seeds(_overlap(collected, widths[-1], method)) for method in METHODS[:2]],
        "losses": [over_seeds(trained(collected, "loss", widths[-1], m)) for m in ("orthogonal", "backpropagation")],
        "lead": _sides(widths, lead),
        "after": _sides(widths, against),
        "rows": rows,
        "states": [NAMES[method] for method in METHODS],
        "over_random": [float(over_random.min()), float(over_random.max())],
        "changes": [(NAMES[method], by_width) for method, by_width in changes.items()],
        "against": against,
        "level": level,
        "printed": _printed(collected, layers) if k == 10 else [],
    }


def _printed(collected: xr.Dataset, layers: list[str]) -> list[list[str]]:
    """Rows beside the seed paper's Figure 1."""
    rows = []
    for width, ranges in PAPER_OVERLAP.items():
        if width not in all_widths(collected):
            continue
        for layer, (low, high) in zip(layers, ranges, strict=True):
            ours = over_seeds(trained(collected, "overlap_root", width, "orthogonal").sel(layer=layer))
            printed = f"{low}" if low == high else f"{low} to {high}"
            rows.append([str(width), layer, printed, str(ours), within(ours, low, high)])
    return rows


def _random(start: xr.Dataset, name: str) -> str:
    return f"{over_seeds(start[name])} (spread {over_seeds(start[name + '_spread']).mean:.2g})"


def _sides(widths: list[int], changes: list[Interval]) -> list[tuple[str, list[int]]]:
    """The widths at which a difference is above zero, below it, and neither; a side without widths is left out."""
    words = ("higher", "lower", "neither")
    said = [verb(change, *words) for change in changes]
    sides = {word: [width for width, side in zip(widths, said, strict=True) if side == word] for word in words}
    return [(word, at) for word, at in sides.items() if at]


def _overlap(collected: xr.Dataset, width: int, method: str) -> xr.DataArray:
    return trained(collected, "overlap", width, method).sel(layer=hidden_layers(collected)[:-1]).mean("layer")


def _changes(collected: xr.Dataset, method: str, other: str) -> list[Interval]:
    return [over_seeds(_overlap(collected, w, method) - _overlap(collected, w, other)) for w in all_widths(collected)]
