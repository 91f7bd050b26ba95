"""train(): a network trained by backpropagation or by any gradient estimator, with checkpoints and a log.

The order of the examples depends only on (seed, epoch), and the noise only on (seed, step). So a run that is continued
from a checkpoint gives the same numbers as an uninterrupted run, bit for bit on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from fganalysis.arguments import (
    check_choice,
    check_flag,
    check_seed,
    check_whole,
)
from fganalysis.capturing.capture import checked_for_training, freeze
from fganalysis.capturing.errors import NonFiniteActivations
from fganalysis.capturing.tap import Autodiff, Loss
from fganalysis.estimators import Backpropagation, Estimator, Stateful, label, resolve
from fganalysis.training.checkpoints import read_checkpoint, save_checkpoint, states_of
from fganalysis.training.datasets import Dataset, checked_data
from fganalysis.training.estimated_gradients import (
    EXAMPLES_CHECKED,
    Untapped,
    check_loss,
    check_untapped,
    fill_gradients,
)
from fganalysis.training.evaluation import evaluate
from fganalysis.training.run_settings import (
    probed_loss,
    refuse_another_loss,
    refuse_another_run,
    run_settings,
    schedule_settings,
)
from fganalysis.training.training_arguments import (
    MakeOptimizer,
    MakeSchedule,
    advance,
    checked_checkpoints,
    copy_to_train,
    made_optimizer,
    made_schedule,
)
from fganalysis.training.training_log import training_log

ADAMW: MakeOptimizer = partial(torch.optim.AdamW, lr=1e-4)
DEFAULT_BATCH = 512


@dataclass(frozen=True)
class Run:
    """The result of training: the trained network, the log over ``step``, and the checkpoint file of each step.

    If the run diverged, ``log.attrs["diverged_at_step"]`` is the step, and the network is that of this step.
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
    batch_size: int | None = None,
    optimizer: MakeOptimizer = ADAMW,
    schedule: MakeSchedule | None = None,
    loss_fn: Loss = torch.nn.functional.cross_entropy,
    n_guesses: int = 1,
    autodiff: Autodiff = "reverse",
    untapped: Untapped = "refuse",
    seed: int = 0,
    log_every: int = 100,
    continue_from: str | Path | None = None,
    progress: bool = False,
) -> Run:
    """Trains a copy of ``network`` on ``data``.

    The given network does not change, and neither do parameters that require no gradient.

    Args:
        network: any module. For guesses at the activations every trained parameter must be in a tap, or ``untapped``.
        data: from `fganalysis.datasets.load`, or anything with the same four arrays.
        gradient: a key or an instance of an estimator. Several guesses per step (``n_guesses``) are averaged.
        epochs: passes over the training set; the last batch of a pass may be smaller.
        checkpoints: steps (0 is before the first update) at which network and optimiser are saved under ``out``.
        batch_size: by default 512, or the whole training set if it is smaller.
        optimizer: makes the optimiser from the parameters. LBFGS is refused, because it needs several gradients a step.
        schedule: makes the learning-rate schedule of the optimiser. It advances after every step (ReduceLROnPlateau by
            the loss of the batch).
        autodiff: "forward" takes slopes by forward mode, without a backward pass through the network. The log then has
            no cosine. The gradient of a head of `LocalLoss` comes from a backward pass through the head.
        untapped: "perturb" trains parameters of no tap by weight perturbation, see `estimate_gradient`.
        seed: of the order of examples and of the noise. For several seeds see `train_seeds`.
        log_every: steps between two rows of the log, which also has the first and the last step.
        continue_from: a checkpoint from which the same run continues. All settings must be those of the run, except
            ``epochs``, ``log_every`` and where results go; a difference is refused by name. To start a run with other
            settings from a checkpoint's network, use `fganalysis.training.checkpoints.load_checkpoint`.

    Raises:
        ValueError: arguments of another kind; checkpoints without ``out`` or beyond the last step; sizes below 1; a
            batch larger than the training set; data that the network or the loss does not take, such as a class index
            beyond the outputs; an optimiser of other parameters, or LBFGS; a network without parameters to train; a
            parameter of no tap, unless it is perturbed; a checkpoint that is damaged, of another run, or of a step
            after the last; in forward mode a gradient that takes a backward pass.
    """
    estimator = resolve(gradient)
    data = checked_data(data)
    n_examples = len(data.train_inputs)
    if batch_size is None:
        batch_size = min(DEFAULT_BATCH, n_examples)
    sizes = {"epochs": epochs, "batch_size": batch_size, "n_guesses": n_guesses, "log_every": log_every}
    for name, size in sizes.items():
        check_whole(name, size, 1)
    if batch_size > n_examples:
        raise ValueError(f"batch_size must be at most the {n_examples} training examples, got {batch_size}")
    check_seed("seed", seed)
    check_flag("progress", progress)
    check_choice("autodiff", autodiff, ("reverse", "forward"))
    check_untapped(untapped)
    if isinstance(estimator, Backpropagation) and autodiff == "forward":
        raise ValueError("backpropagation takes a backward pass: autodiff='forward' is for estimators")
    check_loss(loss_fn)
    steps_per_epoch = -(-n_examples // batch_size)
    last_step = epochs * steps_per_epoch
    to_save = checked_checkpoints(checkpoints, out, last_step)
    network = copy_to_train(network)
    chosen_optimizer = made_optimizer(optimizer, network)
    evaluate(network, data, loss_fn)
    settings: dict[str, str] = {}
    on_disk = bool(to_save) or continue_from is not None
    if on_disk:
        plain: dict[str, int | str] = {"seed": seed, "batch_size": batch_size}
        plain |= {"n_guesses": n_guesses, "autodiff": autodiff}
        if untapped != "refuse":  # Nothing is kept of the default: runs are older than this setting.
            plain["untapped"] = untapped
        settings = run_settings(network, estimator, chosen_optimizer, loss_fn, data, **plain)
    scheduler = made_schedule(schedule, chosen_optimizer)
    if on_disk:
        settings |= schedule_settings(scheduler)
        states_of(network, chosen_optimizer, scheduler, {})  # Raises now for settings that could not be saved later.
    step = 0
    if continue_from is not None:
        checkpoint = read_checkpoint(continue_from)
        refuse_another_run(checkpoint, settings)
        step = checkpoint.restore(network, chosen_optimizer, scheduler)
        refuse_another_loss(checkpoint, probed_loss(network, loss_fn, data))
        if step > last_step:
            raise ValueError(f"the checkpoint {continue_from} is of step {step}, but the run ends at step {last_step}")
    if not isinstance(estimator, Backpropagation):
        inputs, targets = data.batch(min(batch_size, EXAMPLES_CHECKED))
        checked = checked_for_training(network, loss_fn, inputs, targets, autodiff=autodiff)
        if isinstance(estimator, Stateful):
            estimator = estimator.initialised(checked)
            if continue_from is not None:
                state = checkpoint.part("estimator")
                estimator = estimator.with_state({name: part.to(checked.device) for name, part in state.items()})
    rows: list[dict[str, float]] = []
    saved: dict[int, Path] = {}
    diverged = False
    bar = tqdm(total=last_step, initial=step, desc=f"train {label(estimator)}", disable=not progress, unit="step")
    while True:
        if step in to_save and out is not None:
            state = estimator.state() if isinstance(estimator, Stateful) else {}
            states = (network, chosen_optimizer, scheduler, state)
            saved[step] = save_checkpoint(Path(out), step, *states, settings, probed_loss(network, loss_fn, data))
        logged = step % log_every == 0 or step == last_step
        if logged:
            rows.append({"step": step} | evaluate(network, data, loss_fn))
        try:
            if logged:
                _refuse_infinite(rows[-1]["loss"])
            if step == last_step:
                break
            inputs, targets = _batch(data, seed, step, steps_per_epoch, batch_size)
            network.zero_grad()
            if isinstance(estimator, Backpropagation):
                loss = loss_fn(network(inputs), targets)
                if not loss.requires_grad:
                    raise ValueError("the loss does not depend on any parameter that requires a gradient")
                loss.backward()
                quality = {"cosine": 1.0, "relative_error": 0.0}
            else:
                snapshot = freeze(network, loss_fn, inputs, targets, autodiff=autodiff, step=step, plan=checked.plan)
                loss = snapshot.loss
                noise = _generator(seed, step, inputs.device)
                quality = fill_gradients(snapshot, estimator, n_guesses, noise, logged, untapped)
                if isinstance(estimator, Stateful):
                    estimator = estimator.advanced(snapshot, _generator(seed, step, inputs.device, stream=2))
            if logged:
                rows[-1] |= quality
            _refuse_infinite(float(loss.detach()))
        except NonFiniteActivations as error:
            tqdm.write(f"training by {label(estimator)} diverged by step {step}: {error}")
            diverged = True
            break
        advance(chosen_optimizer, scheduler, float(loss.detach()), step)
        step += 1
        bar.update()
    bar.close()
    log = training_log(rows, label(estimator), seed)
    if diverged:
        log.attrs["diverged_at_step"] = step
    return Run(network, log, saved)


def _refuse_infinite(loss: float) -> None:
    if not np.isfinite(loss):
        raise NonFiniteActivations(f"the loss is {loss}")


def _batch(data: Dataset, seed: int, step: int, steps_per_epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
    epoch, position = divmod(step, steps_per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(len(data.train_inputs))
    rows = torch.from_numpy(order[position * batch_size : (position + 1) * batch_size])
    rows = rows.to(data.train_inputs.device)
    return data.train_inputs[rows], data.train_targets[rows]


def _generator(seed: int, step: int, device: torch.device, stream: int = 1) -> torch.Generator:
    state = np.random.SeedSequence((seed, step, stream)).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) >> 1)
