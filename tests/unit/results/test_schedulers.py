"""What may be named as a scheduler, and what is said where dask.distributed or the scheduler is not there."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest

from fganalysis.results import cells as engine
from fganalysis.results.cells import run_cells
from fganalysis.results.identity import Cell, identity
from fganalysis.results.on_dask import addresses, coordinator, logs
from fganalysis.results.workers import refused
from tests.unit.results.small_cells import drawn, small_cells

ONE = Cell("cell", drawn, {"seed": 0})
ROOT = Path(__file__).resolve().parents[3]
KINDS = r"scheduler must be local:N, tcp://host:port, tls://host:port or the path of a scheduler file"


@pytest.mark.parametrize("value", ["local:1", "local:64", "tcp://10.0.0.1:8786", "tls://head.cluster:8786"])
def test_a_scheduler_is_local_or_an_address(value: str) -> None:
    assert addresses.address_of("scheduler", value) == value


def test_a_scheduler_file_gives_its_address(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"type": "Scheduler", "address": "tcp://10.0.0.1:39001", "workers": {}}))
    assert addresses.address_of("scheduler", str(file)) == "tcp://10.0.0.1:39001"
    for content in ("", "{}", "[]", '{"address": "10.0.0.1"}', '{"address": 3}', "\0", "\udcff"):
        file.write_text(content, errors="surrogateescape")
        with pytest.raises(ValueError, match=KINDS + ", but .* is a file without a scheduler's address"):
            addresses.address_of("scheduler", str(file))


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "local", "local:", "local:0", "local:-1", "local:2.5", "local:99999", "tcp://head", "tcp://:8786"),
        *("http://head:8786", "head:8786", "/nowhere/scheduler.json", "a\0b", "x" * 5000),
    ],
)
def test_anything_else_is_refused_in_one_sentence(value: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=KINDS + ", got ") as raised:
        run_cells([ONE], tmp_path, scheduler=value)
    assert refused(raised.value) and len(str(raised.value)) < 400 and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=KINDS):
        run_cells([ONE], tmp_path, scheduler=2)  # type: ignore[arg-type]


def test_a_pipe_in_the_place_of_a_scheduler_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match=KINDS):
            addresses.address_of("scheduler", str(place))


def test_without_the_extra_its_name_is_said_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(
        ValueError, match=r"scheduler needs dask\.distributed.*pip install 'fganalysis\[distributed\]'"
    ) as e:
        run_cells([ONE], tmp_path, scheduler="local:2")
    assert refused(e.value) and not list(tmp_path.iterdir())
    assert run_cells([ONE], tmp_path, workers=2).computed == 1  # All else goes on without it.


def test_a_scheduler_that_does_not_answer_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed", reason="the extra `distributed` is not installed")
    monkeypatch.setattr(coordinator, "SECONDS_TO_CONNECT", 0.5)
    before = {one: (one.handlers, one.propagate, one.level) for one in map(logging.getLogger, logs.LOGGERS)}
    logs.log_to([])
    try:
        for address in ("tcp://127.0.0.1:9", "tls://127.0.0.1:9", "tcp://no.such.host.invalid:9"):
            with pytest.raises(OSError, match=f"^no scheduler of dask answers at {address}.*finished cells are kept"):
                run_cells(small_cells(2), tmp_path, scheduler=address)
        # Whatever is left open is closed by the garbage collector, which deadlocks where another client is starting.
        clients = [each for each in gc.get_objects() if type(each) is distributed.Client]
        assert {client.status for client in clients} <= {"closed"}
    finally:
        for logger, (handlers, logger.propagate, level) in before.items():
            logger.handlers = handlers
            logger.setLevel(level)
    assert not list(tmp_path.rglob("*.nc*"))


def test_the_page_on_many_machines_names_what_there_is() -> None:
    text = (ROOT / "docs" / "many_machines.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        compile(block, "docs/many_machines.md", "exec")
    named = set(re.findall(r"--scheduler ((?:local|tcp|tls):[\w:/.-]*\w)", text))
    assert {addresses.address_of("scheduler", value) for value in named} == named >= {"local:8", "tcp://head:8786"}
    words = {2: "three times", 600.0: "ten minutes"}
    for number in (coordinator.MOST_DEATHS, coordinator.SECONDS_ALONE):
        assert words[number] in text


def test_the_tests_have_what_the_extras_bring() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert {*extras["distributed"], *extras["zarr"]} <= set(extras["test"])


def test_a_process_with_other_code_or_libraries_computes_no_cell() -> None:
    known = json.loads(identity(ONE))
    for change, words in [
        ({"code": "0" * 64}, "was made with other code"),
        ({"versions": known["versions"] | {"torch": "2.0.0"}}, "was made with torch "),
    ]:
        other = json.dumps(known | change, sort_keys=True)
        with pytest.raises(
            ValueError, match=f"the cell cell, if computed on .*, {words}.*need the same code"
        ) as raised:
            engine.content(ONE, other, None)
        assert refused(raised.value)


def test_a_machine_without_the_files_that_a_cell_reads_is_named(tmp_path: Path) -> None:
    here, gone = tmp_path / "network.nc", tmp_path / "training.nc"
    here.touch()
    with pytest.raises(
        ValueError, match=r"the cell cell needs .*training\.nc, which .* does not have: results must lie"
    ):
        engine.content(ONE, identity(ONE), None, (here, gone))
    assert engine.content(ONE, identity(ONE), None, (here,))


def test_places_do_not_depend_on_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").touch()
    cell = Cell("cell", drawn, {"seed": 0}, places={"calls": Path("there"), "n": 3}, resumes=True)
    study = engine._Study(Path("out"), {"cell": identity(cell)})
    sent, _, scratch, needed = study._task(cell).args  # type: ignore[attr-defined]
    assert sent.places == {"calls": tmp_path / "there", "n": 3}
    assert scratch.parent == tmp_path / "out" and needed == (tmp_path / "there", tmp_path / "out")
