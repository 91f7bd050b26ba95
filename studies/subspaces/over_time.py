"""Effective ranks, principal angles over the steps and sharpening of the weights, on the page of `studies.subspaces`.

Every number is read from the collected Dataset. Intervals are 95 % over seeds.
"""

from __future__ import annotations

import xarray as xr

from studies.kit.markdown import listed, table, verb
from studies.kit.seeds import over_seeds
from studies.subspaces.cells import MANY_EXAMPLES, METHODS, TURNING
from studies.subspaces.figures import NAMES
from studies.subspaces.picks import all_widths, hidden_layers, output_layer


def over_time(collected: xr.Dataset, k: int) -> list[str]:
    """The section of the page, at every width; tables are of the first hidden layer."""
    first, layers = hidden_layers(collected)[0], [*hidden_layers(collected), output_layer(collected)]
    last, common = collected.sel(moment="last"), collected.sel(moment="common", layer=first)
    matrices = [str(name) for name in collected["matrix"].values]
    short = [NAMES[method].removeprefix("trained by ") for method in METHODS[1:]]
    turned = [f"{one}, {name}" for one in ("gradients", "Jacobians") for name in short]
    stacked = [f"{one}, {name}" for one in ("one step", "all steps") for name in short]
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
        table(["width", "", *(matrix.replace("_", " ") for matrix in matrices)], _ranks(last.sel(layer=first))),
        "",
        "![principal angles over the steps](subspaces_principal_angles.png)",
        "",
        f"How far the {k} leading directions of {MANY_EXAMPLES} examples together have turned at layer {first} between "
        "initialisation and the common step: mean squared cosine of the principal angles, 1 where nothing turned, "
        "beside that of random subspaces, exact and with its standard deviation:",
        "",
        table(["width", "random", *turned], _turned(common)),
        "",
        *_turning_verdicts(common),
        "",
        f"Entropy rank of one step's activation gradients at layer {first}, mean over the looked-at steps, and of all "
        "of them together: where the second is much higher, the gradients' subspace moves on.",
        "",
        table(["width", *stacked], _stacked(last.sel(layer=first))),
        "",
        "![singular values of the weights](subspaces_weights.png)",
        "",
        "Stable rank of the weights after the last step:",
        "",
        table(["width", "", *(f"layer {one}" for one in layers)], _weights(last.sel(layer=layers))),
        "",
        *_sharpening(last, layers),
    ]


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


def _turning_verdicts(common: xr.Dataset) -> list[str]:
    """Whether the Jacobians' subspace keeps more of its start than the gradients', and whether these keep any."""
    gradients, jacobians = TURNING
    lines = []
    for method in METHODS[1:]:
        ahead, near = [], []
        for width in all_widths(common):
            own = common.sel(width=width, trained_by=method)
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
    for width in all_widths(last):
        own = {method: over_seeds(inner.sel(width=width, trained_by=method)) for method in METHODS[1:]}
        lines.append(
            f"- Self-sharpening, width {width}: W̃ᵀ {verb(own['upstream'], 'raises', 'lowers', 'does not change', 1.0)} "
            f"the stable rank of layers {listed(layers[1:-1])}, to {own['upstream']} of what it was; W̃⊥ brings it to "
            f"{own['orthogonal']} and backpropagation to {own['backpropagation']}."
        )
    return lines


def _widths(names: list[str]) -> str:
    return f"width{'s' if len(names) > 1 else ''} {listed(names)}" if names else "no width"


def _means(values: xr.DataArray, dim: str) -> list[str]:
    """A cell for each place along a dimension, over the seeds."""
    return [str(over_seeds(values.sel({dim: place}))) for place in values[dim].values]


def _trained(values: xr.DataArray) -> list[str]:
    return _means(values.sel(trained_by=list(METHODS[1:])), "trained_by")
