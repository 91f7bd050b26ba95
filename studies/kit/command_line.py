"""The command line of every study: a dataclass of settings, each checked, and errors in one sentence.

A study that is ended by Ctrl-C or SIGTERM exits with 130 or 143, as shells have it, without a traceback: what is
finished is kept, and the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import signal
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
import tyro

from fganalysis.arguments import check_choice, check_flag, check_number, check_path, check_seed, check_whole, described
from fganalysis.results.on_dask.addresses import check_scheduler
from fganalysis.results.on_dask.logs import log_to
from fganalysis.results.workers import refused

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Chosen = TypeVar("Chosen")
DatasetName = Literal["mnist1d", "digits", "fashion_mnist", "mnist", "cifar10"]
Device = NewType("Device", str)
"""auto, cpu, cuda or cuda:N."""
AUTO = Device("auto")
LogLevel = Literal["off", "info", "debug"]
FOLDERS = ("out", "page")
LOG_FILE = "study.log"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logged:
    """The setting of every study on which no number depends."""

    log: LogLevel = "info"
    """What goes to the file study.log beside the results."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running(Logged):
    """The same of studies whose cells may be computed side by side, which those that take times may not."""

    workers: int = 1
    """Processes that compute cells side by side, each on one thread."""
    scheduler: str | None = None
    """Who computes instead, by docs/many_machines.md: local:N, tcp://host:port, or the path of a scheduler file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnDevice(Running):
    """The same of studies whose networks torch computes."""

    device: Device = AUTO
    """Where networks are trained and measured: auto (a GPU where there is one), cpu, cuda or cuda:N."""


NO_NUMBERS = (*FOLDERS, *(field.name for field in dataclasses.fields(Running)))


def run(settings: type[Chosen], main: Callable[[Chosen], object], description: str | None) -> None:
    """Reads the command line and runs the study; what it refuses, or cannot write, is one sentence without a traceback.

    Other errors are mistakes of the program and keep their traceback.
    """
    chosen = tyro.cli(settings, description=description, prog=f"python -m studies.{Path(sys.argv[0]).parent.name}")
    _log_to_file(chosen)
    with _ended_by_signals():
        try:
            main(chosen)
        except KeyboardInterrupt:
            print("interrupted: what is finished is kept, and the same command goes on from there", file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from None
        except OSError as error:
            raise SystemExit(f"error: {error}") from error
        except ValueError as error:
            if not refused(error):  # Raised inside a library, or by Python.
                raise
            raise SystemExit(f"error: {error}") from error


def depends_on(settings: DataclassInstance, *names: str) -> dict[str, object]:
    """The settings of these names; without names all of them, except where results go and how they are computed."""
    values = dataclasses.asdict(settings)
    return {name: values[name] for name in names or values if name not in NO_NUMBERS}


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends what is running as an exception does, so that workers end and no temporary files are left."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_to_file(settings: object) -> None:
    level, out = getattr(settings, "log", "off"), getattr(settings, "out", None)
    logger = logging.getLogger("fganalysis")
    if level != "off" and out is not None:
        _log_below(out, level, logger)
    if getattr(settings, "scheduler", None) is not None:
        log_to(logger.handlers, logging.INFO if level == "debug" else logging.WARNING)


def _log_below(out: Path, level: str, logger: logging.Logger) -> None:
    out.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(out / LOG_FILE, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))
    logger.setLevel(level.upper())
    logger.addHandler(handler)


def check(
    settings: DataclassInstance,
    *,
    least: Mapping[str, int | None] | None = None,
    optional: Collection[str] = (),
    repeated: Collection[str] = (),
) -> None:
    """Every setting by its type: whole numbers are sizes of at least 1, other numbers positive, seeds seeds.

    A device is replaced by the one that it means, so that no result says that it was made on "auto".

    Parameters
    ----------
    least
        Other bounds of whole numbers, by the setting's name; None is none.
    optional
        Settings of several values that may have no value.
    repeated
        Settings of several values that may hold a value twice.

    Raises
    ------
    ValueError
        A setting that is wrong, by its name.
    """
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        name, value, hint = field.name, getattr(settings, field.name), hints[field.name]
        if hint is Device:
            object.__setattr__(settings, name, meant(name, value))
            continue
        if get_origin(hint) is not tuple:
            _check_one(name, value, hint, (least or {}).get(name, 1), seed=name == "seed")
            continue
        if not isinstance(value, tuple) or not (value or name in optional):
            raise ValueError(f"{name} must be one value or several, got {described(value)}")
        for part in value:
            _check_one(name, part, get_args(hint)[0], (least or {}).get(name, 1), seed=name.endswith("seeds"))
        if len(set(value)) < len(value) and name not in repeated:
            raise ValueError(f"{name} must be different values, got {described(value)}")


def meant(name: str, value: object) -> Device:
    """The device that a setting means: "auto" is a GPU where there is one. Raises ValueError for one that is not here.

    "cuda" is the GPU that torch takes by default, of whatever number, so that its results are those of any.
    """
    if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", value):
        raise ValueError(f"{name} must be auto, cpu, cuda or cuda:N, got {described(value)}")
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if value == "auto":
        return Device("cuda" if n_gpus else "cpu")
    if value != "cpu" and int(value.partition(":")[2] or 0) >= n_gpus:
        there = "torch finds no GPU here" if not n_gpus else f"torch finds {n_gpus} here, from cuda:0"
        raise ValueError(f"{name} is {value}, but {there}: use --{name} auto")
    return Device(value)


def _check_one(name: str, value: object, hint: Any, least: int | None, seed: bool) -> None:
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is Literal:
        check_choice(name, value, get_args(hint))
    elif hint is int:
        if seed:
            check_seed(name, value)
        else:
            check_whole(name, value, least)
            if isinstance(value, int) and value > 0:
                check_seed(name, value)  # Larger numbers cannot be stored among the result's attributes.
    elif hint is float:
        check_number(name, value, above=0)
    elif name == "scheduler":
        check_scheduler(name, value)
    elif hint is bool:
        check_flag(name, value)
    elif hint is Path:
        check_path(name, value)
        if name in FOLDERS:
            _check_folder(name, Path(str(value)))


def _check_folder(name: str, folder: Path) -> None:
    """A folder that can be written to, or made: what is computed before that is found out would be lost."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"{name} must be a folder, but {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{name} must be a folder that can be written to, but {there} is not")
