"""Monitor: measures gradient estimators on a network while anyone's loop trains it, and leaves no trace in it."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
from fganalysis.capturing.capture import uncompiled
from fganalysis.capturing.precision import plainly
from fganalysis.capturing.tap import Loss
from fganalysis.estimators import Estimator, settings
from fganalysis.measuring.diagnose import estimators_by_label
from fganalysis.measuring.joining import in_a_sentence
from fganalysis.monitoring.budget import Budget, Clock
from fganalysis.monitoring.given_batch import Batch, WrongBatch, check_batch, pair_of
from fganalysis.monitoring.given_gradient import GivenGradient
from fganalysis.monitoring.measurement import Measurement, Times, has_a_law, wait_for
from fganalysis.monitoring.rows import Row, dataset_of, flat, plain, reasons_of, row_of
from fganalysis.monitoring.schedule import Schedule, is_due
from fganalysis.monitoring.view import generators_kept, left_out_of, versions
from fganalysis.results import schema

BATCH = "batch"  # Beside the labels of estimators in `not_measured`.
FORMAT = 1  # Of `Monitor.state_dict`.


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
        guesses: of each estimator at a measurement. Fewer than 32 have no interval. Bias and variance take four groups
            of up to 16 guesses, so that with fewer than 49 they may be NaN. Guesses at the weights whose law is known
            are drawn by it (``by_law`` of `fganalysis.sample`), at next to no cost.
        schedule: in the place of ``every``: a function of the step that says whether to measure, or the steps.
        at_most: the time spent on measuring over that of training. Measurements for which there is no time left have
            fewer guesses or are left out. The first, whose time nobody knows, is made with 32 guesses.
        layers: the numbers of each layer too, not of all weights together alone.
        predictions: whether closed forms are evaluated. For guesses at the activations of large networks they take more
            time than the guesses.
        examples: the guesses are made on the first so many examples of the batch, and compared with the gradient of
            these, which has another variance; the whole batch by default. The time of guesses at the activations is
            proportional to it. The noise scale and ``.grad`` stay those of the whole batch.
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
        examples: int | None = None,
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
        if examples is not None:
            check_whole("examples", examples)
        _check_scaler(scaler)
        check_seed("seed", seed)
        check_callable("clock", clock, "a function without arguments that gives seconds", 0)
        none = isinstance(estimators, list | tuple) and not estimators
        by_label = {} if none else estimators_by_label(estimators)
        self._measurement = Measurement(
            uncompiled(network),
            loss_fn,
            by_label,
            layers=layers,
            predictions=predictions,
            examples=None if examples is None else int(examples),
            seed=int(seed),
            clock=clock,
        )
        self._due, self._guesses, self._at_most = is_due(every, schedule), int(guesses), at_most
        self._scaler = scaler
        self._budget = Budget(None if at_most is None else float(at_most), clock)
        self._rows: list[Row] = []
        self._step = self._skipped = 0
        self._facts: dict[str, Any] = {}
        self._warned = False

    def step(self, inputs: Any, targets: Any, *, compare: bool = True, scaler: Any = None) -> bool:
        """Counts a training step, and measures where one is due; whether it did.

        Args:
            inputs: what the network is called with: a tensor (example, …), a tuple of arguments or a dict of keyword
                arguments. targets: a tensor or any structure of tensors.
            compare: False where ``.grad`` is not the gradient of this batch, as when several batches accumulate.
            scaler: in the place of that of the constructor, for trainers that make theirs later.

        Raises:
            ValueError: inputs, targets or a scaler of another kind.
        """
        check_batch(inputs, targets)
        check_flag("compare", compare)
        _check_scaler(scaler)
        return self._arrived(lambda: (inputs, targets), "" if compare else "it was not to be compared", scaler)

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
            pair = pair_of(batch)

            def given() -> tuple[Any, Any]:
                return pair

        def before(*_: Any) -> None:
            self._arrived(given, "")

        handle: RemovableHandle = optimizer.register_step_pre_hook(before)
        return handle

    @property
    def dataset(self) -> xr.Dataset:
        """All rows, over (step, estimator, space, layer), with the variables of `fganalysis.schema`."""
        estimators = self._measurement.estimators
        dataset = dataset_of(self._rows, list(estimators))
        reasons = reasons_of(self._rows)
        by_law = [name for name, estimator in estimators.items() if has_a_law(estimator)]
        dataset.attrs = {
            "settings": json.dumps({name: settings(estimator) for name, estimator in estimators.items()}),
            "guesses": self._guesses,
            "seed": self._measurement.seed,
            "mode": "evaluation: dropout off, batch statistics as they ran, without autocast",
            "left_out_skipped": self._skipped,
            "spent_share": self._budget.share,
            schema.BY_LAW: json.dumps(by_law),
            **({} if self._measurement.examples is None else {"examples": self._measurement.examples}),
            **({} if self._at_most is None else {"at_most": float(self._at_most)}),
            **self._facts,
            **({schema.NOT_MEASURED: reasons} if reasons else {}),
        }
        return dataset

    @property
    def labels(self) -> list[str]:
        """Of the estimators, as in the dataset."""
        return list(self._measurement.estimators)

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
            dataset_of(rows, self.labels)  # Fails on numbers of other names or shapes.
            self._budget.restore(state["budget"])
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise ValueError(
                f"the state of the monitor lacks a part or has a wrong one: {in_a_sentence(error)}"
            ) from error
        self._rows, self._step, self._skipped, self._warned, self._facts = rows, step, skipped, warned, facts

    def _arrived(self, batch: Callable[[], tuple[Any, Any]], no_comparison: str, scaler: Any = None) -> bool:
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
            given = GivenGradient(no_comparison, self._scaler if scaler is None else scaler)
            self._measured(step, batch, n_guesses, given)
            return True
        finally:
            self._budget.leave()

    def _measured(self, step: int, batch: Callable[[], tuple[Any, Any]], n_guesses: int, given: GivenGradient) -> None:
        """Adds a row. Whatever fails, and is no wrong argument, becomes its reason."""
        row, network = Row(step), self._measurement.network
        device = refusals.device_of(network)
        wait_for(device)
        start = self._budget.now()
        times = Times()
        row.of_step = {"training_seconds": self._budget.training, "skipped": float(self._skipped)}
        try:
            inputs, targets = pair_of(batch())
            before = versions(network)
            with generators_kept(device), warnings.catch_warnings(), plainly(device):
                # What is said of a network in evaluation mode is not of the training.
                warnings.simplefilter("ignore")
                self._facts |= left_out_of(network)
                self._measurement.fill(row, inputs, targets, n_guesses, given, times)
            if versions(network) != before:
                row.reasons[BATCH] = "the forward pass in evaluation mode writes to the weights: measured, it trains"
        except WrongBatch:
            raise
        except Exception as error:  # Nobody's training may end because it was watched.
            row.reasons.setdefault(BATCH, in_a_sentence(error))
        wait_for(device)
        seconds = self._budget.now() - start
        row.of_step["measuring_seconds"] = seconds
        self._budget.paid(seconds, times.setting_up, times.guesses, n_guesses)
        self._rows.append(row)
        self._skipped = 0
        self._warn(row)

    def _warn(self, row: Row) -> None:
        """Says once that something cannot be measured."""
        reasons = {
            name: reason for name, reason in row.reasons.items() if name in (BATCH, *self._measurement.estimators)
        }
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


def _check_scaler(scaler: object) -> None:
    if scaler is not None and not callable(getattr(scaler, "get_scale", None)):
        raise ValueError(f"scaler must be a torch.amp.GradScaler, got {described(scaler)}")
