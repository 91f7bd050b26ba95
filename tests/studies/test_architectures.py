"""The study of architectures, run whole on the quickest of them, and what its page says of made-up efficiencies."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.results import store
from studies.architectures import __main__ as architectures
from studies.architectures import figures
from studies.architectures import page as architectures_page
from studies.architectures.cells import MOMENTS, QUANTITIES, cell, guesses_of
from studies.architectures.networks import ARCHITECTURES, DEFAULT_TEXT, PRECISIONS, SIZES, data_of, loss_of, network
from studies.architectures.page import Comparison, compared

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
TINY = {"architectures": ("conv net",), "seeds": (0, 1), "guesses": 64, "batch": 4, "steps": 1}


def run(folder: Path, **changes: object) -> xr.Dataset:
    settings = architectures.Settings(**(TINY | changes), out=folder / "out", page=folder / "page")
    return architectures.main(settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, xr.Dataset]:
    """The study run once: its folder and its Dataset."""
    folder = tmp_path_factory.mktemp("architectures")
    return folder, run(folder)


def test_measured_meets_predicted_and_a_second_run_computes_nothing(
    finished: tuple[Path, xr.Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, dataset = finished
    assert all(array.attrs["units"] and array.attrs["long_name"] for array in dataset.values())
    for quantity in QUANTITIES:
        inside = dataset[f"{quantity}_inside"].values
        assert np.nanmean(inside) > 0.9, quantity
        # Intervals that hold everything would agree with anything: of guesses with known moments none is missing.
        assert np.isfinite(dataset[f"{quantity}_inside"].sel(guess_kind="weight", space="weight", layer="all")).all()
    assert dataset["parameters"].sel(size="base").values.tolist() == [[7430.0, 7430.0]]
    assert (folder / "page" / "architectures.nc").read_bytes() == (folder / "out" / "architectures.nc").read_bytes()
    for figure in ("efficiency", "layers_initialisation", "layers_trained"):
        assert (folder / "page" / f"architectures_{figure}.png").stat().st_size > 5000
    monkeypatch.setattr(figures, "figures", lambda dataset: {})
    cells = sorted((folder / "out").rglob("*_seed_*.nc"))
    written = [cell.stat().st_mtime_ns for cell in cells]
    assert run(folder).identical(dataset)
    assert cells and [cell.stat().st_mtime_ns for cell in cells] == written


def test_the_page_has_a_row_for_every_guess_and_is_that_of_its_dataset(finished: tuple[Path, xr.Dataset]) -> None:
    folder = finished[0]
    page = (folder / "page" / "architectures.md").read_text(encoding="utf-8")
    for kind in guesses_of(4):
        # Both moments, and factors of the architecture.
        assert page.count(f"| conv net | {kind} |") == 3
    assert page == architectures_page.page(store.read(folder / "page" / "architectures.nc").to_dataset())


def test_the_committed_page_is_that_of_its_dataset() -> None:
    dataset = store.read(RESULTS / "architectures.nc").to_dataset()
    assert (RESULTS / "architectures.md").read_text(encoding="utf-8") == architectures_page.page(dataset)
    assert (RESULTS / "architectures.nc").stat().st_size < 10**6
    assert dataset["architecture"].values.tolist() == list(ARCHITECTURES)


def test_the_text_is_never_edited() -> None:
    """The numbers of every committed GPT are of this text."""
    assert hashlib.sha256(DEFAULT_TEXT.read_bytes()).hexdigest() == (
        "e08eb4f910418d8578a8e5db9e90493b6de7a868de9ed6072b589153dbb2ba06"
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_network_is_captured_with_examples_apart(architecture: str, size: str) -> None:
    data = data_of(architecture, DEFAULT_TEXT)
    untrained = network(architecture, size, 0).eval().to(PRECISIONS.get(architecture, torch.float32))
    inputs, targets = data.batch(2, 0)
    inputs = inputs.to(next(untrained.parameters()).dtype) if inputs.is_floating_point() else inputs
    snapshot = fga.capture(untrained, loss_of(architecture), inputs, targets)
    assert snapshot.interaction == "" and not snapshot.untapped_parameters


def test_what_is_refused_has_its_reason_and_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(snapshot: object, n_guesses: int, generator: torch.Generator) -> object:
        raise ValueError("this guess needs another network")

    monkeypatch.setattr("studies.architectures.cells.guesses_of", lambda batch: {"refused": refusing})
    sizes: dict[str, Any] = {"batch": 4, "guesses": 64, "steps": 1, "learning_rate": 1e-3}
    found = cell("MLP", "base", 0, **sizes, device="cpu", text=DEFAULT_TEXT, scratch=tmp_path)
    assert found.attrs["not_measured"] == '{"refused": "this guess needs another network"}'
    assert found["trained"].values.tolist() == list(MOMENTS)
    assert all(bool(found[quantity].isnull().all()) for quantity in QUANTITIES)


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict", "text"),
    [
        (np.arange(1, 10) * 2.0, np.arange(1, 10) * 1.0, "ahead", "2 (9 of 9)"),
        (np.arange(1, 10) * 1.0, np.arange(1, 10) * 2.0, "behind", "0.5 (0 of 9)"),
        ([2.0, 2.0, 1.0], [1.0, 1.0, 2.0], "undecided", "2 (2 of 3)"),
        ([1.0] * 6, [-0.1] * 6, "ahead", "∞ (6 of 6)"),
        ([-0.1] * 6, [1.0] * 6, "behind", "≈ 0 (0 of 6)"),
        ([np.nan], [1.0], "undecided", "–"),
    ],
)
def test_verdicts_on_made_up_efficiencies(ours: object, theirs: object, verdict: str, text: str) -> None:
    found = compared(ours, theirs)
    assert (found.verdict, str(found)) == (verdict, text)
    assert isinstance(found, Comparison)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ("perceptron",)}, "architectures has the unknown name 'perceptron'; known ones: MLP, "),
        ({"seeds": (0,)}, "seeds must be at least 2"),
        ({"batch": 6}, "batch must be a multiple of 4, the minibatch's part of it, got 6"),
        ({"guesses": 8}, "guesses must be a whole number of at least 32, got 8"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        architectures.Settings(**(TINY | change))
