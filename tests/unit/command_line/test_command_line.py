"""What people do with the command `fganalysis`, and what it refuses."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fganalysis as fga
from fganalysis.command_line import main, shipped_studies, users_file
from tests.unit.command_line.users_files import USERS_FILE

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(USERS_FILE)
    return path


def called(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["fganalysis", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        main.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_help_takes_less_than_half_a_second() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run(
        [sys.executable, "-m", "fganalysis", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert all(name in shown.stdout for name in ("diagnose", "check", "report", "studies"))
    # Of the processor: other tests run meanwhile.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_diagnose_prints_the_table_and_keeps_the_whole(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results.nc"
    asked = ("--estimators", "mine", "activity", "--guesses", 64, "--out", out)
    assert called(monkeypatch, "diagnose", mine, *asked) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[1].split()[:4] == ["step", "estimator", "space", "layer"]
    assert len(rows) == 5  # The path and the names; weight in one space, activity in two.
    tree = fga.open_results(out)
    assert tree["measured"].sizes["estimator"] == 2
    assert tree["measured"].sizes["layer"] == 3
    assert called(monkeypatch, "report", out, tmp_path / "page.html") == 0
    assert "<table" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "code"), [("weight", 0), ("halved", 1)])
def test_check_says_the_verdict_by_its_exit_code(
    name: str, code: int, mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--estimator", name, "--tolerance", 0.5)
    assert called(monkeypatch, "check", mine, *asked) == code
    assert (" is unbiased" in capsys.readouterr().out) == (code == 0)


def test_weights_come_from_checkpoints_and_state_dicts(mine: Path, tmp_path: Path) -> None:
    network = users_file.read(mine)["network"]
    weights = {name: torch.full_like(value, 0.5) for name, value in network.state_dict().items()}
    torch.save(weights, tmp_path / "weights.pt")
    save_file(weights, tmp_path / "weights.safetensors")
    for name in ("weights.pt", "weights.safetensors"):
        given = users_file.read(mine)["network"]
        assert users_file.load(tmp_path / name, given) == 0
        assert all(bool((value == 0.5).all()) for value in given.state_dict().values())


WRONG = [
    ("import torch", ("diagnose", "mine.py"), "must define network, loss_fn, batch: it has no network and no loss_fn"),
    (USERS_FILE + "batch = 3", ("check", "mine.py"), "batch in mine.py must be a pair of inputs and targets, got 3"),
    (USERS_FILE, ("diagnose", "other.py"), "there is no Python file at other.py"),
    (USERS_FILE, ("diagnose", "mine.py", "--estimators", "wieght"), "unknown estimator 'wieght'"),
    (USERS_FILE, ("diagnose", "mine.py", "--checkpoint", "no.pt"), "there is no checkpoint at no.pt"),
    (USERS_FILE, ("diagnose", "mine.py", "--checkpoint", "mine.py"), "mine.py cannot be read as a state dict"),
    (USERS_FILE, ("diagnose", "mine.py", "--checkpoint", "bad.safetensors"), "is no safetensors file, or damaged"),
    (USERS_FILE, ("diagnose", "mine.py", "--checkpoint", "others.pt"), "holds the weights of another network"),
    (USERS_FILE, ("report", "nowhere"), "there is no result at nowhere"),
    (USERS_FILE, ("studies", "bais_variance"), "there is no study 'bais_variance': the studies are "),
]


@pytest.mark.parametrize(("text", "arguments", "words"), WRONG)
def test_what_is_refused_is_one_sentence(
    text: str,
    arguments: tuple[str, ...],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(text)
    Path("bad.safetensors").write_bytes(b"no")
    torch.save(torch.nn.Linear(2, 2).state_dict(), "others.pt")
    assert called(monkeypatch, *arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: ") and words in errors[0]


def test_every_study_is_listed_with_its_question(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert called(monkeypatch, "studies") == 0
    lines = capsys.readouterr().out.splitlines()
    there = {path.parent.name for path in (ROOT / "studies").glob("*/__main__.py")}
    assert {line.split()[0] for line in lines} == there
    assert shipped_studies.questions()["averaging"].endswith("how many reach a given cosine?")


def test_a_study_reads_its_settings_itself(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "studies.ren_variance.__main__", raising=False)  # Another test's.
    assert called(monkeypatch, "studies", "ren_variance", "--help") == 0
    assert "--page" in capsys.readouterr().out
