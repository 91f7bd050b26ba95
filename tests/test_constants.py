"""One name, one meaning: no two modules of the package give a constant of one name different values."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

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
