"""A monitor in other people's trainers and loggers; each package is imported where it is asked for.

    fga.monitoring.transformers_callback(monitor)     a TrainerCallback for transformers.Trainer(callbacks=[…])
    fga.monitoring.lightning_callback(monitor)        a Callback for lightning.Trainer(callbacks=[…])
    fga.monitoring.write_scalars(monitor, writer)     to TensorBoard's SummaryWriter, or anything with add_scalar
    monitor.latest()                                  a dict of floats, for any other logger

``log`` of a callback is a function that gets that dict after every measurement.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fganalysis.arguments import check_callable, check_kind, described
from fganalysis.monitoring.monitor import Monitor

STATE = "monitor"  # In the states that transformers keeps of callbacks.
Log = Callable[[dict[str, float]], object]
LABELS, TOKENS = "labels", "num_items_in_batch"  # What transformers.Trainer calls a model with, beside its inputs.


def write_scalars(monitor: Monitor, writer: Any, prefix: str = "fganalysis/") -> None:
    """Writes the last row by ``writer.add_scalar(name, value, step)``; call it where ``monitor.step`` returned True.

    Raises:
        ValueError: no monitor, or a writer without ``add_scalar``.
    """
    check_kind("monitor", monitor, Monitor, "a fganalysis.Monitor")
    if not callable(getattr(writer, "add_scalar", None)):
        raise ValueError(f"writer must have add_scalar, as TensorBoard's SummaryWriter, got {described(writer)}")
    numbers = monitor.latest()
    step = int(numbers.pop("step", 0))
    for name, value in numbers.items():
        writer.add_scalar(prefix + name, value, step)


def transformers_callback(monitor: Monitor, log: Log | None = None) -> Any:
    """A TrainerCallback that measures before each step of the optimiser, on the batch that the model was called with.

    A forward pre-hook on the model keeps the last batch of the training. The network gets it without its labels, as
    keyword arguments, and ``loss_fn`` of the monitor gets (outputs, labels). The monitor's state is saved in the
    checkpoints and read from them. Where several batches accumulate, ``.grad`` is not compared. The trainer's own
    scaler of mixed precision is taken into account.

    Raises:
        ValueError: no monitor; transformers is not installed.
    """
    _check(monitor, log)
    trainer_callback = _imported(["transformers"], "TrainerCallback", "transformers")
    exportable = _imported(["transformers.trainer_callback"], "ExportableState", "transformers")

    class MonitorCallback(trainer_callback, exportable):  # type: ignore[misc, valid-type]
        batch: dict[str, Any] | None = None
        handle: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            def keep(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
                if module.training:
                    self.batch = keywords

            self.handle = model.register_forward_pre_hook(keep, with_kwargs=True)
            if state.global_step > 0:  # The trainer has read its own state from a checkpoint, wherever that is.
                saved = state.stateful_callbacks.get(type(self).__name__, {})
                if isinstance(saved, dict) and STATE in saved.get("attributes", {}):
                    monitor.load_state_dict(saved["attributes"][STATE])

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            batch = self.batch or {}
            inputs = {name: part for name, part in batch.items() if name not in (LABELS, TOKENS)}
            alone = getattr(args, "gradient_accumulation_steps", 1) == 1
            scaler = getattr(optimizer, "scaler", None)  # Of accelerate's optimiser, in mixed precision.
            if monitor.step(inputs, batch.get(LABELS, ()), compare=alone, scaler=scaler) and log is not None:
                log(monitor.latest())

        def state(self) -> dict[str, Any]:
            """What the trainer keeps of this callback in its checkpoints."""
            return {"args": {}, "attributes": {STATE: monitor.state_dict()}}

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.handle.remove()
            self.batch = None

    # The trainer keeps states by this name: monitors of other estimators have another.
    MonitorCallback.__name__ = f"fganalysis.Monitor of {', '.join(monitor.labels) or 'gradients'}"
    return MonitorCallback()


def lightning_callback(
    monitor: Monitor, split: Callable[[Any], tuple[Any, Any]] = tuple, log: Log | None = None
) -> Any:
    """A Callback that measures before the optimiser's step, on the batch that the training step had.

    Where a training step has several optimisers it measures before the first of them.

    Args:
        split: makes (inputs, targets) of a batch; by default a batch is such a pair. Lightning unscales gradients of
            mixed precision before this callback, so the monitor needs no ``scaler``. Its state is in the checkpoints.

    Raises:
        ValueError: no monitor, or neither lightning nor pytorch_lightning is installed.
    """
    _check(monitor, log)
    check_callable(
        "split", split if split is not tuple else _check, "a function of a batch that gives (inputs, targets)"
    )
    # Both packages may be there, and each has a Callback of its own: that of the package in use.
    places = ["lightning.pytorch", "pytorch_lightning"]
    places.sort(key=lambda place: place not in sys.modules)
    callback = _imported(places, "Callback", "lightning or pytorch_lightning")

    class MonitorCallback(callback):  # type: ignore[misc, valid-type]
        batch: Any = None

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.batch = batch

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if self.batch is None:
                return  # Another optimiser has moved weights since the gradient of this batch was computed.
            inputs, targets = split(self.batch)
            self.batch = None
            alone = getattr(trainer, "accumulate_grad_batches", 1) == 1
            if monitor.step(inputs, targets, compare=alone) and log is not None:
                log(monitor.latest())

        def state_dict(self) -> dict[str, Any]:
            return monitor.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            monitor.load_state_dict(state_dict)

    return MonitorCallback()


def _check(monitor: object, log: object) -> None:
    check_kind("monitor", monitor, Monitor, "a fganalysis.Monitor")
    if log is not None:
        check_callable("log", log, "a function of a dict of floats", 1)


def _imported(modules: Sequence[str], name: str, packages: str) -> Any:
    """A class of the first of the modules that is there."""
    for place in modules:
        try:
            return getattr(importlib.import_module(place), name)
        except ImportError:
            continue
    raise ValueError(f"{packages} is not installed, which this callback is for: pip install {packages.split()[0]}")
