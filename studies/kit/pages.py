"""Where a study's page goes, with its figures: to its results, unless it is told otherwise.

The pages of docs/results are made with the settings that they state. A run with other settings must not replace them
unasked, so only ``--page docs/results`` writes there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fganalysis.results import plotting, store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write(
    name: str,
    text: str,
    figures: Mapping[str, Figure],
    out: Path,
    page: Path | None,
    *,
    with_result: bool = False,
) -> Path:
    """Writes NAME.md and NAME_FIGURE.png (NAME.png for the figure "") to ``page``, or to ``out`` where that is None.

    With ``with_result`` the study's collected result, out/NAME.nc, is copied beside the page.

    Returns:
        The folder.
    """
    folder = out if page is None else page
    for title, figure in figures.items():
        plotting.save(figure, folder / f"{name}{'_' if title else ''}{title}.png")
    result = out / f"{name}{store.SUFFIX}"
    if with_result and folder != out:
        store.write_bytes(result.read_bytes(), folder / result.name)
    store.write_bytes(text.encode(), folder / f"{name}.md")
    return folder
