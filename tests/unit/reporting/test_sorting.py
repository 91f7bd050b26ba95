"""A click on a heading sorts a page's table: in a real browser, and the order itself in Node, where there are such."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import fganalysis as fga
from fganalysis.reporting import report as reporting
from tests.unit.reporting import pages

SCRIPT = Path(reporting.__file__).parent / "templates" / "sort.js"
NODE = shutil.which("node") or shutil.which("nodejs")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = os.environ.get("FGA_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
# Clicks on the headings with this text in the first table that has one, as often as asked.
CLICKS = """<script>
for (const [text, times] of CLICKED) {
  const heading = [...document.querySelectorAll("th")].find((one) => one.textContent.startsWith(text));
  for (let time = 0; time < times; time++) heading.querySelector("button").click();
}
</script>"""


@pytest.mark.skipif(NODE is None, reason="there is no Node")
@pytest.mark.parametrize(
    ("values", "ascending", "expected"),
    [
        (["3", "-1e-3", "inf", "0", ""], True, [1, 3, 0, 2, 4]),
        (["3", "-1e-3", "inf", "0", ""], False, [2, 0, 3, 1, 4]),
        (["10", "9", "-inf"], True, [2, 1, 0]),
        (["b", "", "a", "10"], True, [3, 2, 0, 1]),
        (["b", "", "a", "10"], False, [0, 2, 3, 1]),
        (["1", "1", "0", "1"], True, [2, 0, 1, 3]),
        (["1", "1", "0", "1"], False, [0, 1, 3, 2]),
        ([], True, []),
    ],
)
def test_what_is_not_known_is_last_and_equals_stay(values: list[str], ascending: bool, expected: list[int]) -> None:
    call = f"console.log(JSON.stringify(ordered({json.dumps(values)}, {json.dumps(ascending)})))"
    program = f"{SCRIPT.read_text(encoding='utf-8')}\n{call}"
    done = subprocess.run([str(NODE), "-e", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected


def clicked(folder: Path, clicks: list[tuple[str, int]]) -> pages.Parsed:
    """The page as a browser has it after clicks on headings."""
    script = CLICKS.replace("CLICKED", json.dumps(clicks))
    page = folder / "page.html"
    page.write_text(pages.page().replace("</body>", f"{script}</body>"), encoding="utf-8")
    done = subprocess.run(
        [
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return pages.Parsed(done.stdout)


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium: install it, or name it in FGA_BROWSER")
def test_a_browser_sorts_the_table_and_a_number_is_read_back(tmp_path: Path) -> None:
    expected = fga.summary(pages.tree()).dropna(subset=["efficiency"]).sort_values("efficiency", ascending=False)
    best = expected.iloc[0]
    parsed = clicked(tmp_path, [("efficiency", 2)])
    table = next(table for table in parsed.tables if "efficiency" in table[0])
    keys = [tuple(row[:4]) for row in table[1:]]
    assert keys != [tuple(row[:4]) for row in plain_table()[1:]]
    assert sorted(keys) == sorted(tuple(row[:4]) for row in plain_table()[1:])
    assert keys == [tuple(map(str, row)) for row in expected[["step", "estimator", "space", "layer"]].to_numpy()]
    read = table[1][table[0].index("efficiency")].split("\n")[0]
    assert math.isclose(float(read), float(best["efficiency"]), rel_tol=0.2)
    assert [attributes["aria-sort"] for tag, attributes in parsed.tags if "aria-sort" in attributes] == ["descending"]


def plain_table() -> list[list[str]]:
    return next(table for table in pages.Parsed(pages.page()).tables if "efficiency" in table[0])


def test_without_a_script_the_table_is_a_plain_one() -> None:
    table = plain_table()
    assert "<button" not in pages.page() and len({len(row) for row in table}) == 1 and len(table) > 10
