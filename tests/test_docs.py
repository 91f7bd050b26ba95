"""docs/is_it_unbiased.md, pasted into fresh files: the estimator is caught as it says, and the mended one passes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "is_it_unbiased.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
WRONG, MENDED = "noise - noise.mean(1, keepdim=True)", "noise"


def test_the_five_lines_in_a_fresh_file_catch_what_is_wrong_and_pass_what_is_mended(tmp_path: Path) -> None:
    assert WRONG in BLOCKS[0]
    (tmp_path / "test_wrong.py").write_text(BLOCKS[0], encoding="utf-8")
    (tmp_path / "test_mended.py").write_text(BLOCKS[0].replace(WRONG, MENDED), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_wrong.py", "test_mended.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
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
