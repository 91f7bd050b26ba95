"""The studies: listed with their questions, and run, from an installed package as from a clone."""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
# In a wheel the folder that holds `studies` lies in the package; in a clone it is the clone.
PLACES = (PACKAGE / "_shipped", PACKAGE.parent)


def folder() -> Path:
    """The folder that holds the package `studies`.

    Raises:
        ValueError: the package was installed without them.
    """
    for place in PLACES:
        if (place / "studies" / "kit").is_dir():
            return place
    raise ValueError("the studies are not beside the package: install it from its wheel, or work in a clone")


def questions() -> dict[str, str]:
    """The question of every study, by its name: the first line of its docstring, read without importing it."""
    found = {}
    for path in sorted((folder() / "studies").glob("*/__main__.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.parent.name] = docstring.split("\n\n")[0].replace("\n", " ")
    return found


def run(name: str | None, settings: Sequence[str]) -> None:
    """Runs a study as `python -m studies.NAME` does, or lists all.

    Raises:
        ValueError: no study has this name.
    """
    known = questions()
    if name is None:
        width = max(map(len, known))
        print("\n".join(f"{study:{width}}  {question}" for study, question in known.items()))
        return
    if name not in known:
        raise ValueError(f"there is no study {name!r}: the studies are {', '.join(known)}")
    sys.path.insert(0, str(folder()))
    sys.argv = [name, *settings]
    runpy.run_module(f"studies.{name}", run_name="__main__", alter_sys=True)
