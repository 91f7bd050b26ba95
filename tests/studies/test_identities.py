"""A change of any setting that a cell depends on makes other cells, in every study; other settings change none."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import fganalysis as fga
from fganalysis.results.cells import Results
from fganalysis.results.identity import Cell, code_hash, identity
from studies.kit import digests as kit_digests
from studies.kit.command_line import NO_NUMBERS, Device

ROOT = Path(__file__).resolve().parents[2]
PROGRESS = {"progress_repeats", "progress_estimators", "kink_networks"}
SCALING = {"scaling_workers", "scaling_seconds"}
# Settings that choose what the page says, or that belong to the other part of a study: no cell depends on them.
WITHOUT_CELLS = {
    "averaging": {"cosines"},
    "bias_variance": {"keep_sums", "split"},
    "calibration estimates": {"part"} | PROGRESS,
    "calibration progress": {"part", "repeats", "estimators", "runs", "alpha", "run_guesses", "biases"}
    | {"power_runs", "power_guesses"},
    "fdfa mlp": {"network", "seeds"},
    "fdfa conv": {"network", "dataset", "width", "widths", "rates", "sweep_rates", "trained_epochs", "histories"}
    | {"pooled", "guesses", "training_rates", "adam_rate", "learning_rates", "epochs", "batch", "seeds", "seed"},
    "guess_target mlp": {"part"},
    "guess_target resnet": {"part", "seeds", "width", "rate", "epochs", "batch", "guesses"}
    | {"training_seeds", "training_epochs"},
    "throughput mlp": {"network", "weights", "guesses"} | SCALING,
    "throughput gpt": {"network", "widths", "seconds", "weights", "guesses"} | SCALING,
    "throughput by_law": {"network", "widths", "seconds", "batch", "svd_width", "device", "memory", "blocks", "small"}
    | SCALING
    | {"scaling", "monitor"},
    "throughput scaling": {"network", "widths", "seconds", "batch", "svd_width", "device", "memory", "blocks", "small"}
    | {"weights", "guesses", "monitor"},
    "throughput monitor": {
        "network",
        "widths",
        "seconds",
        "batch",
        "svd_width",
        "memory",
        "blocks",
        "weights",
        "guesses",
    }
    | SCALING,
    "wang2025": {"quick", "resume_from"},
    "step_cost": {"threads"},
}
PARTS = {
    "calibration estimates": {"part": "estimates"},
    "calibration progress": {"part": "progress"},
    "fdfa mlp": {"network": "mlp"},
    "fdfa conv": {"network": "conv"},
    "guess_target mlp": {"part": "mlp"},
    "guess_target resnet": {"part": "resnet"},
    "throughput mlp": {"network": "mlp"},
    "throughput gpt": {"network": "gpt"},
    "throughput by_law": {"by_law": True},
    "throughput scaling": {"scaling": True},
    "throughput monitor": {"monitor": True},
    "wang2025": {"full": True},
}
SHARED = {"fdfa mlp": "conv_", "guess_target mlp": "resnet_"}  # The prefix of the other part's settings.
STUDIES = sorted(
    {path.parent.name for path in (ROOT / "studies").glob("*/__main__.py")}
    - {"calibration", "fdfa", "guess_target", "throughput"}
    | set(PARTS)
)


def module_of(study: str) -> ModuleType:
    return importlib.import_module(f"studies.{study.split()[0]}.__main__")


def imagined(cells: list[Cell]) -> Results:
    """As if the cells were finished: what is computed from them needs their identities alone."""
    return Results(Path("results"), {cell.name: identity(cell) for cell in cells})


def cells_of(study: str, settings: Any) -> list[Cell]:
    module = module_of(study)
    if study == "averaging":
        trainings = module.trainings(settings)
        return [*trainings, *module.cells(settings, imagined(trainings))]
    if study == "bias_variance":
        data = fga.datasets.load(settings.dataset)
        trainings = module.trainings(settings, data)
        return [*trainings, *module.cells(settings, data, imagined(trainings))]
    return list(module.cells(settings))


def identities(study: str, settings: Any) -> set[tuple[str, str]]:
    return {(cell.name, identity(cell)) for cell in cells_of(study, settings)}


@cache
def at_first(study: str) -> tuple[Any, frozenset[tuple[str, str]]]:
    settings = module_of(study).Settings(**PARTS.get(study, {}))
    return settings, frozenset(identities(study, settings))


def other_values(name: str, hint: Any, value: Any) -> st.SearchStrategy[Any]:
    """Values that a setting of this type may have."""
    if get_origin(hint) is tuple:
        (part, _) = get_args(hint)
        if part is str:
            return st.integers(1, max(1, len(value) - 1)).map(lambda n: tuple(value[:n]))
        return st.lists(other_values(name, part, None), min_size=2, max_size=6, unique=True).map(tuple)
    if hint is Device:
        return st.sampled_from(["cpu", "cuda", "cuda:1"])
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
    if get_origin(hint) is Literal:
        return st.sampled_from(
            [choice for choice in get_args(hint) if choice in ("mnist1d", "digits", "signs")] or [value]
        )
    most = 6 if name.endswith("seeds") else 4096  # Every seed is a cell, or several.
    return {int: st.integers(1, most), float: st.floats(0.01, 0.9), bool: st.booleans()}.get(kinds[0], st.just(value))


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were any, so that a study may be asked for them: no cell is computed here."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "a card")


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fga.datasets, "load", cache(fga.datasets.load))


@pytest.mark.parametrize("study", STUDIES)
def test_a_change_of_any_setting_that_a_cell_depends_on_makes_another_cell(study: str) -> None:
    settings, first = at_first(study)
    hints = get_type_hints(type(settings))
    names = [field.name for field in dataclasses.fields(settings) if field.name not in NO_NUMBERS]
    without = WITHOUT_CELLS.get(study, set())
    without |= {name for name in names if study in SHARED and name.startswith(SHARED[study])}

    @hypothesis_settings(max_examples=20)
    @given(data=st.data())
    def changed(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(names))
        value = data.draw(other_values(name, hints[name], getattr(settings, name)))
        assume(value != getattr(settings, name))
        if name == "text":
            return
        try:
            other = dataclasses.replace(settings, **{name: value})
        except ValueError:  # Settings that do not fit together are refused, and computed by nobody.
            assume(False)
        assume(study != "wang2025" or (name, value) not in {("seeds", 5), ("epochs", 300)})  # Those of --full.
        if name == "sampled_width":  # A bound: it matters where a width lies between its values.
            assume(any((width <= value) != (width <= settings.sampled_width) for width in settings.widths))
        found = identities(study, other)
        assert (found != first) == (name not in without), (name, value)

    changed()


@pytest.mark.parametrize("study", STUDIES)
def test_where_and_how_a_study_is_run_changes_no_cell(study: str, tmp_path: Path) -> None:
    settings, first = at_first(study)
    changes: dict[str, Any] = {"out": tmp_path, "page": tmp_path, "log": "debug", "workers": 7}
    known = {name: value for name, value in changes.items() if hasattr(settings, name)}
    assert identities(study, dataclasses.replace(settings, **known)) == first


@pytest.mark.parametrize("study", STUDIES)
def test_the_cells_of_a_study_have_names_and_functions_of_their_own_study(study: str) -> None:
    cells = cells_of(study, at_first(study)[0])
    assert cells and len({cell.name for cell in cells}) == len(cells)
    for cell in cells:
        assert cell.make.__module__.startswith(f"studies.{study.split()[0]}.")
        assert set(cell.settings).isdisjoint(NO_NUMBERS)


def test_other_data_and_other_code_make_other_cells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another mnist1d file, or a guess that is three times what it was: both were once reused in silence."""
    settings, first = at_first("finite_difference")
    monkeypatch.setattr(kit_digests, "digests", lambda *names: dict.fromkeys(names, "1" * 64))
    monkeypatch.setattr(module_of("finite_difference"), "digests", kit_digests.digests)
    assert not identities("finite_difference", settings) & first
    monkeypatch.undo()
    hashed: Callable[[str], str] = code_hash.__wrapped__
    monkeypatch.setattr("fganalysis.results.identity.code_hash", lambda module: hashed(module)[::-1])
    assert not identities("finite_difference", settings) & first


def test_another_text_makes_other_cells_of_the_gpt_alone(tmp_path: Path) -> None:
    settings, first = at_first("architectures")
    text = tmp_path / "text.md"
    text.write_bytes(settings.text.read_bytes() + b"\nOne line more.\n" * 99)
    found = identities("architectures", dataclasses.replace(settings, text=text))
    assert {name.split("/")[0] for name, _ in found - first} == {"GPT"}
