"""The wheel holds `fganalysis`, with the studies in it, and `theory`; it works where only it and its needs are."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fganalysis
from tests.unit.command_line.users_files import USERS_FILE

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
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Builds the sdist and the wheel from a copy of what is committed or new, and gives their paths."""
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("built")
    unwanted = shutil.ignore_patterns("__pycache__")
    for folder in (*PACKAGES, "studies", "tests", "docs"):
        shutil.copytree(ROOT / folder, clone / folder, ignore=unwanted)
    for path in (path for path in ROOT.iterdir() if path.is_file()):
        shutil.copy(path, clone / path.name)
    run(sys.executable, "-m", "build", "--no-isolation", f"--outdir={out}", str(clone), folder=out)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def test_the_wheel_holds_every_file_of_the_two_packages_and_of_the_studies_and_nothing_else(
    built: tuple[Path, Path],
) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
    metadata = f"fganalysis-{fganalysis.__version__}.dist-info"
    places = {"fganalysis": "fganalysis", "theory": "theory", "studies": "fganalysis/_shipped/studies"}
    ours = {
        f"{place}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, place in places.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert ours == {name for name in names if not name.startswith(metadata)}
    assert {"fganalysis/py.typed", f"{metadata}/licenses/LICENSE"} <= names


def test_the_index_would_take_sdist_and_wheel(built: tuple[Path, Path]) -> None:
    assert run(sys.executable, "-m", "twine", "check", "--strict", *map(str, built), folder=ROOT).count("PASSED") == 2
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"tests/test_packaging.py", "studies/facts/cells.py", "docs/mathematics.md"} <= names
    assert not {name for name in names if name.startswith((".ci", "results/"))}


@pytest.fixture(scope="module")
def environment(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the wheel, and the libraries of this one, but not this clone."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    places = {"base": str(folder), "platbase": str(folder)}
    # The paths that .pth files of that folder add, such as this clone's, are not added from here.
    Path(sysconfig.get_path("purelib", "venv", places), "libraries.pth").write_text(sysconfig.get_path("purelib"))
    binaries = Path(sysconfig.get_path("scripts", "venv", places))
    python = f"--python={binaries / 'python'}"
    run(*PIP, python, "install", "--no-deps", "--no-index", "--no-compile", str(built[1]), folder=folder)
    return binaries


def test_what_is_installed_imports_without_extras_measures_and_runs_studies(environment: Path, tmp_path: Path) -> None:
    # What only the extras bring must not be needed: None in sys.modules makes its import an ImportError.
    without = (
        "import sys; sys.modules.update(dict.fromkeys(['hypothesis', 'pytest', 'sklearn', 'distributed', 'zarr']))"
    )
    program = f"{without}; import fganalysis, theory; fganalysis.sample; print(fganalysis.__file__, theory.__file__)"
    places = run(str(environment / "python"), "-c", program, folder=tmp_path).split()
    assert [Path(place).is_relative_to(environment.parent) for place in places] == [True, True]
    (tmp_path / "mine.py").write_text(USERS_FILE)
    command = str(environment / "fganalysis")
    assert "weight" in run(command, "diagnose", "mine.py", "--guesses", "64", folder=tmp_path)
    assert "bias_variance" in run(command, "studies", folder=tmp_path)
    run(command, "studies", "finite_difference", "--help", folder=tmp_path)


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
