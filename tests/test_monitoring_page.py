"""docs/monitoring.md: its code runs as printed, and says what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "monitoring.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_page_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "pasted"}
    shown = []
    with torch.random.fork_rng(devices=[]):
        for block in BLOCKS:
            exec(compile(block, "monitoring.md", "exec"), names)
            shown.append(capsys.readouterr().out)
    first, budget, attached, resumed, logged = shown
    assert 'evaluation: dropout off, batch statistics as they ran, without autocast ["1", "3"]' in first
    cosine, noise = map(float, re.findall(r"of .grad: ([\d.]+) noise scale: ([\d.]+)", first)[0])
    assert 0.5 < cosine < 1 and noise > 0
    row = names["row"].sel(space="weight", estimator="activity")
    assert row["cosine_low"] < row["cosine"] < row["cosine_high"]
    assert abs(row["cosine"] - row["efficiency_predicted"] ** 0.5) < 0.1
    measured, left = map(int, re.findall(r"(\d+) measured, (\d+) left out", budget)[0])
    assert 1 <= measured <= 4 and measured + left <= 4
    assert attached.strip() == "[0, 10]" or attached.strip() == "[np.int64(0), np.int64(10)]"
    assert resumed.strip() == "True"
    assert float(logged) > 0


def test_no_line_of_the_page_is_too_long_to_read() -> None:
    assert max(map(len, PAGE.splitlines())) <= 140


def test_every_name_of_the_page_is_public() -> None:
    import fganalysis as fga

    for dotted in set(re.findall(r"\bfga\.([A-Za-z_.]*\w)", PAGE)):
        thing: Any = fga
        for name in dotted.split("."):
            thing = getattr(thing, name)
