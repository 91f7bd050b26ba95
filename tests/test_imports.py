"""Who may import whom. The measurement and the prediction are two witnesses only while neither reads the other's code.

The rules look at the source text, so imports inside functions count, and so does code that no test runs.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fganalysis

ROOT = Path(__file__).resolve().parent.parent

# What a module must not import, by dotted prefix. A package stands for all its modules.
ABOVE_ESTIMATORS = ("fganalysis.sampling", "fganalysis.predictions", "fganalysis.diagnosis", "fganalysis.training")
ESTIMATORS = ("fganalysis.estimators", *ABOVE_ESTIMATORS)
TORCH_MODULES = (
    "fganalysis.checkpoints",
    "fganalysis.datasets",
    "fganalysis.diagnosis",
    "fganalysis.estimated_gradients",
    "fganalysis.estimates",
    "fganalysis.estimators",
    "fganalysis.forward_mode",
    "fganalysis.jacobian",
    "fganalysis.networks",
    "fganalysis.noise",
    "fganalysis.predictions",
    "fganalysis.run_settings",
    "fganalysis.sampling",
    "fganalysis.snapshot",
    "fganalysis.testing",
    "fganalysis.training",
    "fganalysis.training_arguments",
)
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "fganalysis.moments": (*TORCH_MODULES, "torch"),
    "fganalysis.subspace": TORCH_MODULES,
    "fganalysis.schema": (*TORCH_MODULES, "torch"),
    "fganalysis.store": TORCH_MODULES,
    "fganalysis.plotting": TORCH_MODULES,
    "fganalysis.snapshot": ESTIMATORS,
    "fganalysis.noise": ESTIMATORS,
    "fganalysis.estimates": ESTIMATORS,
    "fganalysis.jacobian": ESTIMATORS,
    "fganalysis.estimators": ABOVE_ESTIMATORS,
}
MEETING_PLACE = "fganalysis.predictions"
EMPTY_NAMES = {"base", "common", "core", "helpers", "utils"}


def modules(package: str) -> Iterator[tuple[str, str]]:
    """Give the dotted name and the source text of every module of a top-level package."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path.read_text(encoding="utf-8")


def imported(name: str, source: str) -> set[str]:
    """Give every dotted name that a module's text imports; of `from a import b` both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(name.split(".")[: -node.level]) if node.level else ""
            origin = ".".join(part for part in (above, node.module) if part)
            names.add(origin)
            names.update(f"{origin}.{alias.name}" for alias in node.names)
    return names


def test_parts_for_arrays_of_ones_own_are_public_and_cost_no_import_of_their_own() -> None:
    for name in ("subspace", "gradient_stream", "curvature"):
        assert name in fganalysis.__all__
        source = (ROOT / "fganalysis" / f"{name}.py").read_text(encoding="utf-8")
        above = {found.split(".")[0] for line in ast.parse(source).body for found in imported_at_once(line)}
        assert above <= {"numpy", "torch", "fganalysis", *sys.stdlib_module_names}


def imported_at_once(line: ast.stmt) -> set[str]:
    """Give what one line outside of functions imports."""
    return imported("", ast.unparse(line)) if isinstance(line, ast.Import | ast.ImportFrom) else set()


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def offences(name: str, source: str) -> list[str]:
    """List the imports of a module that break a rule."""
    names = imported(name, source)
    if within(name, "theory"):
        allowed = {"numpy", "scipy", "theory", *sys.stdlib_module_names}
        return sorted(found for found in names if found.split(".")[0] not in allowed)
    forbidden = [prefix for module, prefixes in FORBIDDEN.items() if within(name, module) for prefix in prefixes]
    if not within(name, MEETING_PLACE):
        forbidden.append("theory")
    return sorted(found for found in names if any(within(found, prefix) for prefix in forbidden))


@pytest.mark.parametrize("package", ["theory", "fganalysis"])
def test_every_module_imports_only_what_it_may(package: str) -> None:
    found = {name: offences(name, source) for name, source in modules(package)}
    assert found, f"{package} has no modules"
    assert {name: names for name, names in found.items() if names} == {}


def test_theory_is_met_in_one_package() -> None:
    meeting = [
        name
        for name, source in modules("fganalysis")
        if any(within(found, "theory") for found in imported(name, source))
    ]
    assert meeting
    assert all(within(name, MEETING_PLACE) for name in meeting)


def test_the_rules_name_modules_that_exist() -> None:
    known = {name for name, _ in modules("fganalysis")}
    ours = {prefix for prefixes in FORBIDDEN.values() for prefix in prefixes if within(prefix, "fganalysis")}
    assert {*FORBIDDEN, *ours, MEETING_PLACE} <= known


def test_modules_are_named_for_what_they_know() -> None:
    for package in ("fganalysis", "theory", "studies"):
        for name, _ in modules(package):
            assert EMPTY_NAMES.isdisjoint(name.split(".")), name


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("theory.cosine", "import torch", ["torch"]),
        ("theory.cosine", "def late():\n    from fganalysis import moments", ["fganalysis", "fganalysis.moments"]),
        ("theory.cosine", "import math\nimport numpy as np\nfrom scipy import special\nfrom . import subspace", []),
        ("fganalysis.sampling", "if True:\n    import theory.cosine", ["theory.cosine"]),
        ("fganalysis.sampling", "from theory import cosine", ["theory", "theory.cosine"]),
        ("fganalysis.predictions.weights", "from theory import cosine", []),
        ("fganalysis.diagnosis", "from theory import cosine", ["theory", "theory.cosine"]),
        ("fganalysis.moments", "from fganalysis import noise, schema", ["fganalysis.noise"]),
        ("fganalysis.moments", "from . import noise", ["fganalysis.noise"]),
        ("fganalysis.moments", "from .noise import Gaussian", ["fganalysis.noise", "fganalysis.noise.Gaussian"]),
        ("fganalysis.moments", "import torch.linalg", ["torch.linalg"]),
        ("fganalysis.moments", "import torchmetrics, noise", []),
        ("fganalysis.plotting", "from fganalysis.diagnosis import diagnose", ["fganalysis.diagnosis"]),
        ("fganalysis.snapshot", "import fganalysis.estimators.upstream", ["fganalysis.estimators.upstream"]),
        ("fganalysis.estimators.upstream", "from fganalysis.sampling import sample", ["fganalysis.sampling"]),
    ],
)
def test_the_walker_catches_an_offending_text(name: str, source: str, expected: list[str]) -> None:
    assert set(expected) <= set(offences(name, source))
    assert bool(offences(name, source)) == bool(expected)
