"""Monitor: measures gradient estimators on a network while anyone's loop trains it, and leaves no trace in it."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.utils.hooks import RemovableHandle

from fganalysis.arguments import (
    check_callable,
    check_flag,
    check_kind,
    check_number,
    check_seed,
    check_whole,
    described,
)
from fganalysis.capturing import refusals
from fganalysis.capturing.batch import first_examples, map_tensors
from fganalysis.capturing.capture import checked_view, freeze, uncompiled
from fganalysis.capturing.planning import Plan
from fganalysis.capturing.precision import plainly
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Loss
from fganalysis.estimators import Estimator, settings
from fganalysis.estimators.noise import is_isotropic
from fganalysis.estimators.tangents_of_weights import tangents_of
from fganalysis.measuring.diagnose import estimators_by_label
from fganalysis.measuring.joining import in_a_sentence
from fganalysis.measuring.sample import sample
from fganalysis.monitoring.budget import Budget, Clock
from fganalysis.monitoring.given_gradient import Comparison, compared
from fganalysis.monitoring.noise_scale import noise_of_parts
from fganalysis.monitoring.rows import (
    KEPT_QUANTITIES,
    NOISE,
    OF_ESTIMATOR,
    Row,
    dataset_of,
    flat,
    plain,
    reasons_of,
    row_of,
)
from fganalysis.monitoring.view import evaluated_view, generators_kept, n_hooks, other_in_training, versions
from fganalysis.predictions import predict
from fganalysis.results import schema
from fganalysis.training.estimated_gradients import EXAMPLES_CHECKED

EVERY = 100
BATCH, GRADIENT = "batch", ".grad"  # Beside the labels of estimators in `not_measured`.
FORMAT = 1  # Of `Monitor.state_dict`.
Schedule = Callable[[int], bool] | Sequence[int]
Batch = tuple[Any, Any] | Callable[[], tuple[Any, Any]]


class Monitor:
    """Measures estimators on a network in training, at some steps, and keeps a row of numbers for each.

    Call ``monitor.step(inputs, targets)`` once a training step, between ``loss.backward()`` and ``optimizer.step()``,
    or `attach` it to an optimiser. It measures in evaluation mode (dropout off, running statistics) in full precision
    on a view of the same weights. The network, its modes, ``.grad``, hooks and buffers and all global random generators
    stay as they are, so that training gives the same bits with and without a monitor.

    A row has, of each estimator, bias, variance, cosine and efficiency with their intervals and predictions; of
    ``.grad`` as it is, cosine and relative error against the exact gradient of this batch; the gradient noise scale;
    and the loss. What cannot be measured is NaN, with the reason in the attribute ``not_measured`` and one warning.
    After construction only wrong arguments raise.

    Args:
        network: the module that is trained; what torch.compile made of one counts as that one.
        loss_fn: ``loss_fn(outputs, targets)`` → one number, the mean over examples, as in `fganalysis.capture`.
        estimators: a key or an instance, or a list of these, which may be empty.
        every: steps from one measurement to the next, from the first step on; 100 by default.
        guesses: of each estimator at a measurement. Fewer than 32 have no interval. Guesses at the weights whose law is
            known are drawn by it (``by_law`` of `fganalysis.sample`), at next to no cost.
        schedule: in the place of ``every``: a function of the step that says whether to measure, or the steps.
        at_most: the time spent on measuring over that of training. Measurements for which there is no time left have
            fewer guesses or are left out. The first, whose time nobody knows, is made with 32 guesses.
        layers: the numbers of each layer too, not of all weights together alone.
        predictions: whether closed forms are evaluated. For guesses at the activations of large networks they take more
            time than the guesses.
        scaler: the GradScaler whose scale ``.grad`` has, until it has unscaled it.
        seed: of the guesses, which also depend on the step and the estimator.
        clock: gives the time in seconds.

    Raises:
        ValueError: for another kind of argument.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        loss_fn: Loss,
        estimators: str | Estimator | Sequence[str | Estimator] = (),
        *,
        every: int | None = None,
        guesses: int = 64,
        schedule: Schedule | None = None,
        at_most: float | None = None,
        layers: bool = False,
        predictions: bool = True,
        scaler: Any = None,
        seed: int = 0,
        clock: Clock = time.perf_counter,
    ):
        check_kind("network", network, torch.nn.Module, "a torch.nn.Module")
        wrapped = torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel
        if isinstance(network, wrapped):
            raise ValueError("the network is wrapped for several devices: give the module inside, network.module")
        check_callable("loss_fn", loss_fn, "a function of (outputs, targets)")
        check_whole("guesses", guesses, 2)
        if at_most is not None:
            check_number("at_most", at_most, above=0)
        check_flag("layers", layers)
        check_flag("predictions", predictions)
        if scaler is not None and not callable(getattr(scaler, "get_scale", None)):
            raise ValueError(f"scaler must be a torch.amp.GradScaler, got {described(scaler)}")
        check_seed("seed", seed)
        check_callable("clock", clock, "a function without arguments that gives seconds", 0)
        none = isinstance(estimators, list | tuple) and not estimators
        self._estimators = {} if none else estimators_by_label(estimators)
        self._due = _schedule(every, schedule)
        self._network, self._loss_fn, self._scaler = uncompiled(network), loss_fn, scaler
        self._guesses, self._by_layer, self._predictions, self._seed = int(guesses), layers, predictions, int(seed)
        self._at_most = at_most
        self._budget = Budget(None if at_most is None else float(at_most), clock)
        self._rows: list[Row] = []
        self._step = self._skipped = 0
        self._facts: dict[str, Any] = {}
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._warned = False

    def step(self, inputs: Any, targets: Any, *, compare: bool = True) -> bool:
        """Counts a training step, and measures where one is due; whether it did.

        Args:
            inputs: what the network is called with: a tensor (example, …), a tuple of arguments or a dict of keyword
                arguments. targets: a tensor or any structure of tensors.
            compare: False where ``.grad`` is not the gradient of this batch, as when several batches accumulate.

        Raises:
            ValueError: inputs or targets of another kind.
        """
        _check_batch(inputs, targets)
        check_flag("compare", compare)
        return self._arrived(lambda: (inputs, targets), "" if compare else "it was not to be compared")

    def attach(self, optimizer: torch.optim.Optimizer, batch: Batch) -> RemovableHandle:
        """Takes a step of the monitor before each step of the optimiser, by `register_step_pre_hook`.

        Args:
            batch: (inputs, targets), the same at all steps, or a function that returns those of the present step, such
                as ``lambda: (inputs, targets)`` over the variables of the training loop. It is called only where a
                measurement is due.

        Returns:
            A handle; its ``remove()`` detaches the monitor.

        Raises:
            ValueError: no optimiser, or a batch of another kind, which a function may give later.
        """
        check_kind("optimizer", optimizer, torch.optim.Optimizer, "a torch.optim.Optimizer")
        if callable(batch):
            given = batch
            check_callable("batch", given, "(inputs, targets), or a function without arguments that returns them", 0)
        else:
            pair = _pair(batch)

            def given() -> tuple[Any, Any]:
                return pair

        def before(*_: Any) -> None:
            self._arrived(given, "")

        handle: RemovableHandle = optimizer.register_step_pre_hook(before)
        return handle

    @property
    def dataset(self) -> xr.Dataset:
        """All rows, over (step, estimator, space, layer), with the variables of `fganalysis.schema`."""
        dataset = dataset_of(self._rows, list(self._estimators))
        reasons = reasons_of(self._rows)
        by_law = [name for name, estimator in self._estimators.items() if has_a_law(estimator)]
        dataset.attrs = {
            "settings": json.dumps({name: settings(estimator) for name, estimator in self._estimators.items()}),
            "guesses": self._guesses,
            "seed": self._seed,
            "mode": "evaluation: dropout off, batch statistics as they ran, without autocast",
            "left_out_skipped": self._skipped,
            "spent_share": self._budget.share,
            schema.BY_LAW: json.dumps(by_law),
            **({} if self._at_most is None else {"at_most": float(self._at_most)}),
            **self._facts,
            **({schema.NOT_MEASURED: reasons} if reasons else {}),
        }
        return dataset

    def latest(self) -> dict[str, float]:
        """The known numbers of the last row by name, such as "activity/weight/cosine", and its "step", for any logger.

        Names end in the layer where a number is of one. Empty before the first measurement.
        """
        return {"step": float(self._rows[-1].step), **flat(self._rows[-1])} if self._rows else {}

    def state_dict(self) -> dict[str, Any]:
        """Rows, step and clock, as JSON holds them. A monitor that loads it goes on with the same rows."""
        return {
            "format": FORMAT,
            "step": self._step,
            "skipped": self._skipped,
            "warned": self._warned,
            "facts": dict(self._facts),
            "budget": self._budget.state(),
            "rows": [plain(row) for row in self._rows],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the monitor was of which this is the state. Its rows take the place of those that are there.

        Raises:
            ValueError: what is no state of a monitor.
        """
        if not isinstance(state, Mapping) or state.get("format") != FORMAT:
            raise ValueError(f"state must be what state_dict of a monitor returned, got {described(state)}")
        try:
            rows = [row_of(row) for row in state["rows"]]
            step, skipped, warned = int(state["step"]), int(state["skipped"]), bool(state["warned"])
            facts = dict(state["facts"])
            self._budget.restore(state["budget"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"the state of the monitor lacks a part or has a wrong one: {in_a_sentence(error)}"
            ) from error
        self._rows, self._step, self._skipped, self._warned, self._facts = rows, step, skipped, warned, facts

    def _arrived(self, batch: Callable[[], tuple[Any, Any]], no_comparison: str) -> bool:
        """A training step: counts, and measures where it is due and there is time for it."""
        self._budget.arrive()
        try:
            step, self._step = self._step, self._step + 1
            if not self._due(step):
                return False
            n_guesses = self._budget.guesses(self._guesses)
            if not n_guesses:
                self._skipped += 1
                return False
            self._measured(step, batch, n_guesses, no_comparison)
            return True
        finally:
            self._budget.leave()

    def _measured(self, step: int, batch: Callable[[], tuple[Any, Any]], n_guesses: int, no_comparison: str) -> None:
        """Adds a row. Whatever fails, and is no wrong argument, becomes its reason."""
        row = Row(step)
        device = refusals.device_of(self._network)
        _wait(device)
        start = self._budget.now()
        times = {"setting up": 0.0, "guesses": 0.0}
        row.of_step = {"training_seconds": self._budget.training, "skipped": float(self._skipped)}
        try:
            inputs, targets = _called(batch)
            _check_batch(inputs, targets)
            before = versions(self._network)
            with generators_kept(device), warnings.catch_warnings(), plainly(device):
                # What is said of a network in evaluation mode is not of the training.
                warnings.simplefilter("ignore")
                self._measure(row, inputs, targets, n_guesses, no_comparison, times)
            if versions(self._network) != before:
                row.reasons[BATCH] = "the forward pass in evaluation mode writes to the weights: measured, it trains"
        except _WrongArgument:
            raise
        except Exception as error:  # Nobody's training may end because it was watched.
            row.reasons.setdefault(BATCH, in_a_sentence(error))
        _wait(device)
        seconds = self._budget.now() - start
        row.of_step["measuring_seconds"] = seconds
        self._budget.paid(seconds, times["setting up"], times["guesses"], n_guesses)
        self._rows.append(row)
        self._skipped = 0
        self._warn(row)

    def _measure(
        self, row: Row, inputs: Any, targets: Any, n_guesses: int, no_comparison: str, times: dict[str, float]
    ) -> None:
        """Fills a row, part by part, as far as it comes."""
        inputs, targets = (map_tensors(part, lambda t: t.detach().clone()) for part in (inputs, targets))
        view = evaluated_view(self._network)
        self._note(other_in_training(self._network), n_hooks(self._network))
        snapshot = self._frozen(view, inputs, targets, row.step, times)
        row.of_step |= {"loss": float(snapshot.loss), "n_examples": float(snapshot.n_examples)}
        exact, layers = _by_parameter(snapshot), [layer.parameter_names for layer in snapshot.weights]
        names = list(snapshot.layers) if self._by_layer else []
        row.layers = [schema.ALL_LAYERS, *names]
        shown = layers if self._by_layer else []
        self._add_comparison(row, exact, shown, no_comparison)
        self._add_noise_scale(row, view, (inputs, targets), snapshot, exact, shown)
        for name, estimator in self._estimators.items():
            self._add_estimator(row, snapshot, name, estimator, n_guesses, times)

    def _frozen(self, view: torch.nn.Module, inputs: Any, targets: Any, step: int, times: dict[str, float]) -> Snapshot:
        """The batch on the view; what it was found to be is checked once, as in training loops."""
        n_examples = refusals.n_examples(inputs, targets)
        trained = tuple(parameter.requires_grad for parameter in view.parameters())
        key = (n_examples == 1, trained)
        if key not in self._plans:
            start = self._budget.now()
            part = first_examples((inputs, targets), n_examples, EXAMPLES_CHECKED) or (inputs, targets)
            self._plans[key] = checked_view(view, self._network, self._loss_fn, *part).plan
            times["setting up"] = self._budget.now() - start
        plan = self._plans[key]
        snapshot = freeze(view, self._loss_fn, inputs, targets, autodiff="reverse", step=step, plan=plan)
        refusals.refuse_infinite_loss(snapshot.loss)
        return snapshot

    def _add_comparison(
        self, row: Row, exact: Mapping[str, torch.Tensor], layers: Sequence[Sequence[str]], no_comparison: str
    ) -> None:
        """Cosine and relative error of ``.grad``."""
        reason = no_comparison or _several_processes()
        try:
            if reason:
                found = Comparison.missing(len(layers) + 1, reason)
            else:
                found = compared(self._network, exact, layers, self._scaler)
        except Exception as error:
            found = Comparison.missing(len(layers) + 1, in_a_sentence(error))
        row.of_layer |= {"grad_cosine": found.cosine.tolist(), "grad_relative_error": found.relative_error.tolist()}
        if found.reason:
            row.reasons[GRADIENT] = found.reason

    def _add_noise_scale(
        self,
        row: Row,
        view: torch.nn.Module,
        batch: tuple[Any, Any],
        snapshot: Snapshot,
        exact: Mapping[str, torch.Tensor],
        layers: Sequence[Sequence[str]],
    ) -> None:
        try:
            noise = noise_of_parts(view, self._loss_fn, batch, snapshot.n_examples, exact, layers)
        except Exception as error:
            row.reasons[NOISE] = in_a_sentence(error)
            return
        row.of_layer |= {
            NOISE: noise.scale.tolist(),
            "example_variance": noise.example_variance.tolist(),
            "squared_mean_gradient": noise.squared_mean.tolist(),
        }
        if math.isnan(noise.scale[0]):
            row.reasons[NOISE] = "the batch is too small to tell the squared gradient from its noise"

    def _add_estimator(
        self, row: Row, snapshot: Snapshot, name: str, estimator: Estimator, n_guesses: int, times: dict[str, float]
    ) -> None:
        """What is measured of an estimator, and predicted."""
        start = self._budget.now()
        found: dict[str, np.ndarray] = {}
        try:
            measured = sample(snapshot, estimator, n_guesses, self._seed, by_law=has_a_law(estimator))
            found |= {name: measured.variables[name].values for name in OF_ESTIMATOR if name in measured.variables}
            row.n_guesses[name] = n_guesses
        except Exception as error:
            row.reasons[name] = in_a_sentence(error)
        _wait(snapshot.device)
        times["guesses"] += self._budget.now() - start
        if self._predictions and found:
            try:
                predicted = predict(snapshot, estimator)
                found |= {q + schema.PREDICTED: predicted.variables[q].values for q in KEPT_QUANTITIES}
            except Exception as error:
                row.reasons[f"{name}, predicted"] = in_a_sentence(error)
        if found:
            # The layers of a sample, all of them last: by arrays, as choosing in xarray takes longer than the guesses.
            order = [-1, *range(len(row.layers) - 1)]
            row.of_estimator[name] = {variable: values[:, order].tolist() for variable, values in found.items()}

    def _note(self, others: list[str], hooks: int) -> None:
        """Keeps what the view is without, as attributes of the result."""
        if others:
            self._facts["other_in_training"] = json.dumps(others)
        if hooks:
            self._facts["hooks_left_out"] = hooks

    def _warn(self, row: Row) -> None:
        """Says once that something cannot be measured."""
        reasons = {name: reason for name, reason in row.reasons.items() if name in (BATCH, *self._estimators)}
        if reasons and not self._warned:
            self._warned = True
            name, reason = next(iter(reasons.items()))
            what = "nothing" if name == BATCH else f"nothing of {name}"
            warnings.warn(
                f"fganalysis.Monitor measured {what} at step {row.step} and goes on: {reason}; further reasons are in "
                "the attribute not_measured of its dataset",
                RuntimeWarning,
                stacklevel=4,
            )


class _WrongArgument(ValueError):
    """What a function for the batch returned is no batch."""


def has_a_law(estimator: Estimator) -> bool:
    """Whether the guesses of an estimator can be drawn by their law exactly."""
    law = tangents_of(estimator)
    return law is not None and is_isotropic(law.noise) and law.slope == "derivative"


def _schedule(every: object, schedule: Any) -> Callable[[int], bool]:
    """Whether a step is due."""
    if schedule is None:
        check_whole("every", EVERY if every is None else every, 1)
        between = EVERY if every is None else int(every)  # type: ignore[call-overload]
        return lambda step: step % between == 0
    if every is not None:
        raise ValueError(f"every and schedule say both when to measure: give one of them, got every={described(every)}")
    if callable(schedule):
        check_callable("schedule", schedule, "a function of the step, or a list of steps", 1)
        return lambda step: bool(schedule(step))
    check_kind("schedule", schedule, (list, tuple, range, set, frozenset), "a function of the step, or a list of steps")
    for step in schedule:
        check_whole("a step of schedule", step, 0)
    steps = frozenset(int(step) for step in schedule)
    return lambda step: step in steps


def _check_batch(inputs: object, targets: object) -> None:
    kinds = (torch.Tensor, tuple, dict)
    check_kind("inputs", inputs, kinds, "a tensor (example, …), a tuple of arguments or a dict of keyword arguments")
    check_kind("targets", targets, (*kinds, list), "a tensor (example, …), or a tuple, list or dict of tensors")


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise _WrongArgument(
            f"batch must be (inputs, targets), or a function that returns them, got {described(batch)}"
        )
    try:
        _check_batch(*batch)
    except ValueError as error:
        raise _WrongArgument(str(error)) from None
    return batch[0], batch[1]


def _called(batch: Callable[[], Any]) -> tuple[Any, Any]:
    return _pair(batch())


def _by_parameter(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    """The exact gradient by the names of the network's parameters."""
    exact: dict[str, torch.Tensor] = {}
    for layer, gradient in zip(snapshot.weights, snapshot.weight_gradients, strict=True):
        exact |= layer.by_parameter(gradient)
    return exact


def _several_processes() -> str:
    """Why ``.grad`` is not the gradient of this batch where several processes train; empty where one does."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        return f".grad is the mean over {distributed.get_world_size()} processes, each with a batch of its own"
    return ""


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
