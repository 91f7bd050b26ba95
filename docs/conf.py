"""The documentation site: `make docs` builds it with Sphinx, without network, and a warning fails the build.

Why Sphinx, and not MkDocs: the neighbours use it (NumPy, SciPy, xarray, torch, scikit-learn), with MyST it reads the
same Markdown that a repository shows, sphinx-gallery runs the tutorial when the site is built, and autodoc finds names
that are imported when they are first used. Code that fails, a broken link or a public name without a docstring fails
the build; tests/test_site.py tries each.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fganalysis
from fganalysis.estimators.registry import ESTIMATORS

project = "fganalysis"
author = "fganalysis developers"
release = version = fganalysis.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "tutorial"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 6
napoleon_custom_sections = [("Fields", "params_style")]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = f"fganalysis {release}"
html_static_path: list[str] = []
html_copy_source = False
html_show_copyright = False
sphinx_gallery_conf = {
    "examples_dirs": "tutorial",
    "gallery_dirs": "generated/tutorial",
    "filename_pattern": ".*",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "backreferences_dir": None,
    "show_signature": False,
}
suppress_warnings = ["config.cache"]


def names_without_docstrings() -> list[str]:
    """Public names that say nothing: of the package, its estimators, its helpers for tests, and its public modules."""
    places = [fganalysis, fganalysis.estimators, fganalysis.testing]
    places += [value for name in fganalysis.__all__ if inspect.ismodule(value := getattr(fganalysis, name))]
    return sorted(
        {
            f"{place.__name__}.{name}"
            for place in places
            for name, value in inspect.getmembers(place)
            if not name.startswith("_") and _is_ours(value) and not _docstring(value)
        }
    )


def _is_ours(value: Any) -> bool:
    made = inspect.isclass(value) or inspect.isfunction(value)
    return made and (value.__module__ or "").startswith("fganalysis.")


def _docstring(value: Any) -> str:
    """What somebody has written: no base's text, and not the signature that a dataclass writes itself."""
    text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    return "" if not text or text.startswith(f"{value.__name__}(") else text


def _refuse_names_without_docstrings(app: Sphinx) -> None:
    bare = names_without_docstrings()
    if bare:
        raise ExtensionError(f"public names without a docstring: {', '.join(bare)}")


def _formula_of_its_file(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """An estimator's formula, its noise, its bias and its source are in the text of its file."""
    if thing in ESTIMATORS.values():
        text = inspect.cleandoc(sys.modules[thing.__module__].__doc__ or "").splitlines()
        lines[:] = [*text, "", *lines]


def _links(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Links to the sections that a docstring names; tests/test_docs.py holds that they are there."""
    lines[:] = [re.sub(r"docs/(\w+)\.md#([\w-]+)", r"`\1, \2 <\1.html#\2>`__", line) for line in lines]


def _literal_blocks(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Formulas and tables of a docstring are the lines that a blank one sets off and that are indented further."""

    def indent(line: str) -> int:
        return len(line) - len(line.lstrip())

    marked: list[str] = []
    for before, blank, line in zip(["", "", *lines], ["", *lines], lines, strict=False):
        inside = before.strip() and not blank.strip() and line.strip() and indent(line) > indent(before)
        if inside and not before.lstrip().startswith(("-", "Args", "Fields", "Attributes", "Returns", "Raises")):
            marked += [" " * indent(before) + "::", ""]
        marked.append(line)
    lines[:] = marked


def setup(app: Sphinx) -> None:
    """Checks before anything is built."""
    app.connect("builder-inited", _refuse_names_without_docstrings)
    app.connect("autodoc-process-docstring", _formula_of_its_file, priority=300)
    app.connect("autodoc-process-docstring", _links, priority=350)
    app.connect("autodoc-process-docstring", _literal_blocks, priority=400)  # Before napoleon.
