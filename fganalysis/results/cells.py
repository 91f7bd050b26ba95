"""One engine for every study: its cells, each computed once and kept as a file, and what is missing computed anew.

A study is a list of cells and a page made from their Datasets. `run_cells` computes the cells that are not finished and
nothing else. A finished cell is a file that is whole and has the identity of the cell that is asked for
(`fganalysis.results.identity`). Any other file of its name is never used: it is named on the terminal, renamed, never
deleted, and the cell is computed anew. Only the process that runs the study writes, each cell when it arrives; several
such processes on one folder share the cells by claims (`fganalysis.results.claims`).
"""

from __future__ import annotations

import hashlib
import logging
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import xarray as xr
from tqdm import tqdm

from fganalysis.arguments import check_kind, check_path, check_whole
from fganalysis.results import claims, store
from fganalysis.results.identity import ATTRIBUTE, Cell, difference, identity
from fganalysis.results.on_dask.addresses import check_scheduler
from fganalysis.results.on_dask.coordinator import Dask
from fganalysis.results.threads import at_most
from fganalysis.results.workers import InProcess, Processes, Runner, Task

try:
    import resource
except ImportError:  # Not on Windows.
    resource = None  # type: ignore[assignment]

OTHER = ".other"  # Ends the new name of a file that is another cell's.
POLL = 0.5  # Seconds between two looks at cells that other processes compute.
NOT_KEPT = ("created_at", "peak_memory")  # Attributes that differ between two computations of one cell.
CELLS_LOG = logging.getLogger("fganalysis.cells")


class Results(Mapping[str, xr.DataTree]):
    """The finished cells of a study by name, each read when it is asked for.

    ``identities`` has the line of JSON of each; ``computed`` is how many this run has computed.
    """

    def __init__(self, folder: Path, identities: Mapping[str, str], computed: Sequence[str] = ()) -> None:
        self._folder, self.identities = folder, identities
        self.computed = len(computed)

    def __getitem__(self, name: str) -> xr.DataTree:
        path, wanted = self.path(name), self.identities[name]
        tree, found = store.read_cell(path)
        if found != wanted:
            raise ValueError(f"{path} has changed since it was finished, by another run of the study: start again")
        return tree

    def path(self, name: str) -> Path:
        """The file of a cell, for the functions of others that read it."""
        return self._folder / f"{name}{store.SUFFIX}"

    def dataset(self, name: str) -> xr.Dataset:
        """The Dataset of a cell that is one."""
        return self[name].to_dataset()

    def __iter__(self) -> Iterator[str]:
        return iter(self.identities)

    def __len__(self) -> int:
        return len(self.identities)


def run_cells(
    cells: Sequence[Cell],
    folder: str | Path,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    runner: Runner | None = None,
) -> Results:
    """Computes the cells that are not finished in a folder, in their order, and gives all of them.

    The numbers depend neither on ``workers`` and ``scheduler``, nor on which cells were finished before, nor on other
    processes that work on the same folder.

    Args:
        workers: processes on this machine, of one thread each; 1: in this process, with one thread too.
        scheduler: that of workers of dask.distributed which compute instead, as `check_scheduler` has it.
        runner: who computes instead of both.

    Raises:
        ValueError: two cells of one name, settings that are not plain values, a file that is locked or cannot be read;
            or what a cell refuses.
        OSError: a file that cannot be written, or a cell whose process is killed again and again.
        Failed: a mistake in a cell's function, in another process. Finished cells are kept in each case.
    """
    check_path("folder", folder)
    check_whole("workers", workers)
    if scheduler is not None:
        check_scheduler("scheduler", scheduler)
    folder = Path(folder)
    for cell in cells:
        check_kind("a cell", cell, Cell, "a Cell")
    identities = {cell.name: identity(cell) for cell in cells}
    if len(identities) < len(cells):
        raise ValueError("the cells of a study must have different names")
    parents: dict[Path, set[str]] = {}
    for cell in cells:
        parents.setdefault(cell.path(folder).parent, set()).add(cell.path(folder).name)
    for parent, names in parents.items():
        claims.sweep(parent, names)
    study = _Study(folder, identities)
    missing = [cell for cell in cells if not study.found(cell).finished]
    if cells:
        _say(f"{len(cells) - len(missing)} of {len(cells)} cells are finished in {folder}", logging.INFO)
    if missing:
        chosen = runner or _runner(min(workers, len(missing)), scheduler)
        # The mean time of the cells finished by this run, and of no others, tells how long the rest takes.
        with tqdm(total=len(cells), initial=len(cells) - len(missing), unit="cell", smoothing=0) as bar:
            try:
                study.compute(missing, chosen, bar)
            finally:
                chosen.close()
                study.release()
    return Results(folder, identities, study.computed)


def unfinished(cells: Sequence[Cell], folder: str | Path) -> list[Cell]:
    """The cells that `run_cells` would compute. Raises ValueError as that does."""
    check_path("folder", folder)
    study = _Study(Path(folder), {cell.name: identity(cell) for cell in cells})
    return [cell for cell in cells if not study.found(cell).finished]


def _runner(workers: int, scheduler: str | None) -> Runner:
    if scheduler is not None:
        return Dask(scheduler)
    return Processes(workers) if workers > 1 else InProcess()


def same(one: xr.DataTree, other: xr.DataTree) -> bool:
    """Whether two cells are identical but for when, and with how much memory, they were computed."""
    trees = [tree.copy() for tree in (one, other)]
    for tree in trees:
        tree.attrs = {name: value for name, value in tree.attrs.items() if name not in NOT_KEPT}
    return trees[0].identical(trees[1])


def content(cell: Cell, made_of: str, scratch: Path | None, needed: Sequence[Path] = ()) -> bytes:
    """Computes a cell and gives the bytes of its file: what any process can do, here or elsewhere.

    Raises:
        ValueError: this process has other code or libraries than the study, or does not see the ``needed`` paths; or
            what the cell refuses.
    """
    here = identity(cell)
    if here != made_of:
        raise ValueError(
            f"the cell {cell.name}, if computed on {platform.node()}, {difference(here, made_of)}: all processes of a "
            "study need the same code and the same libraries"
        )
    for path in needed:
        if not path.exists():
            raise ValueError(
                f"the cell {cell.name} needs {path}, which {platform.node()} does not have: results must lie in a "
                "folder that all machines share under the same path"
            )
    with at_most(cell.threads):
        own = {"scratch": scratch} if cell.resumes else {}
        result = cell.make(**cell.settings, **cell.places, **own)
    check_kind(f"what the cell {cell.name} returns", result, (xr.Dataset, xr.DataTree), "a Dataset or DataTree")
    result.attrs |= {ATTRIBUTE: made_of, "peak_memory": _peak_memory()}
    return store.content_of(result, f"the cell {cell.name}", made_of)


class _Found(NamedTuple):
    """Whether a file is the finished cell; otherwise, where there is one, what is wrong with it, and its new suffix."""

    finished: bool
    wrong: str = ""
    suffix: str = ""


class _Study:
    """The state of one `run_cells`: what is claimed, and what has been computed."""

    def __init__(self, folder: Path, identities: Mapping[str, str]) -> None:
        self._folder, self._identities = folder, identities
        self._claimed: dict[str, tuple[Cell, claims.Claim, float]] = {}
        self.computed: list[str] = []

    def found(self, cell: Cell) -> _Found:
        """What there is under the name of the cell's file."""
        path = cell.path(self._folder)
        try:
            identity_found = store.identity_of(path)
        except store.Damaged as damage:
            return _Found(False, str(damage), store.DAMAGED)
        except ValueError:
            if path.exists():  # It may be whole, but is locked or cannot be read.
                raise
            return _Found(False)
        wanted = self._identities[cell.name]
        if identity_found == wanted:
            return _Found(True)
        return _Found(False, f"{path} {difference(identity_found, wanted)}", OTHER)

    def compute(self, missing: list[Cell], runner: Runner, bar: tqdm) -> None:
        """Until every missing cell is finished, by this process or by another."""
        waiting = list(missing)
        while waiting or self._claimed:
            for cell in list(waiting):
                if not runner.idle():
                    break
                if self.found(cell).finished:
                    waiting.remove(cell)
                    _count_as_before(bar)
                elif self._start(cell, runner):
                    waiting.remove(cell)
            if not self._claimed:
                time.sleep(POLL if waiting else 0)  # All that is left is being computed by other processes.
            outcomes = runner.wait(POLL) if self._claimed else []
            for outcome in sorted(outcomes, key=lambda one: one.error is not None):  # What is finished is kept first.
                cell, claim, started = self._claimed[outcome.name]
                if outcome.error is not None:
                    raise outcome.error
                self._finish(cell, outcome.content)
                claim.release()
                del self._claimed[outcome.name]
                CELLS_LOG.info("%s was computed in %.1f s", cell.name, time.monotonic() - started)
                bar.update()

    def release(self) -> None:
        for _, claim, _ in self._claimed.values():
            claim.release()
        self._claimed = {}

    def _start(self, cell: Cell, runner: Runner) -> bool:
        """Begins a cell that no other process computes, or finds it finished by then."""
        path = cell.path(self._folder)
        claim = claims.take(path)
        if claim is None:
            return False
        self._claimed[cell.name] = (cell, claim, time.monotonic())
        claims.remove_temporary(path)
        found = self.found(cell)
        if found.finished:  # By another process, between the last look and the claim.
            del self._claimed[cell.name]
            claim.release()
            return False
        if found.wrong:
            aside = store.set_aside(path, found.suffix)
            _say(f"{found.wrong}; the file is now {aside.name}, and the cell is computed anew")
        CELLS_LOG.debug("%s is begun", cell.name)
        runner.start(cell.name, self._task(cell))
        return True

    def _task(self, cell: Cell) -> Task:
        """What computes the cell in any process, on any machine that shares the folder, whatever its working folder."""
        places = {name: one.absolute() if isinstance(one, Path) else one for name, one in cell.places.items()}
        needed = [place for place in places.values() if isinstance(place, Path) and place.exists()]
        scratch = self._scratch(cell).absolute() if cell.resumes else None
        if scratch is not None:
            needed.append(scratch.parent)
        return partial(content, replace(cell, places=places), self._identities[cell.name], scratch, tuple(needed))

    def _scratch(self, cell: Cell) -> Path:
        """The folder of the cell's checkpoints. Those of another identity, as of other code, are in another folder."""
        path = cell.path(self._folder)
        digest = hashlib.sha256(self._identities[cell.name].encode()).hexdigest()[:16]
        return path.with_name(f".{path.name}.{digest}.scratch")

    def _finish(self, cell: Cell, content: bytes) -> None:
        path = cell.path(self._folder)
        store.write_bytes(content, path)
        self.computed.append(cell.name)
        if cell.resumes:
            for scratch in path.parent.glob(f".{path.name}.*.scratch"):
                shutil.rmtree(scratch, ignore_errors=True)


def _count_as_before(bar: tqdm) -> None:
    """Counts a cell that this process has not computed, which says nothing of how long the others take."""
    bar.initial += 1
    bar.n += 1
    bar.refresh()


def _say(sentence: str, level: int = logging.WARNING) -> None:
    with tqdm.external_write_mode():
        print(sentence, flush=True)
    CELLS_LOG.log(level, sentence)


def _peak_memory() -> int:
    """The largest memory that this process has had, in bytes; 0 where that is unknown."""
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
