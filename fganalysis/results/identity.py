"""What a study's cell is, and everything that its numbers depend on: the line of JSON that its file carries.

    schema      of this line and of the file
    study       the folder of the cell's function
    function    the function that makes it, by module and name
    settings    its arguments, seed and block range among them
    code        a hash of the project's modules that the function reaches by imports
    versions    of Python, NumPy, SciPy, torch and xarray
    data        a hash of each dataset, or other content, that it reads

A cell whose line differs in anything is another cell. Comments and docstrings are no code, and neither is what stores
and shows results: a change of these leaves all cells as they are.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import xarray as xr

from fganalysis.arguments import check_kind, described, listed
from fganalysis.results import store

SCHEMA = 1
PROJECT = ("fganalysis", "theory", "studies")
STORED_AND_SHOWN = ("fganalysis.results.", "fganalysis.reporting.")
NAMES_OF_VARIABLES = "fganalysis.results.schema"
ATTRIBUTE = "cell_identity"

Make = Callable[..., "xr.Dataset | xr.DataTree"]


@dataclass(frozen=True)
class Cell:
    """One unit of a study's work.

    Parameters
    ----------
    name
        Where its file lies in the study's folder, with "/" between folders and without suffix.
    make
        A function of a module, so that another process can import it. It returns the Dataset or DataTree.
    settings
        Its keyword arguments: numbers, texts, lists of these, or frozen dataclasses of such fields.
    data
        The hash of each dataset that it reads, by name.
    places
        Further keyword arguments on which no number depends, such as a bound on memory, or through ``data`` alone, such
        as the path of a file.
    resumes
        Whether it takes a keyword argument ``scratch``, a folder for the checkpoints of what it trains. It finds them
        there when it is computed again after a kill; they are removed when it is finished.
    threads
        Of torch and of BLAS, while it is computed; None leaves them as they are, for measurements of time.
    """

    name: str
    make: Make
    settings: Mapping[str, object]
    data: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, object] = field(default_factory=dict)
    resumes: bool = False
    threads: int | None = 1

    def __post_init__(self) -> None:
        check_kind("the name of a cell", self.name, str, "a path below the study's folder")
        parts = PurePosixPath(self.name).parts
        if not parts or parts[0] == "/" or any(part.startswith(".") for part in parts):
            raise ValueError(f"the name of a cell must be a path below the study's folder, got {described(self.name)}")
        if self.make.__module__ == "__main__" or "." in self.make.__qualname__:
            raise ValueError(
                f"the function of the cell {self.name} must be one of a module that other processes can import, got "
                f"{self.make.__module__}.{self.make.__qualname__}"
            )

    def path(self, folder: Path) -> Path:
        """Its file."""
        return folder / f"{self.name}{store.SUFFIX}"


def identity(cell: Cell) -> str:
    """The line of JSON of a cell. Raises ValueError for settings that are not plain values."""
    module = cell.make.__module__
    parts = module.split(".")
    return json.dumps(
        {
            "schema": SCHEMA,
            "study": parts[1] if parts[0] == "studies" else module,
            "function": f"{module}.{cell.make.__qualname__}",
            "settings": {name: _plain(name, value) for name, value in cell.settings.items()},
            "code": code_hash(module),
            "versions": json.loads(store.provenance()["versions"]),
            "data": dict(cell.data),
        },
        sort_keys=True,
        allow_nan=False,
    )


def difference(found: str, wanted: str) -> str:
    """How the cell of one identity differs from that of another, for the middle of a sentence."""
    try:
        one, other = json.loads(found), json.loads(wanted)
        same_schema = one["schema"] == other["schema"]
    except (ValueError, KeyError, TypeError):
        return "carries no identity, as files of older versions and of other programs do not"
    if not same_schema:
        return f"is of schema {one['schema']} instead of {other['schema']}"
    words = []
    before, after = (dict(_flat(part["settings"])) for part in (one, other))
    for name in [*after, *(name for name in before if name not in after)]:
        if before.get(name) != after.get(name):
            words.append(f"{name} {described(before.get(name))} instead of {described(after.get(name))}")
    for name, version in other["versions"].items():
        if one["versions"].get(name) != version:
            words.append(f"{name} {one['versions'].get(name)} instead of {version}")
    words += [f"other data of {name}" for name in other["data"] if one["data"].get(name) != other["data"][name]]
    if one["function"] != other["function"]:
        words.append(f"{one['function']} instead of {other['function']}")
    elif one["code"] != other["code"]:
        words.append("other code")
    return f"was made with {listed(words, 4)}"


@cache
def code_hash(module: str) -> str:
    """SHA-256 of the modules of the project that a module reaches by imports, itself and their packages among them."""
    roots = (*PROJECT, module.split(".")[0])
    waiting, reached = [module], dict[str, str]()
    while waiting:
        name = waiting.pop()
        source = _source(name) if name.split(".")[0] in roots else None
        shown = name.startswith(STORED_AND_SHOWN) and name != NAMES_OF_VARIABLES
        if name in reached or source is None or shown:
            continue
        reached[name], imported = _parsed(name, source)
        above = name.rpartition(".")[0]
        waiting += [*imported, *([above] if above else [])]
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(reached.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _source(module: str) -> Path | None:
    """The file of a module, found without importing anything; None for what is no module, such as a function."""
    top, *below = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        return Path(spec.origin) if spec.origin and not below else None
    for place in spec.submodule_search_locations:
        whole = Path(place, *below)
        for file in (whole / "__init__.py", whole.with_suffix(".py")):
            if file.is_file():
                return file
    return None


@cache
def _parsed(module: str, source: Path) -> tuple[str, tuple[str, ...]]:
    """The hash of a module's code, without comments and docstrings, and what it imports."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    package = module if source.name == "__init__.py" else module.rpartition(".")[0]
    imported: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            imported += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(imported)


def _plain(name: str, value: Any) -> Any:
    """A setting as JSON has it."""
    if isinstance(value, np.generic):
        value = value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {part.name: _plain(part.name, getattr(value, part.name)) for part in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(name, part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"the setting {name} of a cell must be a number, a text, a list or a dataclass of these, got {described(value)}"
    )


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings and those of the dataclasses among them, by name."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield name, value
