"""Every study's command line: its help, each wrong value of each setting, where its page goes, what it refuses."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import tyro
import xarray as xr

from fganalysis.results import store
from fganalysis.training import datasets
from studies.kit import command_line, pages

FOLDER = Path(__file__).resolve().parents[2] / "studies"
STUDIES = sorted(path.parent.name for path in FOLDER.glob("*/__main__.py"))


def module(study: str) -> Any:
    return import_module(f"studies.{study}.__main__")


def settings_of(study: str) -> Any:
    return module(study).Settings


def test_every_study_is_run_by_the_one_mechanism() -> None:
    assert len(STUDIES) >= 13
    for study in STUDIES:
        assert "command_line.run(Settings" in (FOLDER / study / "__main__.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("study", STUDIES)
def test_help_says_what_every_setting_means(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        tyro.cli(settings_of(study), description=module(study).__doc__, args=["--help"])
    text = capsys.readouterr().out
    assert not ended.value.code
    for name in vars(settings_of(study)()):
        assert f"--{name.replace('_', '-')}" in text


def wrong_values(name: str, hint: Any, folder: Path) -> list[object]:
    """Values that a setting of this type cannot have, whatever it is."""
    if get_origin(hint) is tuple:
        parts = wrong_values(name.removesuffix("s"), get_args(hint)[0], folder)
        valid = {int: 1, float: 0.5, str: "activity"}[get_args(hint)[0]]
        return ["text", 3, None, *[(part,) for part in parts], *([] if name == "epochs" else [(valid, valid)])]
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    if kinds == [int]:
        return [-1000, 1.5, float("nan"), True, "3", 2**64, 2**63, np.array([1])]
    if kinds == [float]:
        return [float("nan"), float("inf"), -1.0, 0.0, "1", True]
    if kinds == [bool]:
        return [None, "no", 3]
    if kinds == [Path]:
        (folder / "file").write_text("in the way")
        return ["", 3, *([folder / "file", folder / "file" / "below"] if name in command_line.FOLDERS else [])]
    return ["nonsense", 3, None]


@pytest.mark.parametrize("study", STUDIES)
def test_every_wrong_setting_is_refused_in_one_sentence(study: str, tmp_path: Path) -> None:
    settings = settings_of(study)
    for name, hint in get_type_hints(settings).items():
        for wrong in wrong_values(name, hint, tmp_path):
            if wrong is None and type(None) in get_args(hint):
                continue
            with pytest.raises(ValueError) as raised:
                settings(**{name: wrong})
            sentence = str(raised.value)
            assert "\n" not in sentence and len(sentence) < 400, sentence
            last = raised.traceback[-1]
            assert str(last.statement).strip().startswith("raise ") and {"studies", "fganalysis"} & {*last.path.parts}


@pytest.mark.parametrize("study", STUDIES)
def test_what_the_command_line_cannot_take_is_said_without_a_traceback(
    study: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = [field for field in vars(settings_of(study)()) if field in ("seed", "seeds")]
    for argument in [["--nonsense"], *[[f"--{seed}", str(2**64)] for seed in seeds]]:
        with pytest.raises(SystemExit) as ended:
            tyro.cli(settings_of(study), args=argument)
        assert ended.value.code == 2
        shown = capsys.readouterr().err
        assert "Traceback" not in shown and ("Unrecognized" in shown or "must be" in " ".join(shown.split()))


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_takes_a_device_and_refuses_one_that_is_not_here(
    study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    settings = settings_of(study)
    assert get_type_hints(settings)["device"] is command_line.Device and settings().device == "cpu"
    for wrong in ("cuda", "cuda:3"):
        with pytest.raises(ValueError, match=f"^device is {wrong}, but torch finds no GPU here: use --device auto$"):
            settings(device=wrong)


@pytest.mark.parametrize("study", STUDIES)
def test_no_study_writes_to_the_committed_pages_unless_it_is_told_to(study: str) -> None:
    settings = settings_of(study)()
    assert settings.out == Path("results") / study
    assert getattr(settings, "page", None) is None


def test_the_datasets_are_those_there_are() -> None:
    assert set(get_args(command_line.DatasetName)) == {*datasets.GENERATED, *datasets.SOURCES}


@dataclasses.dataclass(frozen=True)
class Settings:
    out: Path = Path("results")


def ended(error: Exception, monkeypatch: pytest.MonkeyPatch) -> object:
    def main(settings: Settings) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["study"])
    with pytest.raises(SystemExit) as caught:
        command_line.run(Settings, main, None)
    return caught.value.code


def test_refusals_and_full_disks_end_in_a_sentence_and_mistakes_in_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(ValueError("memory must be more"), monkeypatch) == "error: memory must be more"
    assert (
        ended(OSError("cell.nc cannot be written: no space"), monkeypatch)
        == "error: cell.nc cannot be written: no space"
    )
    monkeypatch.setattr(sys, "argv", ["study"])
    with pytest.raises(ValueError, match="invalid literal"):
        command_line.run(Settings, lambda settings: int("x"), None)
    with pytest.raises(ZeroDivisionError):
        command_line.run(Settings, lambda settings: 1 / 0, None)


def test_a_run_in_a_shell_is_refused_in_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "studies.tangents",
            "--largest-n",
            "1",
            "--largest-k",
            "0",
            "--out",
            "out",
            "--seed",
            "-1",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(FOLDER.parent), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "seed must be a whole number of at least 0, got -1" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_page_goes_to_the_results_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    def figures() -> dict[str, Any]:
        return {"": plt.figure(), "error": plt.figure()}

    out, committed = tmp_path / "out", tmp_path / "docs"
    store.write(xr.Dataset({"value": ("x", [1.0])}), out / "study.nc")
    assert pages.write("study", "first ε\n", figures(), out, None, with_result=True) == out
    assert {path.name for path in out.iterdir()} == {"study.md", "study.nc", "study.png", "study_error.png"}
    assert (out / "study.md").read_text(encoding="utf-8") == "first ε\n"
    assert pages.write("study", "second\n", figures(), out, committed, with_result=True) == committed
    assert (out / "study.md").read_text(encoding="utf-8") == "first ε\n"
    assert {path.name for path in committed.iterdir()} == {"study.md", "study.nc", "study.png", "study_error.png"}
    pages.write("other", "third\n", {}, out, tmp_path / "third")
    assert [path.name for path in (tmp_path / "third").iterdir()] == ["other.md"]
