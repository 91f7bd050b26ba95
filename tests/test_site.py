"""The pages of the site that no other test holds: each number of "Which estimator?" stands where it leads to."""

from __future__ import annotations

import re
from pathlib import Path

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
