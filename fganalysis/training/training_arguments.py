"""Checks of the arguments of `train` that are not numbers: network, optimiser, schedule and checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fganalysis.arguments import check_kind, check_path, check_whole, described
from fganalysis.capturing.capture import copied

MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
MakeSchedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


def copy_to_train(network: object) -> torch.nn.Module:
    """A copy. Raises ValueError for what is no network, cannot be copied or has nothing to train."""
    check_kind("network", network, torch.nn.Module, "a torch.nn.Module")
    assert isinstance(network, torch.nn.Module)
    for name, parameter in network.named_parameters():
        if torch.nn.parameter.is_lazy(parameter):
            raise ValueError(f"parameter {name!r} has no shape yet: call the network on a batch first")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError("the network has no parameter that requires a gradient, so there is nothing to train")
    return copied(network)


def made_optimizer(optimizer: object, network: torch.nn.Module) -> torch.optim.Optimizer:
    """What ``optimizer`` makes from the parameters of ``network``. Raises ValueError where that cannot train it."""
    words = "a function that makes a torch optimiser from parameters, such as torch.optim.Adam"
    if not callable(optimizer):
        raise ValueError(f"optimizer must be {words}, got {described(optimizer)}")
    try:
        made = optimizer(network.parameters())
    except Exception as error:
        raise ValueError(f"optimizer must be {words}; this one fails: call it to see why") from error
    if isinstance(made, torch.optim.LBFGS):
        raise ValueError("LBFGS wants several gradients of one function a step: use an optimiser that wants one")
    check_kind("what optimizer makes", made, torch.optim.Optimizer, "a torch optimiser")
    parameter_ids = {id(parameter) for parameter in network.parameters()}
    if any(id(parameter) not in parameter_ids for group in made.param_groups for parameter in group["params"]):
        raise ValueError(
            "optimizer makes an optimiser of other parameters than those it is given, which are a copy's: "
            "write lambda parameters: torch.optim.Adam(parameters)"
        )
    return made


def made_schedule(schedule: object, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler | None:
    """What ``schedule`` makes for the optimiser, None for None. Raises ValueError where that is no schedule for it."""
    if schedule is None:
        return None
    words = "a function that makes a torch learning-rate schedule from an optimiser"
    if not callable(schedule):
        raise ValueError(f"schedule must be {words}, got {described(schedule)}")
    try:
        made = schedule(optimizer)
    except Exception as error:
        raise ValueError(f"schedule must be {words}; this one fails: call it to see why") from error
    check_kind("what schedule makes", made, torch.optim.lr_scheduler.LRScheduler, "a torch learning-rate schedule")
    if getattr(made, "optimizer", None) is not optimizer:
        raise ValueError("schedule makes a schedule of another optimiser than the one that it is given")
    return made


def checked_checkpoints(checkpoints: object, out: object, last_step: int) -> frozenset[int]:
    """The steps. Raises ValueError for steps outside the run, or a folder that is needed and cannot be written to."""
    if isinstance(checkpoints, str) or not isinstance(checkpoints, Sequence | set | frozenset | np.ndarray):
        raise ValueError(f"checkpoints must be a list of steps, got {described(checkpoints)}")
    if out is not None:
        check_path("out", out)
    elif len(checkpoints):
        raise ValueError("checkpoints need a folder: give `out`")
    for step in checkpoints:
        check_whole("every one of the checkpoints", step, None)
        if not 0 <= step <= last_step:
            raise ValueError(f"checkpoint at step {step} is outside the run, which ends at step {last_step}")
    if out is not None and len(checkpoints):
        folder = Path(str(out))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"out must be a folder that can be made, got {folder} ({error.strerror})") from error
        if not os.access(folder, os.W_OK):
            raise ValueError(f"out must be a folder that can be written to, got {folder}")
    return frozenset(map(int, checkpoints))


def advance(
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler | None,
    loss: float,
    step: int,
) -> None:
    """Advances optimiser and schedule by a step, ReduceLROnPlateau with the loss. Raises ValueError if either fails."""
    at_work: object = optimizer
    try:
        optimizer.step()
        at_work = schedule
        if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            schedule.step(loss)
        elif schedule is not None:
            schedule.step()
    except Exception as error:
        raise ValueError(
            f"{type(at_work).__name__} fails at step {step}: look at its settings, and whether it takes such a network"
        ) from error
