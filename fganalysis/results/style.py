"""The style sheet of every figure: of the package, of reports and of the studies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Points. A figure of PAGE_WIDTH inches that a page shows 800 pixels wide has letters of ten pixels and more.
SMALL_LETTERS, LETTERS = 8.0, 9.0
PAGE_WIDTH = 9.0
SHEET: Any = {  # Any: matplotlib's types list the names one by one.
    # matplotlib brings it along, and it has the letters of the formulas: W̃, ⊥, ᵀ, ‖, ⟨, η. Others may lack some.
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": LETTERS,
    "axes.titlesize": LETTERS,
    "axes.labelsize": LETTERS,
    "figure.titlesize": LETTERS,
    "figure.labelsize": LETTERS,
    "xtick.labelsize": SMALL_LETTERS,
    "ytick.labelsize": SMALL_LETTERS,
    "legend.fontsize": SMALL_LETTERS,
    "legend.title_fontsize": SMALL_LETTERS,
    "legend.frameon": False,
}


@contextmanager
def sheet() -> Iterator[None]:
    """Draws what is drawn within, or in a function decorated with it, by the style sheet.

    It must hold until a figure is whole: a legend takes its sizes when it is made.
    """
    import matplotlib
    import seaborn

    with seaborn.axes_style("whitegrid"), seaborn.plotting_context("paper"), matplotlib.rc_context(SHEET):
        yield
