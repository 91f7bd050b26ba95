"""docs/recipes.md: what a new user does in the first days, each piece of code run after those above it."""

from __future__ import annotations

import contextlib
import re
from unittest import SkipTest

import pytest

from tests import pages

TASKS = dict(
    re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", pages.text_of("docs/recipes.md"), flags=re.MULTILINE | re.DOTALL)
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*enable_nested_tensor.*")
def test_every_task_runs_as_it_stands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(TASKS) == 12
    names, printed = pages.run(TASKS, capsys, monkeypatch)
    assert all(printed), "a task prints nothing"
    (mark,) = names["test_estimators"].pytestmark
    for case in mark.args[1]:
        with contextlib.suppress(SkipTest):
            names["test_estimators"](*case.values)
