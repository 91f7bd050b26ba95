"""`python tests/oldest.py` prints constraints: the oldest versions that pyproject.toml allows, and the pinned rest."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def constraints() -> list[str]:
    """A line for every package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {canonicalize_name(each.name): each for each in map(Requirement, project["dependencies"])}
    lines = []
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name = canonicalize_name(line.partition("==")[0])
        if line.startswith("#") or name not in asked:
            lines.append(line)
        else:
            (bound,) = asked[name].specifier
            lines.append(f"{name}=={bound.version}")
    return lines


if __name__ == "__main__":
    print("\n".join(constraints()))
