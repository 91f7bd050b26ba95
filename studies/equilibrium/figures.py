"""The figures of `studies.equilibrium`, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from studies.equilibrium.page import FIRST, LARGE, LOOSEST, POWERS, least_errors
from studies.kit.figures import CATEGORIES, PAGE_WIDTH, geometric, key, legend, panels, points, scale, sheet

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

STATES = {"initial": "initial weights", "trained": "after training"}
MARKERS = {"one-sided": "o", "symmetric": "s"}


@sheet()
def figures(dataset: xr.Dataset) -> dict[str, Figure]:
    return {"bias": _bias(dataset), "floor": _floor(dataset), "layers": _layers(dataset)}


def _styles() -> dict[str, tuple[str, str]]:
    return dict(zip(MARKERS, zip(CATEGORIES, MARKERS.values(), strict=False), strict=True))


def _keys(line: str = "") -> list[Artist]:
    return [key(f"{scheme} nudge", colour, marker, line) for scheme, (colour, marker) in _styles().items()]


def _middle(array: xr.DataArray) -> NDArray[np.float64]:
    """The geometric mean over seeds."""
    logs: NDArray[np.float64] = np.log(array.transpose("seed", ...).to_numpy())
    found: NDArray[np.float64] = np.exp(logs.mean(0))
    return found


def _plural(hidden: int) -> str:
    return f"{hidden} hidden layer{'s' * (hidden != 1)}"


def _bias(dataset: xr.Dataset) -> Figure:
    """Relative bias over β, of the first layer, by depth and tolerance, beside the leading terms."""
    depths, states = dataset["hidden"].values, dataset["state"].values
    drawn, grid = panels(len(states), len(depths), (PAGE_WIDTH, 2.4 * len(states) + 0.9), sharex=True, sharey=True)
    relaxations = dataset["relaxation"].values
    faint = np.linspace(0.35, 1.0, len(relaxations))
    for row, state in enumerate(states):
        for axes, hidden in zip(grid[row], depths, strict=True):
            for scheme, (colour, marker) in _styles().items():
                own = dataset.sel(hidden=hidden, state=state, scheme=scheme, layer=FIRST)
                x = own["beta"].values
                leading = _middle(own["leading"]) * x ** POWERS[scheme]
                axes.plot(x, leading, color=colour, lw=0.9)
                for place, alpha in enumerate(faint):
                    middle = _middle(own["relative_bias"].isel(relaxation=place))
                    axes.plot(x, middle, ls=":", lw=0.8, marker=marker, ms=3.5, mfc="none", color=colour, alpha=alpha)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_ylim(1e-9, 30)
            axes.set_title(f"{_plural(int(hidden))}, {STATES[str(state)]}")
    drawn.supxlabel("β, strength of the nudge")
    drawn.supylabel("relative bias of the first layer")
    tolerances = [
        key(f"marks: measured, relaxed to {scale(value)}", marker="o", line=":", alpha=alpha)
        for value, alpha in zip(relaxations, faint, strict=True)
    ]
    legend(drawn, [*_keys(), key("lines: leading term of the theory", line="-"), *tolerances], "above", columns=3)
    return drawn


def _floor(dataset: xr.Dataset) -> Figure:
    """The least error over β by depth, for each tolerance."""
    least, states = least_errors(dataset), dataset["state"].values
    drawn, grid = panels(1, len(states), (3.0 * len(states) + 1.8, 2.9), sharey=True)
    lines = ("-", "--", ":", "-.")
    for axes, state in zip(grid[0], states, strict=True):
        for scheme, (colour, marker) in _styles().items():
            for place in range(least.sizes["relaxation"]):
                own = least.sel(state=state, scheme=scheme).isel(relaxation=place).transpose("seed", "hidden")
                interval = geometric(np.log(own.values))
                points(axes, own["hidden"].values, interval, colour, marker, 4)
                axes.plot(own["hidden"].values, interval[1], color=colour, lw=1, ls=lines[place % len(lines)])
        axes.set_xscale("log", base=2)
        axes.set_xticks(least["hidden"].values, [str(h) for h in least["hidden"].values])
        axes.set_yscale("log")
        axes.set_title(STATES[str(state)])
        axes.set_xlabel("hidden layers")
    grid[0, 0].set_ylabel("least relative bias of\nthe first layer over all β")
    tolerances = [
        key(f"relaxed to {scale(value)}", line=lines[place % len(lines)])
        for place, value in enumerate(least["relaxation"].values)
    ]
    legend(drawn, [*_keys(), *tolerances])
    return drawn


def _layers(dataset: xr.Dataset) -> Figure:
    """Cosine and wrong signs of every layer of the deepest networks, at the loosest tolerance."""
    states = dataset["state"].values
    deepest = dataset.isel(hidden=-1, relaxation=LOOSEST).sel(beta=LARGE, method="nearest")
    layers = [name for name in dataset["layer"].values if str(name) != "all"]
    numbers = [int(str(name).removeprefix("layer_")) for name in layers]
    names = {"cosine": "cosine of guess\nwith the gradient", "wrong_signs": "weights with the\nwrong sign (%)"}
    drawn, grid = panels(len(names), len(states), (2.9 * len(states) + 1.4, 4.4), sharex=True, sharey="row")
    for row, (name, label) in enumerate(names.items()):
        for axes, state in zip(grid[row], states, strict=True):
            for scheme, (colour, marker) in _styles().items():
                own = deepest[name].sel(state=state, scheme=scheme, layer=layers).transpose("layer", "seed").values
                unit = 100 if name == "wrong_signs" else 1
                axes.plot(numbers, unit * np.nanmean(own, axis=1), color=colour, lw=1)
                for seed in range(own.shape[1]):
                    axes.plot(numbers, unit * own[:, seed], ls="", marker=marker, ms=3.5, mfc="none", color=colour)
            axes.set_xticks(numbers)
            if row == 0:
                axes.set_title(f"{STATES[str(state)]}, β = {scale(LARGE, 2)}")
        grid[row, 0].set_ylabel(label)
    drawn.supxlabel(f"layer, counted from the inputs, of networks with {_plural(int(deepest['hidden']))}")
    legend(drawn, [*_keys(), key("marks: seeds", marker="o"), key("lines: means over seeds", line="-")])
    return drawn
