"""Who may import whom. The measurement and the prediction are two witnesses only while neither reads the other's code.

The rules look at the source text, so imports inside functions count, and so does code that no test runs.
"""

import ast
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import fganalysis

ROOT = Path(__file__).resolve().parent.parent

# What each part of the package may import of the others: results and statistics stand below capturing, then estimators,
# metrics, predictions, papers, measuring, assertions, and the public names; the command line stands above all. Only
# predictions, and what a paper's plug-in predicts, read `theory`.
BELOW_ESTIMATORS = {"arguments", "capturing", "results", "statistics"}
BELOW_METRICS = {*BELOW_ESTIMATORS, "estimators"}
BELOW_MEASURING = {*BELOW_METRICS, "metrics", "predictions"}
ALLOWED: dict[str, set[str]] = {
    "arguments": set(),
    "statistics": set(),
    "results": {"arguments", "statistics"},
    "capturing": {"arguments", "results", "statistics"},
    "estimators": BELOW_ESTIMATORS,
    "metrics": BELOW_METRICS,
    "predictions": {*BELOW_METRICS, "metrics"},
    "papers": BELOW_MEASURING,
    "measuring": {*BELOW_MEASURING, "papers"},
    "problems": {"arguments"},
    "reporting": {"arguments", "measuring", "results", "statistics"},
    "training": {*BELOW_ESTIMATORS, "estimators", "measuring"},
    "assertions": {*BELOW_MEASURING, "measuring", "training"},
    "testing": {"assertions"},
}
ALLOWED["public_names"] = set(ALLOWED)
ALLOWED["command_line"] = set(ALLOWED)
ALLOWED["__main__"] = {"command_line"}
WITHOUT_TORCH = ("fganalysis.statistics", "fganalysis.results.tables", "fganalysis.results.plotting")
MEETING_PLACES = ("fganalysis.predictions", "fganalysis.papers.wang2025.predicted")
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


def test_the_package_alone_imports_none_of_the_heavy_libraries() -> None:
    program = "import sys, fganalysis; print({'torch', 'numpy', 'xarray'} & set(sys.modules)); fganalysis.sample"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout == "set()\n"


def test_parts_for_arrays_of_ones_own_are_public_and_cost_no_import_of_their_own() -> None:
    for name in ("subspace", "gradient_stream", "curvature"):
        assert name in fganalysis.__all__
        whole = f"fganalysis.measuring.{name}"
        sources = [source for module, source in modules("fganalysis") if within(module, whole)]
        assert sources
        above = {found.split(".")[0] for s in sources for line in ast.parse(s).body for found in imported_at_once(line)}
        assert above <= {"numpy", "torch", "fganalysis", *sys.stdlib_module_names}


def imported_at_once(line: ast.stmt) -> set[str]:
    """Give what one line outside of functions imports."""
    return imported("", ast.unparse(line)) if isinstance(line, ast.Import | ast.ImportFrom) else set()


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def meets(name: str) -> bool:
    return any(within(name, place) for place in MEETING_PLACES)


def offences(name: str, source: str) -> list[str]:
    """List the imports of a module that break a rule."""
    names = imported(name, source)
    if within(name, "theory"):
        allowed = {"numpy", "scipy", "theory", *sys.stdlib_module_names}
        return sorted(found for found in names if found.split(".")[0] not in allowed)
    bad = {found for found in names if within(found, "theory") and not meets(name)}
    if any(within(name, module) for module in WITHOUT_TORCH):
        bad |= {found for found in names if within(found, "torch")}
    if name != "fganalysis":
        part = name.split(".")[1]
        parts = {found: found.split(".")[1] for found in names if found.startswith("fganalysis.")}
        bad |= {found for found, other in parts.items() if other != part and other not in ALLOWED[part]}
    return sorted(bad)


def cycles() -> list[set[str]]:
    """Modules that import each other, directly or through others; imports inside functions count."""
    texts = {name: source for package in ("fganalysis", "theory") for name, source in modules(package)}
    roots = {"fganalysis", "theory"}  # `from fganalysis import estimators` reads that package, not the whole.
    reached = {
        name: {found for found in imported(name, source) if found in texts} - roots for name, source in texts.items()
    }
    for middle in texts:  # Warshall's closure.
        for name in texts:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    circular = {name for name in texts if name in reached[name]}
    return [{other for other in circular if other in reached[name] and name in reached[other]} for name in circular]


@pytest.mark.parametrize("package", ["theory", "fganalysis"])
def test_every_module_imports_only_what_it_may(package: str) -> None:
    found = {name: offences(name, source) for name, source in modules(package)}
    assert found, f"{package} has no modules"
    assert {name: names for name, names in found.items() if names} == {}


def test_theory_is_met_where_predictions_are_made() -> None:
    meeting = [
        name
        for name, source in modules("fganalysis")
        if any(within(found, "theory") for found in imported(name, source))
    ]
    assert meeting
    assert all(meets(name) for name in meeting)


def test_what_a_paper_measures_and_what_it_predicts_share_no_code() -> None:
    texts = dict(modules("fganalysis"))
    prefix = "fganalysis.papers.wang2025"
    for name, other in (("measured", "predicted"), ("intervals", "predicted"), ("predicted", "measured")):
        found = imported(f"{prefix}.{name}", texts[f"{prefix}.{name}"])
        assert not any(within(part, f"{prefix}.{other}") for part in found)
    for name in ("measured", "intervals"):
        found = imported(f"{prefix}.{name}", texts[f"{prefix}.{name}"])
        assert not any(within(part, "fganalysis.predictions") for part in found)


def test_every_part_has_its_rule() -> None:
    parts = {name.split(".")[1] for name, _ in modules("fganalysis") if "." in name}
    assert parts == set(ALLOWED)
    assert {part for allowed in ALLOWED.values() for part in allowed} <= parts


def test_no_modules_import_each_other() -> None:
    assert cycles() == []


def test_nothing_public_is_named_like_a_module_that_it_hides() -> None:
    known = {name for name, _ in modules("fganalysis")}
    for name in fganalysis.__all__:
        hidden = f"fganalysis.{name}" in known and not isinstance(getattr(fganalysis, name), types.ModuleType)
        assert not hidden, name


def test_modules_are_named_for_what_they_know() -> None:
    for package in ("fganalysis", "theory", "studies"):
        for name, _ in modules(package):
            assert EMPTY_NAMES.isdisjoint(name.split(".")), name


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("theory.cosine", "import torch", ["torch"]),
        ("theory.cosine", "def late():\n    from fganalysis import results", ["fganalysis", "fganalysis.results"]),
        ("theory.cosine", "import math\nimport numpy as np\nfrom scipy import special\nfrom . import subspace", []),
        ("fganalysis.measuring.sample", "if True:\n    import theory.cosine", ["theory.cosine"]),
        ("fganalysis.measuring.sample", "from theory import cosine", ["theory", "theory.cosine"]),
        ("fganalysis.predictions.weights", "from theory import cosine", []),
        ("fganalysis.papers.wang2025.predicted", "from theory import wang2025", []),
        ("fganalysis.papers.wang2025.measured", "from theory import wang2025", ["theory", "theory.wang2025"]),
        (
            "fganalysis.statistics.quantities",
            "from . import intervals\nfrom fganalysis.statistics import intervals",
            [],
        ),
        ("fganalysis.statistics.quantities", "import torch.linalg", ["torch.linalg"]),
        ("fganalysis.statistics.quantities", "import torchmetrics", []),
        ("fganalysis.statistics.quantities", "from fganalysis.results import schema", ["fganalysis.results.schema"]),
        ("fganalysis.capturing.snapshot", "from ..estimators import noise", ["fganalysis.estimators.noise"]),
        ("fganalysis.estimators.noise", "import fganalysis.measuring.sample", ["fganalysis.measuring.sample"]),
        ("fganalysis.predictions.weights", "from fganalysis.measuring import sample", ["fganalysis.measuring.sample"]),
    ],
)
def test_the_walker_catches_an_offending_text(name: str, source: str, expected: list[str]) -> None:
    assert set(expected) <= set(offences(name, source))
    assert bool(offences(name, source)) == bool(expected)
