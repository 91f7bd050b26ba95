"""A figure as SVG inside a page: text stays text, the ground is transparent, and the same figure is the same bytes."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def svg(figure: Figure, name: str, words: str) -> str:
    """The element of a figure, which is closed. name: unique in the page. words: what it shows, to be read out."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    file = io.StringIO()
    # Names of clipped areas are hashes of what they clip and of the salt: a salt a figure, so that none is there twice.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=NO_METADATA)
    plt.close(figure)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", text)  # Inside HTML an SVG needs no names of its own.
    referenced = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referenced else "", text)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(words)}"', 1).strip()
