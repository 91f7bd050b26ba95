"""A study's page: rendered from the template in the study's folder, and written with its figures.

A template (``page.md.j2``) holds the sentences, and the study's Python the numbers and the verdicts. In a template, a
paragraph and an item of a list may be broken over lines; the page has each in one line.

A page goes to the study's results, unless it is told otherwise. The pages of docs/results are made with the settings
that they state. A run with other settings must not replace them unasked, so only ``--page docs/results`` writes there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import jinja2
import xarray as xr

from fganalysis.results import plotting, store
from studies.kit import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDIES = Path(__file__).resolve().parents[1]
# The beginnings of lines that are never joined to the line before: tables, headings, figures, items and code.
ALONE = re.compile(r"\s*(\||#|!\[|[-*] |```)")
FINISHED = re.compile(r"\s*(\||#|!\[|```)")  # ... and of lines to which the next line is not joined.
FILTERS = {
    "capital": markdown.capital,
    "listed": markdown.listed,
    "number": markdown.number,
    "percent": markdown.percent,
    "scientific": markdown.scientific,
    "table": lambda rows, header: markdown.table(header, rows),
    "verb": markdown.verb,
}


def render(study: str, values: Mapping[str, object], template: str = "page.md.j2") -> str:
    """The text of a page, from a template in the study's folder; the same values give the same text.

    Raises
    ------
    jinja2.UndefinedError
        A name of the template that ``values`` lacks.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(STUDIES, encoding="utf-8"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # The pages are Markdown: a "<" must stay one.
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FILTERS)
    return joined(environment.get_template(f"{study}/{template}").render(values))


def joined(text: str) -> str:
    """The text with each paragraph and each item in one line, and one empty line between them at the most."""
    lines: list[str] = []
    for line in text.strip().splitlines():
        before = lines[-1] if lines else ""
        if not line.strip():
            if before:
                lines.append("")
        elif not before or ALONE.match(line) or FINISHED.match(before):
            lines.append(line.rstrip())
        else:
            lines[-1] = f"{before} {line.strip()}"
    return "\n".join(lines) + "\n"


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


class Kept(Protocol):
    """Settings of a study: where its results go, and its page if not there."""

    @property
    def out(self) -> Path: ...

    @property
    def page(self) -> Path | None: ...


def publish(
    name: str,
    result: xr.Dataset | xr.DataTree,
    text: str,
    figures: Mapping[str, Figure],
    settings: Kept,
    *,
    with_result: bool = False,
) -> None:
    """Stores the study's collected result as out/NAME.nc, writes the page with its figures, and prints the page."""
    store.write(result, settings.out / f"{name}{store.SUFFIX}")
    write(name, text, figures, settings.out, settings.page, with_result=with_result)
    print(text)
