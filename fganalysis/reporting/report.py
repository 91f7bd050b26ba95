"""report(): one file of HTML from any result, which needs nothing else and asks no other address for anything."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import jinja2
import xarray as xr
from markupsafe import Markup

from fganalysis.arguments import check_kind, check_path, listed
from fganalysis.reporting import compared
from fganalysis.reporting.facts import Fact, facts, remarks
from fganalysis.reporting.groups import Table, grouped
from fganalysis.reporting.parts import Part, parts
from fganalysis.reporting.sections import Section, sections
from fganalysis.results import store
from fganalysis.results.opening import open_results

SUFFIXES = (".html", ".htm")
MOST_NAMED = 20  # Parts that are not shown.


@dataclass(frozen=True)
class Shown:
    """What the template shows of a part."""

    title: str
    facts: list[Fact]
    remarks: list[str]
    tables: list[Table]
    sections: list[Section]
    missing: list[str]


@runtime_checkable
class Kept(Protocol):
    """What keeps a Dataset, as a monitor does."""

    @property
    def dataset(self) -> xr.Dataset: ...


def report(results: xr.DataTree | xr.Dataset | Kept | str | Path, path: str | Path) -> Path:
    """Writes a page that shows a result, and returns its path.

    The page says what was measured on what. It has every number with its 95 % interval in a table, which a click on a
    column's heading sorts, and figures: bias against variance, cosine and efficiency by layer and over steps, energy
    curves, z of what is predicted, progress per cost. What the result lacks is left out, and a sentence says so. The
    page is one file without a reference to any other; the same result gives the same bytes.

    Args:
        results: what `fganalysis.diagnose`, `sample`, `measure`, `progress`, `progress_per_cost` or `cost` returns, any
            other Dataset with named dimensions, what `open_results` returns, the path of a study's results, or a
            monitor, which has its ``dataset``.
        path: of the page, such as "report.html".

    Raises:
        ValueError: what is no result or has no numbers, a path that does not end in .html, or one that cannot be
            written; of a path to results what `open_results` refuses.
    """
    check_path("path", path)
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"path must end in .html, got {str(path)!r}")
    if isinstance(results, str | Path):
        results = open_results(results)
    elif not isinstance(results, xr.DataTree) and isinstance(results, Kept):
        results = results.dataset
    check_kind("results", results, (xr.Dataset, xr.DataTree), "a Dataset, a DataTree or the path of a study's results")
    found, beyond = parts(results)
    found = [part for part in found if part.measured.data_vars or part.subspace.data_vars]
    if not found:
        raise ValueError("results has no numbers to show: give what fga.diagnose, fga.sample or fga.progress returns")
    page = _page([_shown(part, f"part{number}") for number, part in enumerate(found, 1)], beyond)
    try:
        return store.write_bytes(page.encode(), path)
    except OSError as error:
        raise ValueError(f"the page cannot be written: {error}") from error


def _shown(part: Part, prefix: str) -> Shown:
    scores = compared.scores(part)
    found, missing = sections(part, scores, prefix)
    for section in found:
        if section.title == "Measured against predicted":
            section.tables = compared.tables_of(part, scores)
    return Shown(part.title, facts(part), remarks(part), grouped(part, scores), found, missing)


def _page(shown: list[Shown], beyond: list[str]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fganalysis.reporting"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markup"] = Markup
    # Where the files are, and at which commit, depends on the machine.
    origin = store.provenance()
    versions = {"fganalysis": origin["creation_library_version"], **json.loads(origin["versions"])}
    return environment.get_template("page.html.j2").render(
        parts=shown,
        beyond=listed(beyond, MOST_NAMED),
        n_beyond=len(beyond),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
    )
