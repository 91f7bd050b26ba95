"""docs/recipes.md: what a new user does in the first days, each piece of code run after those above it."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import SkipTest

import matplotlib.pyplot as plt
import pytest

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
TASKS = re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor.*")
def test_every_task_runs_as_it_stands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(TASKS) == 12
    module = ModuleType("recipes")
    monkeypatch.setitem(sys.modules, "recipes", module)  # Where a dataclass looks for its annotations.
    names: dict[str, Any] = vars(module)
    for heading, code in TASKS:
        try:
            exec(compile(code, heading, "exec"), names)
        except Exception as error:
            raise AssertionError(f"the code of {heading!r} fails") from error
        assert capsys.readouterr().out, heading
    plt.close("all")
    (mark,) = names["test_estimators"].pytestmark
    for case in mark.args[1]:
        with contextlib.suppress(SkipTest):
            names["test_estimators"](*case.values)
