"""The figures of `studies.averaging`, from its Dataset alone: a row of panels a family, a column a step and width."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from fganalysis.estimators import label
from fganalysis.results import schema
from studies.averaging.kinds import GUESSES, family_of
from studies.kit.figures import (
    PAGE_WIDTH,
    Style,
    geometric,
    key,
    legend,
    measured_and_predicted,
    panels,
    points,
    sheet,
    styles,
)
from studies.kit.seeds import half_widths
from studies.kit.signed import signed_root

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES = (6.0, 4.5, 3.5, 2.5)  # Of the marks of a family: of marks in one place each is seen.
MOST = 1e6  # Guesses to which the predicted cosines are drawn.
LEAST = 1e-12  # A squared error below is zero, which has no place on a logarithmic axis.


@sheet()
def figures(dataset: xr.Dataset) -> dict[str, Figure]:
    """Name → figure."""
    own = dataset.sel(space="weight", layer=schema.ALL_LAYERS)
    return {"error": _panels(own, "relative_error"), "cosine": _panels(own, "cosine")}


def _panels(own: xr.Dataset, name: str) -> Figure:
    families: dict[str, list[str]] = {}
    for kind in own["guess_kind"].values:
        families.setdefault(family_of(str(kind)), []).append(str(kind))
    columns = [(trained, width) for trained in own["trained"].values for width in own["width"].values]
    size = (PAGE_WIDTH, 1.35 * len(families) + 0.9)
    figure, grid = panels(len(families), len(columns), size, sharex=True, sharey=True)
    for row, (family, kinds) in zip(grid, families.items(), strict=True):
        labels = [label(GUESSES[kind]) for kind in kinds]
        known_styles = styles(labels)
        marks = [(kind, known_styles[of], ms) for kind, of, ms in zip(kinds, labels, SIZES, strict=False)]
        for axes, (trained, width) in zip(row, columns, strict=True):
            for kind, style, ms in marks:
                _curve(axes, own.sel(width=width, trained=trained, guess_kind=kind), name, style, ms)
            _scaled(axes, own, name)
        known = own["relative_error_predicted"].notnull().any(["width", "trained", "seed", "averaged"])
        _legend(row[-1], marks, family, {kind: bool(known.sel(guess_kind=kind)) for kind in kinds})
    for axes, (trained, width) in zip(grid[0], columns, strict=True):
        axes.set_title(f"{trained},\nwidth {width}")
    figure.supxlabel("guesses averaged")
    quantity = "squared error / squared gradient norm" if name == "relative_error" else "cosine with the gradient"
    figure.supylabel(f"{quantity}, weight space")
    legend(figure, measured_and_predicted(), "above", columns=2)
    return figure


def _scaled(axes: Axes, own: xr.Dataset, name: str) -> None:
    axes.set_xscale("log")
    if name == "relative_error":
        axes.set_yscale("log")
        return
    axes.set_xticks([1, 1e3, MOST])
    axes.set_ylim(min(0.0, float(own["cosine"].min())), 1.02)
    axes.set_yticks([0, *own["target"].values, 1])


def _legend(axes: Axes, marks: list[tuple[str, Style, float]], family: str, predicted: dict[str, bool]) -> None:
    """Beside a row of panels, titled with the family; kinds without a prediction have no line."""
    keys = [key(kind, style.colour, style.marker, "-" if predicted[kind] else "") for kind, style, _ in marks]
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "borderaxespad": 0}
    found = axes.legend(handles=keys, title=family, alignment="left", handlelength=1.5, **place)
    found.get_title().set_fontweight("bold")


def _curve(axes: Axes, own: xr.Dataset, name: str, style: Style, size: float) -> None:
    """Means over seeds, geometric ones of errors, with their intervals, and the mean of the predicted curves."""
    sizes = own["averaged"].values
    end = sizes[-1] if name == "relative_error" else MOST
    m = np.geomspace(1, end, 60)
    bias, variance, square, ceiling = (
        own[f"{source}_predicted"].values[:, None]
        for source in ("relative_squared_bias", "relative_variance", "relative_squared_mean", "squared_ceiling")
    )
    values = own[name].transpose("seed", "averaged").to_numpy()
    if name == "cosine":
        curve = signed_root(ceiling / (1 + variance / square / m)).mean(0)
        middle, half = values.mean(0), half_widths(values, 0)
        interval = (middle - half, middle, middle + half)
    else:
        curve = np.exp(_logs(bias + variance / m).mean(0))
        interval = geometric(_logs(values))
    axes.plot(m, curve, color=style.colour, lw=1)
    points(axes, sizes, interval, style.colour, style.marker, size)


def _logs(squares: Any) -> Any:
    """NaN where there is no error to draw."""
    return np.log(np.where(squares > LEAST, squares, np.nan))
