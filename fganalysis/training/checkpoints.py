"""Checkpoints of a training: a safetensors file for each step, with all states and the settings of the run.

A file holds the states of network, optimiser, schedule and estimator, the settings of the run (see
`fganalysis.training.run_settings`) and the SHA-256 of all of it, which is checked whenever the file is read. It appears
under its name only when it is complete (temporary name, fsync, rename). Files of versions that wrote no SHA-256 are
refused: what they hold cannot be checked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from fganalysis.arguments import check_kind, check_path

PAIRS = "pairs of key and value"  # In a checkpoint, where a dictionary's keys are no text.
NUMBERS = "numbers of a tensor"
REPLACE_IT = "replace it by an intact copy, or train again"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors by name (``network.…``, ``optimizer.…``, ``estimator.…``) and everything else."""

    path: Path
    tensors: dict[str, Tensor]
    training: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with ``prefix.``, by their names without this prefix."""
        start = f"{prefix}."
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}

    def restore(
        self,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> int:
        """Puts the states into what is given, in place, or changes nothing; returns the step.

        Raises:
            ValueError: names, shapes or types of the network's weights differ, or optimiser or schedule are others.
        """
        for name, parameter in network.named_parameters():
            if isinstance(parameter, torch.nn.parameter.UninitializedParameter):
                raise ValueError(f"parameter {name!r} of the network has no shape yet: run the network once before")
        weights = self.part("network")
        expected, there = _kinds_of(network.state_dict()), _kinds_of(weights)
        differing = sorted(name for name in expected.keys() | there.keys() if expected.get(name) != there.get(name))
        if differing:
            name = differing[0]
            raise ValueError(
                f"the checkpoint {self.path} is of another network: {name!r} is {there.get(name, 'missing')} in it and "
                f"{expected.get(name, 'missing')} in the network given"
            )
        if optimizer is not None:
            self._refuse_another("optimizer", _optimizer_form(optimizer))
        if scheduler is not None:
            self._refuse_another("schedule", type(scheduler).__name__)
        network.load_state_dict(weights)
        if optimizer is not None:
            state: dict[int, dict[str, Any]] = {}
            for index, entries in self.training["optimizer_plain"].items():
                state.setdefault(int(index), {}).update(entries)
            for name, value in self.part("optimizer").items():
                index, entry = name.split(".", 1)
                state.setdefault(int(index), {})[entry] = value
            optimizer.load_state_dict({"state": state, "param_groups": self.training["param_groups"]})
        if scheduler is not None:
            scheduler.load_state_dict(self.training["schedule"])
        return int(self.training["step"])

    def _refuse_another(self, what: str, given: str) -> None:
        saved = self.training["made_of"][what]
        if saved != given:
            raise ValueError(
                f"the checkpoint {self.path} has the state of another {what}: {saved or 'none'} in it, {given} given"
            )


def save_checkpoint(
    out: Path,
    step: int,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    estimator_state: Mapping[str, Tensor] | None = None,
    settings: Mapping[str, str] | None = None,
    loss: float | None = None,
) -> Path:
    """Writes ``out/step_NNNNNN.safetensors``: the states of network, optimiser, schedule and estimator; atomically.

    Args:
        settings: the settings of the run by name, see `fganalysis.training.run_settings`.
        loss: of the network as saved, on examples on which a continued run can compute it again.

    Raises:
        ValueError: a state that holds what is neither a tensor nor plain numbers and texts.
        OSError: the file cannot be written; what was there before is still there.
    """
    tensors, training = states_of(network, optimizer, scheduler, estimator_state or {})
    text = json.dumps(training | {"step": step, "settings": dict(settings or {}), "loss": loss})
    # Copies, because two names of one weight share memory, which the format cannot represent.
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    content = save(copies, metadata={"training": text, "sha256": _digest(copies, text)})
    path = Path(out) / f"step_{step:06d}.safetensors"
    try:
        _write(path, content)
    except OSError as error:
        raise OSError(f"the checkpoint {path} cannot be written: {error.strerror}") from error
    return path


def states_of(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
    estimator_state: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a checkpoint by name, and its other states as JSON. Raises as `save_checkpoint`."""
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"estimator.{name}": value for name, value in estimator_state.items()}
    state = optimizer.state_dict()
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            elif value is not None:
                plain.setdefault(str(index), {})[name] = value
    for name, value in tensors.items():
        check_kind(f"what a checkpoint holds as {name!r}", value, Tensor, "a tensor")
    plain_parts = {
        "param_groups": state["param_groups"],
        "optimizer_plain": plain,
        "schedule": _schedule_state(scheduler) if scheduler is not None else None,
        "made_of": {
            "optimizer": _optimizer_form(optimizer),
            "schedule": type(scheduler).__name__ if scheduler is not None else None,
        },
    }
    return tensors, {name: _plain(name, value) for name, value in plain_parts.items()}


def read_checkpoint(path: str | Path) -> Checkpoint:
    """A checkpoint, read whole and checked.

    Raises:
        ValueError: no file, a file that is damaged, or one that `save_checkpoint` has not written.
    """
    check_path("the path of a checkpoint", path)
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint at {path}{', which is a folder' if path.is_dir() else ''}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # Libraries raise many kinds of errors for damaged files.
        raise ValueError(f"{path} cannot be read, or is no checkpoint: {REPLACE_IT}") from error
    text, digest = metadata.get("training"), metadata.get("sha256")
    if text is None:
        raise ValueError(f"{path} is not a checkpoint written by fganalysis")
    if digest is None:
        raise ValueError(
            f"{path} cannot be checked, as it has no SHA-256 (a checkpoint of an older version?): train again, or read "
            "its tensors by safetensors.torch.load_file"
        )
    if digest != _digest(tensors, text):
        raise ValueError(f"{path} is damaged: its content has another SHA-256 than when it was written; {REPLACE_IT}")
    return Checkpoint(path, tensors, json.loads(text, object_hook=_as_it_was))


def load_checkpoint(
    path: str | Path,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> int:
    """Loads a checkpoint into a network (and optimiser and schedule, where given), in place; returns its step.

    Raises:
        ValueError: a file that is missing, damaged, no checkpoint, or one of another network, optimiser or schedule.
    """
    check_kind("network", network, torch.nn.Module, "a torch.nn.Module")
    if optimizer is not None:
        check_kind("optimizer", optimizer, torch.optim.Optimizer, "a torch optimiser")
    if scheduler is not None:
        check_kind("scheduler", scheduler, torch.optim.lr_scheduler.LRScheduler, "a torch learning-rate schedule")
    return read_checkpoint(path).restore(network, optimizer, scheduler)


def load_estimator_state(path: str | Path) -> dict[str, Tensor]:
    """The state of a stateful estimator from a checkpoint; empty where none was saved. Raises as `read_checkpoint`."""
    return read_checkpoint(path).part("estimator")


def digest_of(name: str, value: Tensor) -> bytes:
    """SHA-256 of a tensor's name, type, shape and content."""
    whole = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    digest = hashlib.sha256(f"{name} {value.dtype} {tuple(value.shape)};".encode())
    digest.update(whole.data)
    return digest.digest()


def kind_of(value: Tensor) -> str:
    """Shape and type of a tensor, for a message."""
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(digest_of(name, tensors[name]))
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _kinds_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: kind_of(value) for name, value in tensors.items()}


def _optimizer_form(optimizer: torch.optim.Optimizer) -> str:
    sizes = ", ".join(str(len(group["params"])) for group in optimizer.param_groups)
    return f"{type(optimizer).__name__} of {sizes} parameters"


def _schedule_state(scheduler: torch.optim.lr_scheduler.LRScheduler) -> dict[str, Any]:
    """The state of a schedule without its functions, which a continued run takes from the schedule that it is given."""
    return {name: value for name, value in scheduler.state_dict().items() if not _only_functions(value)}


def _only_functions(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return bool(value) and all(part is None or _only_functions(part) for part in value) and any(value)
    return callable(value) and (isinstance(value, type) or hasattr(value, "__name__") or hasattr(value, "func"))


def _plain(name: str, value: Any) -> Any:
    """A state for JSON, whose keys are text: dictionaries with other keys become lists of pairs."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Tensor):
        return {NUMBERS: value.tolist(), "type": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        entries = {key: _plain(f"{name}.{key}", entry) for key, entry in value.items()}
        return entries if all(isinstance(key, str) for key in entries) else {PAIRS: list(entries.items())}
    if isinstance(value, list | tuple):
        return [_plain(name, entry) for entry in value]
    if not isinstance(value, str | int | float | bool | None):
        raise ValueError(
            f"a checkpoint cannot hold {name!r}, which is neither numbers, text nor a tensor but "
            f"of the class {type(value).__name__}"
        )
    return value


def _as_it_was(value: dict[str, Any]) -> Any:
    if set(value) == {PAIRS}:
        return dict(value[PAIRS])
    if set(value) == {NUMBERS, "type"}:
        return torch.tensor(value[NUMBERS], dtype=getattr(torch, value["type"]))
    return value
