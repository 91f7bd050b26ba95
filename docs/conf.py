"""The documentation site: `make docs` builds it with Sphinx, without network, and a warning fails the build.

Sphinx, with MyST for Markdown, is what the neighbours use (NumPy, SciPy, xarray, torch, scikit-learn). The tutorial is
run when the site is built, by sphinx-gallery: code that fails, a broken link or a public name without a docstring fails
the build.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fganalysis

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


def public() -> dict[str, Any]:
    """Every public name, and what it is."""
    return {name: getattr(fganalysis, name) for name in sorted(fganalysis.__all__)}


def _refuse_names_without_docstrings(app: Sphinx) -> None:
    bare = [name for name, value in public().items() if not inspect.getdoc(value)]
    if bare:
        raise ExtensionError(f"public names without a docstring: {', '.join(bare)}")


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
    app.connect("autodoc-process-docstring", _literal_blocks, priority=400)  # Before napoleon.
