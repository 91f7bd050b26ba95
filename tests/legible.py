"""What every figure must keep so that it can be read: `faults` names what it does not keep.

`tests/conftest.py` holds every figure to it that is written in a test, whichever study or function drew it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FixedLocator
from matplotlib.transforms import Bbox

from fganalysis.results import plotting

LEAST_LETTERS = 7.0  # Points; 8.6 pixels where a page shows a figure of 9 inches, `style.PAGE_WIDTH`, 800 pixels wide.
TOUCHING = 1.0  # Pixels that boxes of letters may share.
INTERNAL = re.compile(r"[A-Za-z0-9]_[A-Za-z0-9]|\w+\(\w+=|\[1\]")  # snake_case, an estimator's call, a unit of 1.
MATHEMATICS = re.compile(r"\$[^$]*\$")


def faults(figure: Figure) -> list[str]:
    """Sentences, one a fault, of a figure that has been drawn."""
    figure.set_dpi(plotting.DPI)  # The layout is that of the file.
    renderer = FigureCanvasAgg(figure).get_renderer()
    found = []
    boxes = [(text.get_text(), _letters(text, renderer)) for text in _texts(figure)]
    for text in {text: None for text, _ in boxes}:
        if INTERNAL.search(MATHEMATICS.sub("", text)):
            found.append(f"{text!r} is an internal name")
    small = {text.get_text() for text in _texts(figure) if text.get_fontsize() < LEAST_LETTERS}
    found += [f"{text!r} is too small" for text in sorted(small)]
    page = figure.bbox
    for text, box in boxes:
        if box.x0 < page.x0 - TOUCHING or box.x1 > page.x1 + TOUCHING or box.y1 > page.y1 + TOUCHING:
            found.append(f"{text!r} leaves the figure")
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        shared = Bbox.intersection(first, second)
        if shared is not None and min(shared.width, shared.height) > TOUCHING:
            found.append(f"{one!r} covers {other!r}")
    for axes in figure.axes:
        if axes.get_visible() and axes.axison and axes.has_data():
            found += _faults_of_axes(figure, axes)
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
        if legend is not None:
            box = legend.get_window_extent(renderer)
            covered = [axes for axes in figure.axes if _shares(box, axes.get_window_extent(renderer))]
            found += [f"a legend covers the panel {axes.get_title()!r}" for axes in covered]
    return found


def _faults_of_axes(figure: Figure, axes: Axes) -> list[str]:
    """An axis with numbers says of what: at itself, at one that shares it, or at the figure's edge."""
    found = []
    sides = (
        ("x", axes.get_shared_x_axes(), figure.get_supxlabel()),
        ("y", axes.get_shared_y_axes(), figure.get_supylabel()),
    )
    for name, shared, whole in sides:
        siblings = [axes, *shared.get_siblings(axes), *_in_line(figure, axes, name)]
        labels = [getattr(one, f"get_{name}label")() for one in siblings]
        ticks = [label.get_text() for label in getattr(axes, f"get_{name}ticklabels")()]
        numbers = any(re.fullmatch(r"[−\-\d.,]+|\$.*\$", text) for text in ticks)
        axis = getattr(axes, f"{name}axis")
        seen = [tick for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()] if tick.label1.get_text()]
        low, high = sorted(axis.get_view_interval())
        chosen = isinstance(axis.get_major_locator(), FixedLocator)  # By hand, such as the widths of a small run.
        if numbers and not chosen and sum(low <= tick.get_loc() <= high for tick in seen) < 2:
            found.append(f"the {name}-axis of the panel {axes.get_title()!r} has fewer than two numbers")
        if numbers and not whole and not any(labels):
            found.append(f"the {name}-axis of the panel {axes.get_title()!r} has numbers and no name")
    return found


def _in_line(figure: Figure, axes: Axes, name: str) -> list[Axes]:
    """The panels of the same row, whose first one names the y-axis of all, or of the same column."""
    spec = axes.get_subplotspec()
    if spec is None:
        return []
    span = "rowspan" if name == "y" else "colspan"
    others = [other for other in figure.axes if other.get_subplotspec() is not None]
    return [other for other in others if getattr(other.get_subplotspec(), span) == getattr(spec, span)]


def _texts(figure: Figure) -> Iterator[Text]:
    """Every text that is seen: of ticks, those within the limits of their axis."""
    hidden: set[int] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low <= tick.get_loc() <= high or not axes.axison or not axis.get_visible():
                    hidden |= {id(tick.label1), id(tick.label2)}
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden:
            yield text


def _letters(text: Text, renderer: Any) -> Bbox:
    """The box of the letters of a text, without the arrow of an annotation."""
    if isinstance(text, Annotation):
        text.update_positions(renderer)
    return Text.get_window_extent(text, renderer)


def _shares(one: Bbox, other: Bbox) -> bool:
    shared = Bbox.intersection(one, other)
    return shared is not None and min(shared.width, shared.height) > TOUCHING
