"""A user's Python file that names a network, a loss and a batch; and weights for the network from a checkpoint."""

from __future__ import annotations

import inspect
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fganalysis.arguments import described
from fganalysis.capturing.capture import capture
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.around.from_function import from_function
from fganalysis.training.checkpoints import load_checkpoint

NEEDED = ("network", "loss_fn", "batch")
ARGUMENTS = 5  # Of a function that makes a guess from a network: an estimator has three.


def read(path: Path) -> dict[str, Any]:
    """The names that the file defines; it is run with its folder on the path, as Python runs a program.

    Raises:
        ValueError: no such file, or one without a name that is needed.
    """
    if not path.is_file():
        raise ValueError(f"there is no Python file at {path}")
    sys.path.insert(0, str(path.resolve().parent))
    names = runpy.run_path(str(path))
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise ValueError(f"{path} must define {', '.join(NEEDED)}: it has no {' and no '.join(missing)}")
    if not isinstance(names["batch"], tuple | list) or len(names["batch"]) != 2:
        raise ValueError(f"batch in {path} must be a pair of inputs and targets, got {described(names['batch'])}")
    return names


def snapshot_of(names: Mapping[str, Any], checkpoint: Path | None) -> Snapshot:
    """The network on its batch, with the weights of the checkpoint. Raises ValueError as `fganalysis.capture` does."""
    step = 0 if checkpoint is None else load(checkpoint, names["network"])
    return capture(names["network"], names["loss_fn"], *names["batch"], step=step)


def load(path: Path, network: torch.nn.Module) -> int:
    """Puts weights into the network, in place, and gives their training step; 0 where the file does not say it.

    Raises:
        ValueError: no file, one that is neither a checkpoint nor a state dict, or weights of another network.
    """
    if not path.is_file():
        raise ValueError(f"there is no checkpoint at {path}")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                ours = "training" in (file.metadata() or {})
                state = {} if ours else {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file, or damaged") from error
        if ours:
            return load_checkpoint(path, network)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # Libraries raise many kinds of errors for damaged files.
            raise ValueError(
                f"{path} cannot be read as a state dict: save network.state_dict() by torch.save"
            ) from error
    try:
        network.load_state_dict(state)
    except Exception as error:
        raise ValueError(f"{path} holds the weights of another network than the one that the file defines") from error
    return 0


def named(name: str, names: Mapping[str, Any]) -> Any:
    """The estimator that the user's file calls by this name, or else the name, which is a key of the registry.

    A function of the five arguments of `fganalysis.estimators.from_function` is made an estimator.
    """
    found = names.get(name, name)
    if inspect.isfunction(found) and len(inspect.signature(found).parameters) == ARGUMENTS:
        return from_function(found)
    return found
