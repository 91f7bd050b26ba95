"""Effective ranks, principal angles over the steps and sharpening of the weights, on the page of `studies.subspaces`.

Every number is read from the collected Dataset. Intervals are 95 % over seeds.
"""

from __future__ import annotations

from collections.abc import Iterable

import xarray as xr

from studies.markdown import listed, table, verb
from studies.seed_intervals import over_seeds
from studies.subspace_cells import METHODS, TURNING
from studies.subspace_figures import NAMES
from studies.subspace_picks import all_widths, hidden_layers, output_layer


def over_time(collected: xr.Dataset, k: int) -> list[str]:
    """The section of the page, at every width; tables are of the first hidden layer."""
    widths, first = all_widths(collected), hidden_layers(collected)[0]
    layers = [*hidden_layers(collected), output_layer(collected)]
    last = collected.sel(moment="last")
    matrices = [str(name) for name in collected["matrix"].values]
    common = collected.sel(moment="common", layer=first)
    ranks, turned, stacked, weights = [], [], [], []
    for width in widths:
        for method in METHODS:
            own = last["entropy_rank"].sel(width=width, trained_by=method, layer=first)
            ranks.append([str(width), NAMES[method], *_means(own.sel(matrix=x) for x in matrices)])
        at_start = last["initial_weight_rank"].sel(width=width, trained_by="backpropagation")
        states = {"at initialisation": at_start}
        states |= {NAMES[m]: last["weight_rank"].sel(width=width, trained_by=m) for m in METHODS[1:]}
        weights += [[str(width), name, *_means(one.sel(layer=x) for x in layers)] for name, one in states.items()]
        here = common.sel(width=width)
        random = f"{float(here['random_alignment'].mean()):.2g}"
        spread = f"{float(here['random_alignment_spread'].mean()):.1g}"
        row = [str(width), f"{random} (spread {spread})"]
        for matrix in TURNING:
            row += _means(here["turned"].sel(matrix=matrix, trained_by=method) for method in METHODS[1:])
        turned.append(row)
        for_stack = (last[name].sel(width=width, layer=first) for name in ("single_rank", "stacked_rank"))
        stacked.append([str(width), *_means(one.sel(trained_by=m) for one in for_stack for m in METHODS[1:])])
    short = {method: NAMES[method].removeprefix("trained by ") for method in METHODS[1:]}
    of = ("gradients", "Jacobians")
    return [
        "## Energy curves, ranks, turning and sharpening",
        "",
        "![energy curves at every width](subspaces_energy_by_width.png)",
        "",
        "Share of the energy, and of the squared gradient, in the leading modes: means over seeds with their range, "
        "the Jacobians' over examples too.",
        "",
        f"Entropy ranks at layer {first}, after the last step:",
        "",
        table(["width", "", *(matrix.replace("_", " ") for matrix in matrices)], ranks),
        "",
        "![principal angles over the steps](subspaces_principal_angles.png)",
        "",
        f"How far the {k} leading directions of all examples together have turned at layer {first} between "
        "initialisation and the common step: mean squared cosine of the principal angles, 1 where nothing turned, "
        "beside that of random subspaces, exact and with its standard deviation:",
        "",
        table(["width", "random", *(f"{one}, {name}" for one in of for name in short.values())], turned),
        "",
        *_turning_verdicts(collected, first),
        "",
        f"Entropy rank of one step's activation gradients at layer {first}, mean over the looked-at steps, and of all "
        "of them together: where the second is much higher, the gradients' subspace moves on.",
        "",
        table(["width", *(f"{one}, {name}" for one in ("one step", "all steps") for name in short.values())], stacked),
        "",
        "![singular values of the weights](subspaces_weights.png)",
        "",
        "Stable rank of the weights after the last step:",
        "",
        table(["width", "", *(f"layer {one}" for one in layers)], weights),
        "",
        *_sharpening(last, layers),
    ]


def _turning_verdicts(collected: xr.Dataset, layer: str) -> list[str]:
    """Whether the Jacobians' subspace keeps more of its start than the gradients', and whether these keep any."""
    gradients, jacobians = TURNING
    widths, lines = all_widths(collected), []
    for method in METHODS[1:]:
        ahead, near = [], []
        for width in widths:
            own = collected.sel(moment="common", layer=layer, width=width, trained_by=method)
            turned = own["turned"].sel(matrix=gradients)
            if over_seeds(own["turned"].sel(matrix=jacobians) - turned).low > 0:
                ahead.append(str(width))
            if over_seeds(turned - own["random_alignment"]).low <= 0:
                near.append(str(width))
        lines.append(
            f"- {NAMES[method][0].upper()}{NAMES[method][1:]}, the Jacobians' directions keep more of their start than "
            f"the gradients' at {_widths(ahead)}; the gradients' are no nearer to their start than random ones, within "
            f"these intervals, at {_widths(near)}."
        )
    return lines


def _sharpening(last: xr.Dataset, layers: list[str]) -> list[str]:
    inner = (last["weight_rank"] / last["initial_weight_rank"]).sel(layer=layers[1:-1]).mean("layer")
    lines = []
    for width, ratio in zip(last["width"].values, _each_width(inner), strict=True):
        own = {method: over_seeds(ratio.sel(trained_by=method)) for method in METHODS[1:]}
        lines.append(
            f"- Self-sharpening, width {width}: W̃ᵀ {verb(own['upstream'], 'raises', 'lowers', 'does not change', 1.0)} "
            f"the stable rank of layers {listed(layers[1:-1])}, to {own['upstream']} of what it was; W̃⊥ brings it to "
            f"{own['orthogonal']} and backpropagation to {own['backpropagation']}."
        )
    return lines


def _each_width(values: xr.DataArray) -> list[xr.DataArray]:
    return [values.sel(width=width) for width in values["width"].values]


def _widths(names: list[str]) -> str:
    return f"width{'s' if len(names) > 1 else ''} {listed(names)}" if names else "no width"


def _means(variables: Iterable[xr.DataArray]) -> list[str]:
    return [str(over_seeds(one)) for one in variables]
