"""The project's text: its references lead somewhere, the index of results repeats its pages, and its examples run.

docs/is_it_unbiased.md is pasted into fresh files: the estimator is caught as the page says, and the mended one passes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
TEXTS = [
    *(path for folder in ("fganalysis", "theory", "studies", "tests") for path in (ROOT / folder).rglob("*.py")),
    *DOCS.rglob("*.md"),
    ROOT / "README.md",
]
OUTSIDE = "MATH" + ".md"  # the notes that docs/mathematics.md replaced

PAGE = (DOCS / "is_it_unbiased.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
WRONG, MENDED = "noise - noise.mean(1, keepdim=True)", "noise"


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page: lower case, punctuation dropped, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_nothing_refers_to_a_file_outside_the_repository() -> None:
    assert [name_of(path) for path in TEXTS if OUTSIDE in path.read_text(encoding="utf-8")] == []


def test_every_reference_to_a_section_of_the_docs_leads_to_its_heading() -> None:
    known = {name_of(page): anchors(page) for page in DOCS.rglob("*.md")}
    assert "fact-2" in known["docs/mathematics.md"]
    n_references = 0
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        references = re.findall(r"(docs/[\w./]+\.md)#([\w-]+)", text)
        if path.suffix == ".md":  # links of Markdown are relative to their page
            links = re.findall(r"\]\(([\w./]*)#([\w-]+)\)", text)
            references += [
                (name_of((path.parent / page).resolve() if page else path), anchor) for page, anchor in links
            ]
        for page, anchor in references:
            assert anchor in known.get(page, set()), f"{name_of(path)} refers to {page}#{anchor}, which does not exist"
        n_references += len(references)
    assert n_references > 40


def test_the_index_of_results_has_every_page_and_repeats_its_numbers() -> None:
    index = (DOCS / "results" / "index.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[\w+\]\((\w+\.md)\) \| .+ \| (.+) \|$", index, flags=re.MULTILINE)
    assert sorted(page for page, _ in rows) == sorted({path.name for path in DOCS.glob("results/*.md")} - {"index.md"})
    for page, answer in rows:
        numbers = set(re.findall(r"\d+\.\d+|\d{2,}", answer))
        assert numbers, f"the answer of {page} has no number"
        missing = numbers - set(re.findall(r"\d+\.\d+|\d{2,}", (DOCS / "results" / page).read_text("utf-8")))
        assert not missing, f"{page} does not have {missing}"


def test_one_command_makes_every_page_of_results() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = {
        first or second for first, second in re.findall(r'"([\w ./=-]+)"|\b(\w+)\b', makefile.split("pages: ")[1])
    }
    for path in DOCS.glob("results/*.md"):
        if path.name == "index.md":
            continue
        commands = re.findall(r"python -m studies\.([\w -]+)`", path.read_text(encoding="utf-8"))
        own = [command for command in commands if path.stem.startswith(command.split()[0])]
        assert own and any(command in listed or f"{command} --full" in listed for command in own), path.name


def test_the_five_lines_in_a_fresh_file_catch_what_is_wrong_and_pass_what_is_mended(tmp_path: Path) -> None:
    assert WRONG in BLOCKS[0]
    (tmp_path / "test_wrong.py").write_text(BLOCKS[0], encoding="utf-8")
    (tmp_path / "test_mended.py").write_text(BLOCKS[0].replace(WRONG, MENDED), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_wrong.py", "test_mended.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "FAILED test_wrong.py" in done.stdout
    (seed,) = set(
        re.findall(r"AssertionError: CentredActivity is biased in .* Seed (\d+), alpha 1e-06", done.stdout)
    )  # pytest prints it twice where CI is set.
    assert f"seed={seed}," in done.stdout


def test_asking_until_there_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile("\n".join(BLOCKS), "is_it_unbiased.md", "exec"), {"__name__": "pasted"})
    shown = capsys.readouterr().out
    assert shown.startswith("CentredActivity is biased in")
    # 1 - 1/64 = 0.984.
    low, high = map(float, re.findall(r"times it, between ([\d.]+\d) and ([\d.]+\d)", shown)[0])
    assert low < 1 - 1 / 64 < high < 1
    (n_guesses,) = re.findall(r"(\d+) guesses: enough", shown)
    assert 2000 < int(n_guesses) < 40_000  # "some thousands"
