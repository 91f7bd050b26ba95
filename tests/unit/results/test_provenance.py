"""Results name the commit of the code, never that of the user's repository."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fganalysis.results import store
from tests.unit.results.kept import of_strings


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_code_and_never_that_of_the_users_repository(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "theirs.py").write_text("")
    installed = tmp_path / ".venv" / "site-packages" / "fganalysis" / "store.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    git(tmp_path, "add", "theirs.py")
    git(tmp_path, "commit", "-q", "-m", "theirs")
    assert store._commit(installed) == "unknown"
    assert store._commit(tmp_path / "theirs.py") == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "theirs.py").write_text("changed")
    assert store._commit(tmp_path / "theirs.py") == git(tmp_path, "rev-parse", "HEAD") + "-dirty"
    (tmp_path.parent / "nowhere.py").write_text("")
    assert store._commit(tmp_path.parent / "nowhere.py") == "unknown"


def test_without_git_results_are_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.provenance.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        path = store.write(of_strings(), tmp_path / "cell.nc")
        assert store.read(path).attrs["git_commit"] == "unknown"
    finally:
        store.provenance.cache_clear()
