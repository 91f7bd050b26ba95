"""train(): a network trained by backpropagation or by any gradient estimator, with checkpoints and a log.

The order of the examples depends on (seed, epoch) and the noise on (seed, step), never on what ran before: a run
continued from any checkpoint is the uninterrupted run, bit for bit on the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from fganalysis.arguments import check_whole
from fganalysis.capturing import checked_for_training, freeze
from fganalysis.checkpoints import load_checkpoint, load_estimator_state, save_checkpoint
from fganalysis.datasets import Dataset
from fganalysis.estimators import Backpropagation, Estimator, Stateful, label, resolve
from fganalysis.refusals import mean_loss
from fganalysis.snapshot import Autodiff, Loss, NonFiniteActivations, Snapshot

MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
MakeSchedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
ADAMW: MakeOptimizer = partial(torch.optim.AdamW, lr=1e-4)
LOGGED = {
    "loss": ("loss on the training set", "loss"),
    "train_accuracy": ("accuracy on the training set", "1"),
    "test_accuracy": ("accuracy on the test set", "1"),
    "cosine": ("cosine of the step's gradient estimate with the exact gradient", "1"),
    "relative_error": ("norm of the estimate's error over the norm of the exact gradient", "1"),
}


@dataclass(frozen=True)
class Run:
    """What training leaves: the trained network, the log over ``step``, and the checkpoints, step → file.

    Where the run diverged, ``log.attrs["diverged_at_step"]`` says at which step; the network is the one that it was.
    """

    network: torch.nn.Module
    log: xr.Dataset
    checkpoints: dict[int, Path]


def train(
    network: torch.nn.Module,
    data: Dataset,
    gradient: str | Estimator = "backpropagation",
    *,
    epochs: int = 10,
    checkpoints: Sequence[int] = (),
    out: str | Path | None = None,
    batch_size: int = 512,
    optimizer: MakeOptimizer = ADAMW,
    schedule: MakeSchedule | None = None,
    loss_fn: Loss = torch.nn.functional.cross_entropy,
    n_guesses: int = 1,
    autodiff: Autodiff = "reverse",
    seed: int = 0,
    log_every: int = 100,
    continue_from: str | Path | None = None,
    progress: bool = False,
) -> Run:
    """Trains a copy of ``network`` on ``data``; the network given is not changed.

    Args:
        network: any module for backpropagation; for an estimator, every trained weight must sit in a tap.
        data: from `fganalysis.datasets.load`, or anything with the same four arrays.
        gradient: a key or an instance of an estimator. Several guesses per step (``n_guesses``) are averaged.
        epochs: passes over the training set; the last batch of a pass may be smaller.
        checkpoints: steps (0 is before the first update) at which network and optimiser are saved under ``out``.
        optimizer: makes the optimiser from the parameters, any but LBFGS, which wants several gradients a step.
            schedule: makes its learning-rate schedule, advanced a step at a time (ReduceLROnPlateau by the loss of the
            batch).
        autodiff: "forward" takes slopes by forward mode, so that no backward pass runs through the network; the log
            then has no cosine. The gradient of a head of `LocalLoss` is its own.
        seed: of the order of examples and of the noise; several: `train_seeds`.
        log_every: steps between two rows of the log, which also has the first and the last step.
        continue_from: a checkpoint of the same run to go on from.

    Raises:
        ValueError: checkpoints without ``out`` or beyond the last step, sizes below 1, a parameter outside every tap,
            a class index that no output has, a checkpoint that does not fit or is of a later step than the last, LBFGS,
            or in forward mode a gradient that takes a backward pass.
    """
    sizes = {"epochs": epochs, "batch_size": batch_size, "n_guesses": n_guesses, "log_every": log_every}
    for name, value, least in [*((name, size, 1) for name, size in sizes.items()), ("seed", seed, 0)]:
        check_whole(name, value, least)
    steps_per_epoch = -(-len(data.train_inputs) // batch_size)
    last_step = epochs * steps_per_epoch
    _refuse_bad_checkpoints(checkpoints, out, last_step)
    estimator = resolve(gradient)
    if isinstance(estimator, Backpropagation) and autodiff == "forward":
        raise ValueError("backpropagation takes a backward pass: autodiff='forward' is for estimators")
    network = copy.deepcopy(network)
    chosen_optimizer = optimizer(network.parameters())
    if isinstance(chosen_optimizer, torch.optim.LBFGS):
        raise ValueError("LBFGS wants several gradients of one function a step: use an optimiser that wants one")
    scheduler = schedule(chosen_optimizer) if schedule else None
    step = 0
    if continue_from is not None:
        step = load_checkpoint(continue_from, network, chosen_optimizer, scheduler)
    if step > last_step:
        raise ValueError(f"the checkpoint {continue_from} is of step {step}, but the run ends at step {last_step}")
    if not isinstance(estimator, Backpropagation):
        inputs, targets = (part[: min(batch_size, 64)] for part in (data.train_inputs, data.train_targets))
        checked = checked_for_training(network, loss_fn, inputs, targets, autodiff=autodiff)
        _refuse_untapped_parameters(checked)
        if isinstance(estimator, Stateful):
            estimator = estimator.initialised(checked)
            if continue_from is not None:
                estimator = estimator.with_state(load_estimator_state(continue_from))
    rows: list[dict[str, float]] = []
    saved: dict[int, Path] = {}
    diverged = False
    bar = tqdm(total=last_step, initial=step, desc=f"train {label(estimator)}", disable=not progress, unit="step")
    while True:
        if step in checkpoints and out is not None:
            state = estimator.state() if isinstance(estimator, Stateful) else {}
            saved[step] = save_checkpoint(Path(out), step, network, chosen_optimizer, scheduler, state)
        logged = step % log_every == 0 or step == last_step
        if logged:
            rows.append({"step": step} | evaluate(network, data, loss_fn))
        try:
            if logged:
                _refuse_infinite(rows[-1]["loss"])
            if step == last_step:
                break
            inputs, targets = _batch(data, seed, step, steps_per_epoch, batch_size)
            if isinstance(estimator, Backpropagation):
                chosen_optimizer.zero_grad()
                loss = loss_fn(network(inputs), targets)
                loss.backward()
                quality = {"cosine": 1.0, "relative_error": 0.0}
            else:
                snapshot = freeze(network, loss_fn, inputs, targets, autodiff=autodiff, step=step)
                loss = snapshot.loss
                quality = fill_gradients(snapshot, estimator, n_guesses, _generator(seed, step, inputs.device), logged)
                if isinstance(estimator, Stateful):
                    estimator = estimator.advanced(snapshot, _generator(seed, step, inputs.device, stream=2))
            if logged:
                rows[-1] |= quality
            _refuse_infinite(float(loss.detach()))
        except NonFiniteActivations as error:
            tqdm.write(f"training by {label(estimator)} diverged by step {step}: {error}")
            diverged = True
            break
        chosen_optimizer.step()
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(float(loss.detach()))
        elif scheduler is not None:
            scheduler.step()
        step += 1
        bar.update()
    bar.close()
    log = _log(rows, label(estimator), seed)
    if diverged:
        log.attrs["diverged_at_step"] = step
    return Run(network, log, saved)


def train_seeds(
    make_network: Callable[[int], torch.nn.Module],
    data: Dataset,
    gradient: str | Estimator = "backpropagation",
    *,
    seeds: Sequence[int],
    out: str | Path | None = None,
    **settings: Any,
) -> tuple[xr.Dataset, dict[int, Run]]:
    """`train` once for each of several seeds, from ``make_network(seed)``.

    Args:
        out: checkpoints of a seed go to its folder ``seed_N``. settings: of `train`, the same for all.

    Returns:
        The logs over (seed, step), NaN where a run has no row, and the runs by seed.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different from each other and at least one, got {list(seeds)}")
    runs = {}
    for seed in seeds:
        folder = Path(out) / f"seed_{seed}" if out is not None else None
        runs[seed] = train(make_network(seed), data, gradient, out=folder, seed=seed, **settings)
    logs = xr.concat([run.log for run in runs.values()], dim="seed", join="outer", combine_attrs="drop_conflicts")
    return logs.assign_coords(seed=list(seeds)), runs


def _refuse_infinite(loss: float) -> None:
    if not np.isfinite(loss):
        raise NonFiniteActivations(f"the loss is {loss}")


def estimate_gradient(
    network: torch.nn.Module,
    loss_fn: Loss,
    inputs: Tensor,
    targets: Tensor,
    estimator: str | Estimator,
    generator: torch.Generator,
    *,
    n_guesses: int = 1,
    autodiff: Autodiff = "reverse",
) -> Tensor:
    """Fills ``.grad`` of every parameter with the mean of ``n_guesses`` guesses, for a training loop of one's own.

    Returns:
        The mean loss on the batch, detached. ``optimizer.step()`` may follow as usual.

    What `capture` checks of the loss once is not checked here: it must be a mean over examples. A stateful estimator
    guesses with the state that it has; how it learns from step to step, see `fill_gradients`.

    Raises:
        ValueError: an empty batch, a parameter outside every tap, a module that lets examples interact or draws noise
            of its own, NaN activations, no guess, in forward mode a gradient that takes a backward pass.
    """
    check_whole("n_guesses", n_guesses, 1)
    snapshot = freeze(network, loss_fn, inputs, targets, autodiff=autodiff, step=0)
    _refuse_untapped_parameters(snapshot)
    fill_gradients(snapshot, resolve(estimator), n_guesses, generator, False)
    return snapshot.loss


def fill_gradients(
    snapshot: Snapshot, estimator: Estimator, n_guesses: int, generator: torch.Generator, compare: bool = False
) -> dict[str, float]:
    """Fills ``.grad`` of the snapshot's network with a mean of guesses, for a loop that keeps the snapshot.

    Parameters that require no gradient get none; one that several taps share gets the sum of theirs.
    A stateful estimator wants it for ``estimator.advanced(snapshot, generator)`` after the step. With ``compare``,
    returns the mean's cosine with the exact gradient and its relative error; otherwise NaN for both.
    """
    modules = dict(snapshot.network.named_modules())
    with torch.no_grad():
        gradients = estimator(snapshot, n_guesses, generator).weight_gradients(snapshot)
    filled: set[int] = set()
    for tap, gradient in zip(snapshot.taps, gradients, strict=True):
        module = modules[tap.name]
        columns = gradient.shape[1] - tap.has_bias
        parts = [(module.weight, gradient[:, :columns])]
        if tap.has_bias:
            parts.append((module.bias, gradient[:, columns]))
        for parameter, part in parts:
            if parameter.requires_grad:
                parameter.grad = parameter.grad + part if id(parameter) in filled else part.contiguous()
                filled.add(id(parameter))
    if not compare or snapshot.autodiff == "forward":
        return {"cosine": np.nan, "relative_error": np.nan}
    guess = torch.cat([g.flatten() for g in gradients]).double()
    exact = torch.cat([g.flatten() for g in snapshot.weight_gradients]).double()
    return {
        "cosine": float(torch.nn.functional.cosine_similarity(guess, exact, dim=0)),
        "relative_error": float((guess - exact).norm() / exact.norm()),
    }


def evaluate(network: torch.nn.Module, data: Dataset, loss_fn: Loss) -> dict[str, float]:
    """Loss and accuracy on the training set and accuracy on the test set."""
    with torch.no_grad():
        train_outputs, test_outputs = network(data.train_inputs), network(data.test_inputs)
        return {
            "loss": float(mean_loss(loss_fn, train_outputs, data.train_targets)),
            "train_accuracy": _accuracy(train_outputs, data.train_targets),
            "test_accuracy": _accuracy(test_outputs, data.test_targets),
        }


def _accuracy(outputs: Tensor, targets: Tensor) -> float:
    if targets.is_floating_point():
        return float("nan")
    return float((outputs.argmax(1) == targets).double().mean())


def _batch(data: Dataset, seed: int, step: int, steps_per_epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
    epoch, position = divmod(step, steps_per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(len(data.train_inputs))
    rows = torch.from_numpy(order[position * batch_size : (position + 1) * batch_size])
    rows = rows.to(data.train_inputs.device)
    return data.train_inputs[rows], data.train_targets[rows]


def _generator(seed: int, step: int, device: torch.device, stream: int = 1) -> torch.Generator:
    state = np.random.SeedSequence((seed, step, stream)).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) >> 1)


def _log(rows: list[dict[str, float]], estimator: str, seed: int) -> xr.Dataset:
    steps = [int(row["step"]) for row in rows]
    variables = {
        name: xr.Variable("step", [row.get(name, np.nan) for row in rows], {"long_name": long_name, "units": units})
        for name, (long_name, units) in LOGGED.items()
    }
    return xr.Dataset(variables, coords={"step": steps}, attrs={"estimator": estimator, "seed": seed})


def _refuse_bad_checkpoints(checkpoints: Sequence[int], out: str | Path | None, last_step: int) -> None:
    if len(checkpoints) and out is None:
        raise ValueError("checkpoints need a folder: give `out`")
    outside = [step for step in checkpoints if not 0 <= step <= last_step]
    if outside:
        raise ValueError(f"checkpoint at step {outside[0]} is outside the run, which ends at step {last_step}")


def _refuse_untapped_parameters(snapshot: Snapshot) -> None:
    for name in snapshot.untapped_parameters:
        raise ValueError(f"parameter {name!r} is in no Linear module, so an estimator has no gradient for it")
