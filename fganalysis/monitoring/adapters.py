"""A monitor in other people's trainers and loggers; each package is imported where it is asked for.

    fga.monitoring.transformers_callback(monitor)     a TrainerCallback for transformers.Trainer(callbacks=[…])
    fga.monitoring.lightning_callback(monitor)        a Callback for lightning.Trainer(callbacks=[…])
    fga.monitoring.write_scalars(monitor, writer)     to TensorBoard's SummaryWriter, or anything with add_scalar
    monitor.latest()                                  a dict of floats, for any other logger

``log`` of a callback is a function that gets that dict after every measurement.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fganalysis.arguments import check_callable, check_kind, described
from fganalysis.monitoring.monitor import Monitor

Log = Callable[[dict[str, float]], object]
LABELS, TOKENS = "labels", "num_items_in_batch"  # What transformers.Trainer calls a model with, beside its inputs.
STATE_FILE = "fganalysis_monitor.json"  # In each of transformers' checkpoints.


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
    checkpoints and read from them. Where several batches accumulate, ``.grad`` is not compared.

    Raises:
        ValueError: no monitor; transformers is not installed.
    """
    _check(monitor, log)
    trainer_callback = _imported("transformers", "TrainerCallback", "transformers")

    class MonitorCallback(trainer_callback):  # type: ignore[misc, valid-type]
        batch: dict[str, Any] | None = None
        handle: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            def keep(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
                if module.training:
                    self.batch = keywords

            self.handle = model.register_forward_pre_hook(keep, with_kwargs=True)
            path = Path(str(getattr(args, "resume_from_checkpoint", None))) / STATE_FILE
            if path.is_file():
                monitor.load_state_dict(json.loads(path.read_text(encoding="utf-8")))

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            batch = self.batch or {}
            inputs = {name: part for name, part in batch.items() if name not in (LABELS, TOKENS)}
            alone = getattr(args, "gradient_accumulation_steps", 1) == 1
            if monitor.step(inputs, batch.get(LABELS, ()), compare=alone) and log is not None:
                log(monitor.latest())

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if folder.is_dir():
                (folder / STATE_FILE).write_text(json.dumps(monitor.state_dict()), encoding="utf-8")

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.handle.remove()
            self.batch = None

    return MonitorCallback()


def lightning_callback(
    monitor: Monitor, split: Callable[[Any], tuple[Any, Any]] = tuple, log: Log | None = None
) -> Any:
    """A Callback that measures before each step of the optimiser, on the batch that the training step had.

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
    callback = _imported("lightning.pytorch", "Callback", "lightning", "pytorch_lightning")

    class MonitorCallback(callback):  # type: ignore[misc, valid-type]
        batch: Any = None

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.batch = batch

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            inputs, targets = split(self.batch)
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


def _imported(module: str, name: str, *packages: str) -> Any:
    """A class of the module, or of the other packages that may have it."""
    for place in (module, *packages[1:]):
        try:
            return getattr(importlib.import_module(place), name)
        except ImportError:
            continue
    raise ValueError(f"{' or '.join(packages)} is not installed, which this callback is for: pip install {packages[0]}")
