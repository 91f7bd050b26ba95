"""Names beside the points that they belong to, where they cover nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from studies.kit.figures import SMALL_LETTERS, shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

MARK = 5.0  # Points around the middle of a mark that a name leaves free.
DISTANCES = (8, 18, 30)  # Points from a mark to its name, the best first; from the second on a line leads to the mark.
# Directions from a mark to its name, the best first: right, up, horizontal and vertical alignment.
DIRECTIONS = (
    (1, 0, "left", "center"),
    (-1, 0, "right", "center"),
    (0, 1, "center", "bottom"),
    (0, -1, "center", "top"),
    (1, 1, "left", "bottom"),
    (-1, 1, "right", "bottom"),
    (1, -1, "left", "top"),
    (-1, -1, "right", "top"),
)


def label_points(axes: Axes, places: Mapping[str, tuple[float, float]], colours: Sequence[str]) -> None:
    """Writes each name at the nearest place where it covers no mark, bar, text or edge of the panel.

    Call it when the figure is whole and its axes have their limits. A name without a free place takes the farthest.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.transforms import Bbox

    figure = axes.figure.figure
    figure.draw_without_rendering()  # The layout, and so the room, is known only then.
    inside, point = axes.get_window_extent(), figure.dpi / 72
    marks = [axes.transData.transform(place) for place in places.values()]
    reach = MARK * point
    taken: list[Bbox] = [Bbox([[x - reach, y - reach], [x + reach, y + reach]]) for x, y in marks]
    taken += [text.get_window_extent() for text in axes.texts]
    bars = [line for lines in axes.collections if isinstance(lines, LineCollection) for line in lines.get_segments()]
    taken += [Bbox(axes.transData.transform(ends)).padded(point) for ends in bars]
    near = DISTANCES[0]
    # A long line to the left or to the right would lead over neighbours: many points have a bias of zero.
    sides = [(near, *side) for side in DIRECTIONS]
    sides += [(distance, *side) for distance in DISTANCES[1:] for side in DIRECTIONS if side[1] != 0]
    for (name, place), colour in zip(places.items(), colours, strict=True):
        # The light colours of marks are too light for letters.
        look: dict[str, Any] = {"color": shades(colour, 2)[0], "fontsize": SMALL_LETTERS, "zorder": 5}
        for distance, right, up, horizontal, vertical in sides:
            text = axes.annotate(
                name,
                place,
                (distance * right, distance * up),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 0} if distance > near else None,
                **look,
            )
            text.set_in_layout(False)
            box = _letters(text)
            if inside.contains(*box.min) and inside.contains(*box.max) and not box.count_overlaps(taken):
                break
            if (distance, right, up, horizontal, vertical) != sides[-1]:
                text.remove()
        taken.append(box)


def _letters(annotation: Any) -> Bbox:
    """The box of the letters without the line that leads to the mark."""
    from matplotlib.text import Text

    annotation.get_window_extent()  # It moves the letters to their place.
    box: Bbox = Text.get_window_extent(annotation)
    return box
