"""A snapshot and a truth share one protocol, and nothing behind it asks which of them there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.reference import Reference

PACKAGE = Path(fga.__file__).parent
BEHIND = [
    *(PACKAGE / "statistics").glob("*.py"),
    *(PACKAGE / "results").glob("*.py"),
    *(PACKAGE / "assertions" / name for name in ("unbiased.py", "error_blocks.py", "guess_errors.py")),
    *(PACKAGE / "measuring" / name for name in ("guess_sums.py", "sampled_dataset.py", "blocks.py")),
    PACKAGE / "capturing" / "coordinates.py",
]
ASKS = re.compile(r"(isinstance|type|hasattr)\([^\n]*(Snapshot|Truth|(Activation|Weight|Parameter)Estimates)")


def test_both_have_all_of_the_protocol() -> None:
    snapshot = fga.capture(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss, torch.ones(3, 2), torch.zeros(3, 1))
    both: list[Reference] = [snapshot, fga.truth({"a": torch.ones(2)})]
    members = [name for name in vars(Reference) if not name.startswith("_")]
    assert len(members) == 7
    for reference in both:
        assert all(hasattr(reference, name) for name in members)


@pytest.mark.parametrize("path", BEHIND, ids=lambda path: path.name)
def test_nothing_behind_it_asks_which_it_is(path: Path) -> None:
    assert ASKS.search(path.read_text(encoding="utf-8")) is None
