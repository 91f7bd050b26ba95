"""The figures of `studies.equilibrium`, from its Dataset alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from studies.equilibrium.page import FIRST, LARGE, LOOSEST, POWERS, least_errors, power
from studies.kit.figures import geometric, panels, points
from studies.kit.markdown import capital

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = {"one-sided": "o", "symmetric": "s"}


def figures(dataset: xr.Dataset) -> dict[str, Figure]:
    return {"bias": _bias(dataset), "floor": _floor(dataset), "layers": _layers(dataset)}


def _styles() -> dict[str, tuple[str, str]]:
    import seaborn

    return dict(zip(MARKERS, zip(seaborn.color_palette("colorblind"), MARKERS.values(), strict=False), strict=True))


def _middle(array: xr.DataArray) -> NDArray[np.float64]:
    """The geometric mean over seeds."""
    logs: NDArray[np.float64] = np.log(array.transpose("seed", ...).to_numpy())
    found: NDArray[np.float64] = np.exp(logs.mean(0))
    return found


def _plural(hidden: int) -> str:
    return f"{hidden} hidden layer{'s' * (hidden != 1)}"


def _bias(dataset: xr.Dataset) -> Figure:
    """Relative bias over β, of the first layer, by depth and tolerance, beside the leading terms."""
    from matplotlib.lines import Line2D

    depths, states = dataset["hidden"].values, dataset["state"].values
    drawn, grid = panels(
        len(states), len(depths), (2.3 * len(depths) + 1.6, 2.5 * len(states) + 0.4), sharex=True, sharey=True
    )
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
            axes.set_title(f"{_plural(int(hidden))}, {state}", fontsize=9)
    drawn.supxlabel("β, strength of the nudge [1]", fontsize=10)
    drawn.supylabel("relative bias of the first layer [1]", fontsize=10)
    handles = [
        Line2D([], [], color=colour, marker=marker, mfc="none", lw=0.9, label=capital(scheme))
        for scheme, (colour, marker) in _styles().items()
    ]
    handles += [
        Line2D([], [], color="0.2", marker="o", mfc="none", ls=":", alpha=alpha, label=f"relaxed to {relaxation:g}")
        for relaxation, alpha in zip(relaxations, faint, strict=True)
    ]
    drawn.legend(
        handles=handles, loc="outside right upper", frameon=False, fontsize=8, title="lines: leading\nterm of theory"
    )
    return drawn


def _floor(dataset: xr.Dataset) -> Figure:
    """The least error over β by depth, for each tolerance."""
    from matplotlib.lines import Line2D

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
        axes.set_title(str(state), fontsize=9)
        axes.set_xlabel("hidden layers [1]")
    grid[0, 0].set_ylabel("least relative bias over β,\nfirst layer [1]")
    handles = [
        Line2D([], [], color=c, marker=m, mfc="none", ls="", label=capital(s)) for s, (c, m) in _styles().items()
    ]
    handles += [
        Line2D([], [], color="0.3", ls=lines[i % len(lines)], label=f"relaxed to {value:g}")
        for i, value in enumerate(least["relaxation"].values)
    ]
    drawn.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    return drawn


def _layers(dataset: xr.Dataset) -> Figure:
    """Cosine and wrong signs of every layer of the deepest networks, at the loosest tolerance."""
    from matplotlib.lines import Line2D

    states = dataset["state"].values
    deepest = dataset.isel(hidden=-1, relaxation=LOOSEST).sel(beta=LARGE, method="nearest")
    layers = [name for name in dataset["layer"].values if str(name) != "all"]
    numbers = [int(str(name).removeprefix("layer_")) for name in layers]
    names = {"cosine": "cosine of guess\nand gradient [1]", "wrong_signs": "weights with the\nwrong sign [%]"}
    drawn, grid = panels(len(names), len(states), (2.9 * len(states) + 1.4, 4.4), sharex=True, sharey="row")
    for row, (name, label) in enumerate(names.items()):
        for axes, state in zip(grid[row], states, strict=True):
            for scheme, (colour, marker) in _styles().items():
                own = deepest[name].sel(state=state, scheme=scheme, layer=layers).transpose("layer", "seed").values
                scale = 100 if name == "wrong_signs" else 1
                axes.plot(numbers, scale * np.nanmean(own, axis=1), color=colour, lw=1, label=capital(scheme))
                for seed in range(own.shape[1]):
                    axes.plot(numbers, scale * own[:, seed], ls="", marker=marker, ms=3.5, mfc="none", color=colour)
            axes.set_xticks(numbers)
            if row == 0:
                axes.set_title(f"{_plural(int(deepest['hidden']))}, {state}, β = {power(LARGE)}", fontsize=9)
        grid[row, 0].set_ylabel(label)
    drawn.supxlabel("layer, counted from the inputs [1]", fontsize=10)
    handles = [Line2D([], [], color=c, marker=m, mfc="none", lw=1, label=capital(s)) for s, (c, m) in _styles().items()]
    drawn.legend(
        handles=handles, loc="outside right upper", frameon=False, fontsize=8, title="marks: seeds\nlines: means"
    )
    return drawn
