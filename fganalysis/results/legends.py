"""Legends of figures, outside their panels, and the entries that they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

GREY = "0.3"  # Of keys that explain a mark or a line whatever its colour.
LEGEND_PLACES: dict[str, Any] = {
    "right": "outside right upper",
    "above": "outside upper center",
    "below": "outside lower center",
}


def key(label: str, colour: Any = GREY, marker: str = "", line: str = "", **look: Any) -> Artist:
    """An entry of a legend: a mark, a line, or both."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker=marker, ls=line, mfc="none", ms=5, lw=1.2, label=label, **look)


def legend(figure: Figure, keys: Sequence[Artist], place: str = "right", columns: int = 1, title: str = "") -> None:
    """The legend of a figure, outside its panels: at the "right", "above" or "below"."""
    figure.legend(
        handles=list(keys),
        loc=LEGEND_PLACES[place],
        ncols=columns,
        title=title or None,
        alignment="left",
        borderaxespad=0.3,
    )
