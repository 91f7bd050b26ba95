"""A wrong call ends well where it is refused in one sentence by a ``raise`` of the project, or is understood."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).parents[1]
MOST_CHARACTERS = 400
# Words of torch, NumPy and Python that say nothing to who made the call.
FOREIGN = ("expanded size", "must match the size", "not supported between", "has no attribute", "conflicting dimension")


def refusal(call: Callable[[], object]) -> str | None:
    """The sentence in which ``call`` refuses, None where it returns.

    Raises:
        AssertionError: where it ends otherwise: in a library's words, in several lines, at length.
    """
    try:
        call()
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        ours = Path(frame.filename).is_relative_to(PROJECT / "fganalysis")
        raised = linecache.getline(frame.filename, frame.lineno or 0).strip().startswith("raise")
        text = str(error)
        short = len(text) <= MOST_CHARACTERS and "\n" not in text and not any(word in text for word in FOREIGN)
        if not (isinstance(error, ValueError) and ours and raised and short):
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            raise AssertionError(f"{type(error).__name__} at {where}: {text[:300]}") from error
        return text
    return None
