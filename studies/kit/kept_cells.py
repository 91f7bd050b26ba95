"""A cell of a study: read where it is finished with the same settings, otherwise computed and written.

The settings that a result depends on are an attribute of its root, ``study_settings``, as JSON. A damaged file is
renamed, never deleted, named on the terminal and computed anew. One that is locked or cannot be read stops the study:
it may be whole.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import xarray as xr

from fganalysis.results import store
from studies.kit.command_line import FOLDERS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = Mapping[str, object]
Part = TypeVar("Part")


def depends_on(settings: DataclassInstance, *names: str) -> dict[str, object]:
    """The settings of these names; without names all of them, except where results go."""
    values = dataclasses.asdict(settings)
    return {name: values[name] for name in names or values if name not in FOLDERS}


def kept(path: Path, settings: Settings, make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """The Dataset of one cell, made by ``make`` unless ``path`` holds one made with these settings.

    ``settings`` are those that the result depends on: a change of any is computed anew.
    """
    tree = finished(path, settings)
    if tree is not None:
        return tree.to_dataset()
    made = make()
    write(made, path, settings)
    return made


def finished(path: Path, settings: Settings) -> xr.DataTree | None:
    """The result at ``path`` where it is there, whole, and was made with these settings."""
    tree = _unless_damaged(path, store.read)
    return tree if tree is not None and tree.attrs.get("study_settings") == _described(settings) else None


def is_finished(path: Path, settings: Settings) -> bool:
    """Whether `finished` has it; quicker for results of many groups."""
    return finished(path, settings) is not None


def write(result: xr.Dataset | xr.DataTree, path: Path, settings: Settings) -> None:
    """Writes a result with its settings, which become an attribute of its root."""
    result.attrs["study_settings"] = _described(settings)
    store.write(result, path)


def _unless_damaged(path: Path, read: Callable[[Path], Part]) -> Part | None:
    if not path.exists():
        return None
    try:
        return read(path)
    except store.Damaged as damage:
        print(f"{damage}; the file is now {store.set_aside(path).name}, and the cell is computed anew", flush=True)
        return None


def _described(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)
