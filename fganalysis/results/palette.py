"""One colour and one marker an estimator, in every figure of the package and of the studies.

An estimator is known by its key, which opens its label: ``orthogonal`` in ``orthogonal(k=2)`` and in ``orthogonal, k =
10``. The estimators that figures show side by side most often have colours that colour-blind readers can tell apart; a
reader who sees no colour has the marker. Settings of one estimator are shades of its colour.

An estimator without a line in `STYLES`, such as a new one or a user's own, has a style that follows from its key alone,
so it is the same in every figure and in every process.

What is no estimator, such as widths, moments or parts of an error, has none of their colours: `ramp` gives colours of
what has an order, and `CATEGORIES` those of what has none.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """A colour, as ``#rrggbb``, and a marker of matplotlib."""

    colour: str
    marker: str


STYLES: dict[str, Style] = {
    "backpropagation": Style("#cc78bc", "v"),
    "weight": Style("#0173b2", "o"),
    "activity": Style("#de8f05", "s"),
    "upstream": Style("#029e73", "^"),
    "orthogonal": Style("#d55e00", "D"),
    "newton_schulz": Style("#661100", "P"),
    "preconditioned": Style("#56b4e9", "X"),
    "activation_mixing": Style("#882255", "h"),
    "multi_tangent": Style("#332288", "d"),
    "finite_difference": Style("#999933", "8"),
    "feedback_alignment": Style("#7f7f7f", "v"),
    "direct_feedback": Style("#b2182b", "^"),
    "forward_direct_feedback": Style("#44aa99", "D"),
    "local_loss": Style("#aa4499", "s"),
    "minibatch": Style("#4d4d4d", "o"),
    "guided": Style("#117733", "p"),
    "gradient_projection": Style("#ddaa33", "H"),
}
# What a figure calls an estimator, where that is not its key with spaces.
SHOWN_AS = {
    "weight": "weight perturbation",
    "activity": "activity perturbation",
    "newton_schulz": "Newton–Schulz",
    "multi_tangent": "multi-tangent",
}
# Colours of what is no estimator, far apart in lightness, as they are in grey, and for colour-blind readers.
CATEGORIES = ("#004488", "#bb5566", "#ddaa33", "#000000", "#6699cc", "#117733", "#882255", "#aaaaaa")
# Markers of estimators that have no line: none of the table's, so that no style is that of another estimator.
OTHER_MARKERS = ("<", ">", "p", "*", "H")
MARKERS = (*dict.fromkeys(style.marker for style in STYLES.values()), *OTHER_MARKERS)
DARKEST, LIGHTEST = 0.45, 0.4  # How far the shades of a colour go towards black and towards white.


def key_of(label: str) -> str:
    """The key that opens a label, in the registry's spelling: "Newton-Schulz, k = 10" is ``newton_schulz``."""
    key = label.split("(")[0].split(",")[0].strip()
    spelt = key.lower().replace(" ", "_").replace("-", "_")
    return spelt if spelt in STYLES else key


def style(label: str) -> Style:
    """The style of an estimator, by its key or its label; settings change nothing."""
    key = key_of(label)
    if key in STYLES:
        return STYLES[key]
    colours = tuple(known.colour for known in STYLES.values())
    number = zlib.crc32(key.encode())
    return Style(colours[number % len(colours)], OTHER_MARKERS[number // len(colours) % len(OTHER_MARKERS)])


def colour(label: str) -> str:
    """The colour of an estimator, by its key or its label."""
    return style(label).colour


def marker(label: str) -> str:
    """The marker of an estimator, by its key or its label."""
    return style(label).marker


def words(label: str) -> str:
    """A label as figures show it: ``multi_tangent(k=8)`` is "multi-tangent, k = 8", and ``weight, sphere`` likewise.

    A name that a user gave stays as it is.
    """
    key = key_of(label)
    if key not in STYLES and key not in SHOWN_AS:
        return label
    settings = label[len(key) :].removeprefix("(").removesuffix(")").removeprefix(", ")
    changed = settings.replace("_", " ").replace(" = ", "=").replace("=", " = ")
    name = SHOWN_AS.get(key, key.replace("_", " "))
    return f"{name}, {changed}" if changed else name


def ramp(n_colours: int) -> list[str]:
    """Colours from dark to light of what has an order, none of them an estimator's and none too light on white."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](0.8 * place / max(n_colours - 1, 1))) for place in range(n_colours)]


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """The styles of the estimators of one figure, all different.

    Labels of one key are shades of its colour, from dark to light in their order, and have different markers. An
    estimator whose style is taken already gets the next free marker.
    """
    names = list(dict.fromkeys(labels))
    counts = Counter(map(key_of, names))
    ramps = {key: iter(shades(colour(key), count)) for key, count in counts.items()}
    chosen: dict[str, Style] = {}
    used = Counter[str]()
    for name in names:
        key = key_of(name)
        shade, start = next(ramps[key]), MARKERS.index(marker(key)) + used[key]
        used[key] += 1
        rest = [Style(shade, MARKERS[(start + step) % len(MARKERS)]) for step in range(len(MARKERS))]
        chosen[name] = next((one for one in rest if one not in chosen.values()), rest[0])
    return chosen


def shades(colour: str, n_shades: int) -> list[str]:
    """Shades of a colour from dark to light; a single one is the colour itself."""
    if n_shades < 2:
        return [colour] * n_shades
    steps = [index / (n_shades - 1) * (DARKEST + LIGHTEST) - DARKEST for index in range(n_shades)]
    channels = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return ["#" + "".join(f"{_mixed(value, step):02x}" for value in channels) for step in steps]


def _mixed(channel: int, step: float) -> int:
    """A channel of a colour, moved towards black for a negative step and towards white for a positive one."""
    return round(channel * (1 + step) if step < 0 else channel + (255 - channel) * step)
