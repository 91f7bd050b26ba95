"""The wheel holds `fganalysis` and `theory`, whole, and nothing else; it works where only it and its needs are."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fganalysis", "theory")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")


def run(*command: str, folder: Path) -> str:
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy: a build in the clone leaves a folder whose old files get into the next wheel."""
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns("__pycache__")
    for folder in (*PACKAGES, "studies", "tests"):
        shutil.copytree(ROOT / folder, clone / folder, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone / name)
    run(*PIP, "wheel", "--no-build-isolation", "--no-deps", "--no-index", f"--wheel-dir={out}", str(clone), folder=out)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_of_the_two_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    metadata = f"fganalysis-{project()['version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {*PACKAGES, metadata}
    ours = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert ours == {name for name in names if name.endswith(".py")}
    assert f"{metadata}/licenses/LICENSE" in names


def test_both_packages_import_from_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(
        *PIP,
        "install",
        "--no-deps",
        "--no-index",
        "--no-compile",
        f"--target={installed}",
        str(wheel),
        folder=elsewhere,
    )
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == set(PACKAGES)
    # What only the extras bring must not be needed for an import: None in sys.modules makes it an ImportError.
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys(['hypothesis', 'pytest', 'sklearn', 'distributed', 'zarr']))\n"
        f"sys.path.insert(0, {str(installed)!r})\n"
        "import fganalysis, theory\n"
        "print(fganalysis.__file__, theory.__file__, sep='\\n')\n"
    )
    places = run(sys.executable, "-I", "-c", program, folder=elsewhere).split()
    assert places == [str(installed / package / "__init__.py") for package in PACKAGES]


def test_everything_asked_for_is_pinned_and_the_pin_is_allowed() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {canonicalize_name(pin.name): re.fullmatch(r"==([^,]+)", str(pin.specifier)) for pin in pins}
    asked = [
        *project()["dependencies"],
        *(name for extra in project()["optional-dependencies"].values() for name in extra),
    ]
    for requirement in map(Requirement, asked):
        pin = versions[canonicalize_name(requirement.name)]
        assert pin is not None, requirement
        assert pin[1] in requirement.specifier, requirement
