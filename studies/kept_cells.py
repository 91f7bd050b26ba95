"""A cell of a study: read where it is finished with the same settings, otherwise computed and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import xarray as xr

from fganalysis import store


def kept(path: Path, settings: Mapping[str, object], make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """The Dataset of one cell, made by ``make`` unless ``path`` holds one made with these settings.

    ``settings`` are those that the result depends on: a change of any is computed anew.
    """
    described = json.dumps(settings, sort_keys=True)
    if path.exists():
        found = store.read(path).to_dataset()
        if found.attrs.get("study_settings") == described:
            return found
    made = make()
    made.attrs["study_settings"] = described
    store.write(made, path)
    return made
