"""The site: each number of "Which estimator?" stands where it leads to, and what is wrong fails the build.

A broken link, a tutorial that fails and a public name without a docstring are tried on a site of one page.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

import fganalysis as fga

DOCS = Path(__file__).resolve().parent.parent / "docs"
QUOTED = re.compile(r"\[([^\]]+)\]\(results/(\w+)\.md\)")


def plain(text: str) -> str:
    return " ".join(text.replace("*", "").replace("\\", "").split())


def test_every_number_of_the_decision_page_stands_where_it_leads() -> None:
    index = (DOCS / "results" / "index.md").read_text(encoding="utf-8")
    answers = {name: row for name, row in re.findall(r"^\| \[(\w+)\]\(\w+\.md\) \|(.*)$", index, flags=re.MULTILINE)}
    quoted = [each for each in QUOTED.findall((DOCS / "which_estimator.md").read_text()) if each[1] != "index"]
    assert len(quoted) > 12
    for words, name in quoted:
        page = plain((DOCS / "results" / f"{name}.md").read_text(encoding="utf-8")).casefold()
        there = plain(words).casefold() in page or plain(words).casefold() in plain(answers[name]).casefold()
        assert there, f"results/{name}.md does not have {words!r}"


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = re.findall(r"^[\w/]+$", (DOCS / "index.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert pages <= set(listed)


@pytest.fixture
def small_site(tmp_path: Path) -> Path:
    """A site of one page and a tutorial of one line, to be built with the settings of the real one."""
    (tmp_path / "tutorial").mkdir()
    (tmp_path / "tutorial" / "README.txt").write_text("Tutorial\n========\n")
    (tmp_path / "tutorial" / "plot_one.py").write_text('"""\nOne\n===\n"""\n\nprint(1)\n')
    (tmp_path / "index.md").write_text("# Site\n\n```{toctree}\ngenerated/tutorial/index\n```\n")
    return tmp_path


def build(source: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status of the command of `make docs` on these pages, and what it says."""
    build_main = pytest.importorskip("sphinx.cmd.build", reason="Sphinx is not installed").build_main
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Sphinx's own.
        flags = ["-q", "--fail-on-warning", "--keep-going", "-b", "html", "-c", str(DOCS)]
        status = build_main([*flags, str(source), str(source / "_build")])
    return status, capsys.readouterr().err


def test_a_sound_site_is_built(small_site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(small_site, capsys) == (0, "")
    assert "print(1)" in re.sub(r"<[^>]+>", "", (small_site / "_build/generated/tutorial/plot_one.html").read_text())


def test_a_broken_link_fails_the_build(small_site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small_site / "index.md").write_text((small_site / "index.md").read_text() + "\n[nowhere](nowhere.md)\n")
    status, said = build(small_site, capsys)
    assert status and "nowhere" in said


def test_a_tutorial_that_fails_fails_the_build(small_site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (small_site / "tutorial" / "plot_one.py").write_text('"""\nOne\n===\n"""\n\n1 / 0\n')
    status, said = build(small_site, capsys)
    assert status and "ZeroDivisionError" in said


def test_a_public_name_without_a_docstring_fails_the_build(
    small_site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fga.capture, "__doc__", None)
    monkeypatch.setattr(fga.estimators.Upstream, "__doc__", "Upstream(noise: Noise)")  # As a dataclass writes it.
    monkeypatch.setattr(fga.networks.mlp, "__doc__", "")
    status, said = build(small_site, capsys)
    assert status
    for name in ("fganalysis.capture", "fganalysis.estimators.Upstream", "fganalysis.training.networks.mlp"):
        assert name in said
