"""Checkpoints of a training: one safetensors file a step, with the states of network, optimiser, schedule, estimator."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

PAIRS = "pairs of key and value"  # In a checkpoint, where a dictionary's keys are no text.


def save_checkpoint(
    out: Path,
    step: int,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    estimator_state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes ``out/step_NNNNNN.safetensors``: the states of network, optimiser, schedule and estimator; atomically."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"step_{step:06d}.safetensors"
    tensors = {f"network.{name}": value.detach().contiguous() for name, value in network.state_dict().items()}
    tensors |= {f"estimator.{name}": value.contiguous() for name, value in (estimator_state or {}).items()}
    state = optimizer.state_dict()
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value.detach().contiguous()
            elif value is not None:
                plain.setdefault(str(index), {})[name] = value
    described = {
        "step": step,
        "param_groups": state["param_groups"],
        "optimizer_plain": plain,
        "schedule": scheduler.state_dict() if scheduler is not None else None,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors, temporary, metadata={"training": json.dumps(_with_text_keys(described))})
    os.replace(temporary, path)
    return path


def load_checkpoint(
    path: str | Path,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
) -> int:
    """Loads a checkpoint into a network (and optimiser and schedule, where given), in place; returns its step.

    Raises:
        ValueError: a file that is missing, is no checkpoint, or is one of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint at {path}")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if "training" not in metadata:
        raise ValueError(f"{path} is not a checkpoint written by fganalysis")
    described = json.loads(metadata["training"], object_hook=_with_own_keys)
    own = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
    expected = {name: value.shape for name, value in network.state_dict().items()}
    if {name: value.shape for name, value in own.items()} != expected:
        raise ValueError(f"the checkpoint {path} is of another network: names or shapes of its weights differ")
    network.load_state_dict(own)
    if optimizer is not None:
        state: dict[int, dict[str, Any]] = {}
        for index, entries in described["optimizer_plain"].items():
            state.setdefault(int(index), {}).update(entries)
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, entry = name.split(".", 2)
                state.setdefault(int(index), {})[entry] = value
        optimizer.load_state_dict({"state": state, "param_groups": described["param_groups"]})
    if scheduler is not None and described["schedule"] is not None:
        scheduler.load_state_dict(described["schedule"])
    return int(described["step"])


def _with_text_keys(value: Any) -> Any:
    """For JSON, which makes text of every key: the numbers that a schedule has for keys become pairs."""
    if isinstance(value, dict):
        entries = {key: _with_text_keys(entry) for key, entry in value.items()}
        return entries if all(isinstance(key, str) for key in entries) else {PAIRS: list(entries.items())}
    return [_with_text_keys(entry) for entry in value] if isinstance(value, list | tuple) else value


def _with_own_keys(value: dict[str, Any]) -> dict[Any, Any]:
    return dict(value[PAIRS]) if set(value) == {PAIRS} else value


def load_estimator_state(path: str | Path) -> dict[str, Tensor]:
    """The state of a stateful estimator from a checkpoint; empty where none was saved."""
    return {
        name.removeprefix("estimator."): value
        for name, value in load_file(path).items()
        if name.startswith("estimator.")
    }
