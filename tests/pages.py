"""What the tests of Markdown pages share: a page's pieces of code, what it says they print, and its tables."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def text_of(page: str) -> str:
    """A page by its path from the root of the repository, such as ``docs/recipes.md``."""
    return (ROOT / page).read_text(encoding="utf-8")


def code_of(text: str) -> list[str]:
    """Every piece of Python, in order."""
    return _fenced(text, "python")


def printed_in(text: str) -> list[str]:
    """Every piece of output that the page shows, in order."""
    return _fenced(text, "text")


def _fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def run(
    pieces: Mapping[str, str] | list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], list[str]]:
    """Runs pieces of code one after the other as one module; returns its names and what each piece has printed.

    pieces: from what a failure is called to the code, or a list of code. Global generators are put back.
    """
    named = pieces if isinstance(pieces, Mapping) else {f"piece {n}": piece for n, piece in enumerate(pieces, 1)}
    module = ModuleType("pasted")
    monkeypatch.setitem(sys.modules, "pasted", module)  # Where a dataclass looks for its annotations.
    printed = []
    capsys.readouterr()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, code in named.items():
            try:
                exec(compile(code, name, "exec"), vars(module))
            except Exception as error:
                raise AssertionError(f"the code of {name!r} fails") from error
            printed.append(capsys.readouterr().out)
    plt.close("all")
    return vars(module), printed


def without_numbers(text: str) -> str:
    """Numbers, which differ in their last digits between machines, as #, and spaces as one."""
    return " ".join(re.sub(r"\d[\d.]*(?:e[-+]?\d+)?", "#", text).split())


def tables(text: str) -> list[list[list[str]]]:
    """Every table, a row a list of cells, the headings first."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    split = [[_cells(line) for line in table.splitlines()] for table in found]
    return [[rows[0], *rows[2:]] for rows in split]


def table(text: str, first_heading: str) -> list[list[str]]:
    """The rows of the first table whose first column has this heading, without the headings."""
    return next(rows[1:] for rows in tables(text) if rows[0][0] == first_heading)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
