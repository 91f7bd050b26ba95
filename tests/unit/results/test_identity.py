"""The identity of a cell: code, libraries, data and settings, each of which makes another cell."""

from __future__ import annotations

import ast
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import fganalysis as fga
from fganalysis.results import identity
from fganalysis.results.identity import Cell
from tests.unit.results.small_cells import drawn


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of two modules, one of which imports the other, and one that neither imports."""
    package = tmp_path / "some_project"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "top": "def make():\n    from some_project import below\n    return below.number()\n",
        "below": 'import math\n\n\ndef number():\n    """One."""\n    return 1\n',
        "beside": "",
    }.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.startswith("some_project")]:
        del sys.modules[name]


def hash_of(module: str) -> str:
    identity.code_hash.cache_clear()
    identity._parsed.cache_clear()
    return identity.code_hash(module)


def test_changed_code_is_another_identity_and_changed_words_are_not(project: Path) -> None:
    first, below = hash_of("some_project.top"), project / "below.py"
    assert first == hash_of("some_project.top") != hash_of("some_project.below")
    text = below.read_text()
    for other in (text.replace("One", "The number one"), text.replace("return", "# Why.\n    return"), text + "\n\n"):
        below.write_text(other)
        assert hash_of("some_project.top") == first
    (project / "beside.py").write_text("changed = True\n")
    assert hash_of("some_project.top") == first
    below.write_text(text.replace("return 1", "return 3"))
    assert hash_of("some_project.top") != first
    below.write_text(text)
    (project / "__init__.py").write_text("registered = True\n")  # A package runs when a module of it is imported.
    assert hash_of("some_project.top") != first


def test_the_functions_of_studies_depend_on_the_library_and_not_on_how_results_are_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reached: set[str] = set()
    parsed = identity._parsed

    def noted(module: str, source: Path) -> tuple[str, tuple[str, ...]]:
        reached.add(module)
        return parsed(module, source)

    identity.code_hash.cache_clear()
    monkeypatch.setattr(identity, "_parsed", noted)
    identity.code_hash("studies.wang2025.cells")
    expected = {"studies.wang2025.cells", "fganalysis.measuring.sample", "fganalysis.estimators.upstream.orthogonal"}
    assert expected | {"theory.upstream", "fganalysis.results.schema", "fganalysis.training.loop"} <= reached
    assert not {"studies.wang2025.page", "studies.averaging.cells"} & reached
    assert not {name for name in reached if name.startswith("fganalysis.results.")} - {"fganalysis.results.schema"}


def test_the_hash_of_data_tells_other_data_apart() -> None:
    first, other = (fga.datasets.load("digits", seed=seed) for seed in (0, 1))
    assert first.digest() == fga.datasets.load("digits").digest() != other.digest()
    assert first.digest() != fga.datasets.load("digits", images=True).digest()


@dataclass(frozen=True)
class Some:
    width: int
    rates: tuple[float, ...]


def test_settings_are_plain_values_and_dataclasses_of_them() -> None:
    cell = Cell("cell", drawn, {"some": Some(3, (0.1, 0.2)), "n": np.int64(4), "none": None})
    known = json.loads(identity.identity(cell))["settings"]
    assert known == {"some": {"width": 3, "rates": [0.1, 0.2]}, "n": 4, "none": None}
    for wrong in (Path("a"), {1, 2}, ast, b"bytes", Some):
        with pytest.raises(ValueError, match="the setting some of a cell must be a number, a text, a list or"):
            identity.identity(Cell("cell", drawn, {"some": wrong}))


def test_what_differs_is_said_setting_by_setting() -> None:
    one = identity.identity(Cell("cell", drawn, {"some": Some(3, (0.1,)), "guesses": 64}))
    other = identity.identity(Cell("cell", drawn, {"some": Some(4, (0.1,)), "guesses": 128}))
    assert identity.difference(one, other) == "was made with guesses 64 instead of 128, width 3 instead of 4"
    for nothing in ("", "{}", "[]", "no JSON", "null"):
        words = "carries no identity, as files of older versions and of other programs do not"
        assert identity.difference(nothing, one) == words
