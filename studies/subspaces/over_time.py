"""Effective ranks, sranks, principal angles over the steps and sharpening of the weights, on the page of the study.

Every number is read from the collected Dataset. Intervals are 95 % over seeds.
"""

from __future__ import annotations

import xarray as xr

from studies.kit.seeds import Interval, over_seeds
from studies.subspaces.cells import MANY_EXAMPLES, METHODS
from studies.subspaces.figures import NAMES
from studies.subspaces.picks import all_widths, hidden_layers, output_layer
from studies.subspaces.sranks import DELTA
from studies.subspaces.sranks import MATRICES as OF_TRAINING
from studies.subspaces.turning import TURNING


def over_time(collected: xr.Dataset, k: int) -> dict[str, object]:
    """What the section says at every width: the names of over_time.md.j2; tables are of the first hidden layer."""
    first, layers = hidden_layers(collected)[0], [*hidden_layers(collected), output_layer(collected)]
    last, common = collected.sel(moment="last"), collected.sel(moment="common", layer=first)
    trainings = [NAMES[method].removeprefix("trained by ") for method in METHODS[1:]]
    return {
        "k": k,
        "widths": all_widths(collected),
        "n_examples": MANY_EXAMPLES,
        "first": first,
        "layers": layers,
        "matrices": [str(name).replace("_", " ") for name in collected["matrix"].values],
        "trainings": trainings,
        "ranks": _ranks(last.sel(layer=first)),
        "turned": _turned(common),
        "turning": _turning_verdicts(common),
        "stacked": _stacked(last.sel(layer=first)),
        "weights": _weights(last.sel(layer=layers)),
        "sharpening": _sharpening(last, layers),
        "delta": DELTA,
        "sranks": _sranks(last, layers),
        "falls": _falls(last, layers),
    }


def _ranks(own: xr.Dataset) -> list[list[str]]:
    rows = [(width, method) for width in all_widths(own) for method in METHODS]
    return [
        [str(width), NAMES[method], *_means(own["entropy_rank"].sel(width=width, trained_by=method), "matrix")]
        for width, method in rows
    ]


def _turned(own: xr.Dataset) -> list[list[str]]:
    rows = []
    for width in all_widths(own):
        here = own.sel(width=width)
        random, spread = (float(here[name].mean()) for name in ("random_alignment", "random_alignment_spread"))
        turned = [cell for matrix in TURNING for cell in _trained(here["turned"].sel(matrix=matrix))]
        rows.append([str(width), f"{random:.2g} (spread {spread:.1g})", *turned])
    return rows


def _stacked(own: xr.Dataset) -> list[list[str]]:
    return [
        [str(width), *_trained(own["single_rank"].sel(width=width)), *_trained(own["stacked_rank"].sel(width=width))]
        for width in all_widths(own)
    ]


def _weights(own: xr.Dataset) -> list[list[str]]:
    rows = []
    for width in all_widths(own):
        here = own.sel(width=width)
        states = {"at initialisation": here["initial_weight_rank"].sel(trained_by="backpropagation")}
        states |= {NAMES[method]: here["weight_rank"].sel(trained_by=method) for method in METHODS[1:]}
        rows += [[str(width), name, *_means(ranks, "layer")] for name, ranks in states.items()]
    return rows


def _turning_verdicts(common: xr.Dataset) -> list[dict[str, object]]:
    """Widths where the Jacobians' subspace keeps more of its start than the gradients', and where these keep none."""
    gradients, jacobians = TURNING
    verdicts: list[dict[str, object]] = []
    for method in METHODS[1:]:
        ahead: list[int] = []
        near: list[int] = []
        for width in all_widths(common):
            own = common.sel(width=width, trained_by=method)
            turned = own["turned"].sel(matrix=gradients)
            if over_seeds(own["turned"].sel(matrix=jacobians) - turned).low > 0:
                ahead.append(width)
            if over_seeds(turned - own["random_alignment"]).low <= 0:
                near.append(width)
        verdicts.append({"state": NAMES[method], "ahead": ahead, "near": near})
    return verdicts


def _sharpening(last: xr.Dataset, layers: list[str]) -> list[tuple[int, dict[str, Interval]]]:
    """The stable rank of the inner layers' weights over that at initialisation, by method, at every width."""
    inner = (last["weight_rank"] / last["initial_weight_rank"]).sel(layer=layers[1:-1]).mean("layer")
    return [
        (width, {method: over_seeds(inner.sel(width=width, trained_by=method)) for method in METHODS[1:]})
        for width in all_widths(last)
    ]


def _sranks(last: xr.Dataset, layers: list[str]) -> list[list[str]]:
    """A row for each width and state: features that reach the layers after the first, then weights of every layer."""
    rows = []
    columns = [(name, layer) for name in OF_TRAINING for layer in (layers[1:] if name == "features" else layers)]
    for width in all_widths(last):
        here = last.sel(width=width)
        start = here.sel(trained_by="backpropagation")
        states = {"random matrices": (start, "random_"), "at initialisation": (start, "initial_")}
        states |= {NAMES[method]: (here.sel(trained_by=method), "") for method in METHODS[1:]}
        for name, (own, prefix) in states.items():
            cells = [own[f"{prefix}{matrix}_srank"].sel(layer=layer) for matrix, layer in columns]
            rows.append([str(width), name, *(str(over_seeds(cell)) for cell in cells)])
    return rows


def _falls(last: xr.Dataset, layers: list[str]) -> list[dict[str, object]]:
    """The srank after training over that before, and at which widths it is significantly lower or higher."""
    chosen = {"features": layers[-1:], "weights": layers[1:-1]}
    verdicts: list[dict[str, object]] = []
    for matrix, own in chosen.items():
        ratio = last[f"{matrix}_srank"] / last[f"initial_{matrix}_srank"]
        for method in METHODS[1:]:
            by_width = {
                width: over_seeds(ratio.sel(layer=own, width=width, trained_by=method).mean("layer"))
                for width in all_widths(last)
            }
            lower = [width for width, interval in by_width.items() if interval.high < 1]
            higher = [width for width, interval in by_width.items() if interval.low > 1]
            verdicts.append(
                {
                    "matrix": matrix,
                    "layers": own,
                    "state": NAMES[method],
                    "lower": lower,
                    "higher": higher,
                    "ratios": list(by_width.values()),
                }
            )
    return verdicts


def _means(values: xr.DataArray, dim: str) -> list[str]:
    """A cell for each place along a dimension, over the seeds."""
    return [str(over_seeds(values.sel({dim: place}))) for place in values[dim].values]


def _trained(values: xr.DataArray) -> list[str]:
    return _means(values.sel(trained_by=list(METHODS[1:])), "trained_by")
