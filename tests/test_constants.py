"""One name, one meaning: no two modules give a constant different values; and a tuned constant names its study."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "fganalysis"


def constants(source: str) -> Iterator[tuple[str, str]]:
    """The names that a module binds to a value at its top level, with the text of the value; not ``__all__``."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=True))
            else:
                pairs = [(target, value)]
            for name, bound in pairs:
                if isinstance(name, ast.Name) and name.id != "__all__":
                    yield name.id, ast.unparse(bound)


def test_no_two_modules_give_one_constant_different_values() -> None:
    values: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, value in constants(path.read_text(encoding="utf-8")):
            values[name][value].append(path.relative_to(PACKAGE).as_posix())
    differing = {name: dict(places) for name, places in values.items() if len(places) > 1}
    assert differing == {}


def test_constants_are_read_from_every_kind_of_assignment() -> None:
    source = 'A = 1\nB: float = 2.0\nC, D = "c", "d"\nE = F = 3\n__all__ = ["A"]\ndef f():\n    G = 4\n'
    assert list(constants(source)) == [
        ("A", "1"),
        ("B", "2.0"),
        ("C", "'c'"),
        ("D", "'d'"),
        ("E", "3"),
        ("F", "3"),
    ]


# Constants that a study tuned, by module. The comment above them names the study and says how to tune them again.
TUNED = {
    "assertions/error_blocks.py": ("BLOCKS", "FIRST_BLOCK", "GROWTH", "NUMBERS_PER_CALL"),
    "measuring/difference_errors.py": ("FAR",),
    "measuring/direct.py": ("NUMBERS_PER_BLOCK",),
    "papers/wang2025/intervals.py": ("ROOM_IN_GROUPS",),
    "statistics/directional_bias.py": ("CLEAR", "NEARLY_ALL"),
    "statistics/efficiency.py": ("NEAR", "ROOM", "NOTABLE"),
    "statistics/intervals.py": ("LEAST", "ENOUGH", "FEW", "FEW_HITS"),
    "statistics/progress.py": ("COUNTED_TWICE", "TAIL_ROOM", "HEAVIEST"),
    "statistics/squared_norm.py": ("TWO_SIDED_FROM", "NOISE_IN_ALONG", "MATTERS", "RESOLVED"),
    "statistics/variance.py": ("NOT_KNOWN",),
}


def comment_above(source: str, name: str) -> str:
    """The comment above the lines of constants among which this one is."""
    lines = source.splitlines()
    last = next(place for place, line in enumerate(lines) if re.match(rf"{name}\b.* = ", line))
    while not lines[last].startswith("#"):
        last -= 1
    first = last
    while lines[first - 1].startswith("#"):
        first -= 1
    return " ".join(line.removeprefix("#").strip() for line in lines[first : last + 1])


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in TUNED.items() for name in names])
def test_a_tuned_constant_names_the_study_that_tunes_it(module: str, name: str) -> None:
    comment = comment_above((PACKAGE / module).read_text(encoding="utf-8"), name)
    studies = re.findall(r"`python -m studies\.(\w+)[` ]", comment)
    assert studies, f"the comment above {name} in {module} names no study"
    assert all((PACKAGE.parent / "studies" / study / "__main__.py").exists() for study in studies)
    assert re.search(r"[Tt]o tune|tuned for speed|Tuned for speed", comment)
