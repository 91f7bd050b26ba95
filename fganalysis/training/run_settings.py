"""The settings of a training run, as texts by name, kept in checkpoints and compared when a run is continued.

They are everything on which a step depends: gradient, optimiser, schedule and loss with their settings, seed, sizes,
the modules of the network and the types of its weights, and the training data. A function is identified by its name. A
lambda, or a function inside another, is also identified by a hash of its code and of what it refers to. Neither names
nor settings show that a loss function or a forward pass was edited; `probed_loss` does.
"""

from __future__ import annotations

import hashlib
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fganalysis.capturing.refusals import mean_loss
from fganalysis.capturing.tap import Loss
from fganalysis.estimators import Estimator
from fganalysis.training.checkpoints import Checkpoint, digest_of, kind_of
from fganalysis.training.datasets import Dataset
from fganalysis.training.evaluation import in_evaluation

DIGEST_DIGITS = 12
DEEPEST = 6  # Depth to which objects within objects are described.
LONGEST_TEXT = 60  # Longest text of a setting in a message.
PROBED_EXAMPLES = 64
PROBE_TOLERANCE = 1e-3  # Relative, because another machine or number of threads changes the last digits of a loss.


def run_settings(
    network: torch.nn.Module,
    estimator: Estimator,
    optimizer: torch.optim.Optimizer,
    loss_fn: Loss,
    data: Dataset,
    **plain: int | str,
) -> dict[str, str]:
    """All settings but the schedule, by name. The optimiser must be new, before a schedule changes its rates."""
    texts = {name: str(value) for name, value in plain.items()}
    texts |= dict(_texts("gradient", estimator))
    texts |= {f"train_{name}": _tensor(getattr(data, f"train_{name}")) for name in ("inputs", "targets")}
    texts |= dict(_texts("loss_fn", loss_fn))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    texts["optimizer"] = _class(type(optimizer))
    for index, group in enumerate(optimizer.param_groups):
        settings = {name: value for name, value in group.items() if name != "params"}
        texts |= dict(_texts(f"optimizer.{index}", settings))
        texts[f"optimizer.{index}.parameters"] = ", ".join(names[id(parameter)] for parameter in group["params"])
    return texts | dict(_network("network", network))


def schedule_settings(scheduler: torch.optim.lr_scheduler.LRScheduler | None) -> dict[str, str]:
    """The schedule as it is made, by name."""
    return dict(_texts("schedule", scheduler))


def refuse_another_run(checkpoint: Checkpoint, settings: Mapping[str, str]) -> None:
    """Raises ValueError, naming the first setting that differs and both values."""
    saved = checkpoint.training["settings"]
    for name in [*settings, *saved]:
        here, there = settings.get(name, "nothing"), saved.get(name, "nothing")
        if here != there:
            raise ValueError(
                f"the checkpoint {checkpoint.path} is of another run: {name} was {_cut(there)} and is {_cut(here)} "
                "here; to train on otherwise, start a run from its network (load_checkpoint)"
            )


def refuse_another_loss(checkpoint: Checkpoint, loss: float | None) -> None:
    """Raises ValueError where the network loaded has another loss than the one that was saved."""
    saved = checkpoint.training["loss"]
    if loss is not None and saved is not None:
        same = np.isclose(loss, saved, rtol=PROBE_TOLERANCE, atol=1e-7, equal_nan=True)
        if not same:
            raise ValueError(
                f"the checkpoint {checkpoint.path} is of another run: its network's loss on the first training "
                f"examples was {saved:.6g} and is {loss:.6g} here, so network or loss_fn compute something else"
            )


def probed_loss(network: torch.nn.Module, loss_fn: Loss, data: Dataset) -> float | None:
    """The loss on the first training examples; None where two passes give two numbers, as random ones do."""
    inputs, targets = data.train_inputs[:PROBED_EXAMPLES], data.train_targets[:PROBED_EXAMPLES]
    with torch.no_grad(), in_evaluation(network):
        first, second = (float(mean_loss(loss_fn, network(inputs), targets)) for _ in range(2))
    return first if np.array_equal(first, second, equal_nan=True) else None


def _texts(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Name and text of a value and of its parts. No text contains an address in memory."""
    if isinstance(value, torch.nn.Module):
        yield from _network(name, value)
    elif not isinstance(value, Mapping | list | tuple):
        yield name, _text(value)
    elif _is_plain(value):
        yield name, _text(value)
        return
    if depth < DEEPEST:
        for key, part in _parts(value).items():
            yield from _texts(f"{name}.{key}", part, depth + 1)


def _is_plain(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(part, str | int | float | None) for part in value)


def _parts(value: Any) -> dict[str, Any]:
    """The parts of a container or of an object with attributes. Texts, numbers, tensors and functions have none."""
    if isinstance(value, torch.nn.Module):
        return dict(value.state_dict())
    if isinstance(value, Mapping):
        return {str(key): part for key, part in value.items()}
    if isinstance(value, list | tuple):
        return {str(index): part for index, part in enumerate(value)}
    if isinstance(value, Tensor | type | partial | types.ModuleType) or hasattr(value, "__code__"):
        return {}
    if is_dataclass(value):  # Without what it has remembered, which is no setting.
        return {field.name: getattr(value, field.name) for field in fields(value)}
    attributes = getattr(value, "__dict__", {})
    return {name: part for name, part in attributes.items() if not isinstance(part, torch.optim.Optimizer)}


def _text(value: Any, above: tuple[Any, ...] = ()) -> str:
    """``above``: the functions inside whose closures the value lies, which it may refer to."""
    if isinstance(value, Tensor | np.ndarray):
        return _tensor(torch.as_tensor(value))
    if isinstance(value, np.generic):
        return repr(value.item())
    if isinstance(value, str | int | float | bool | None):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"({', '.join(_text(part, above) for part in value)})"
    if isinstance(value, partial):
        given = [_text(part, above) for part in value.args]
        given += [f"{name}={_text(part, above)}" for name, part in value.keywords.items()]
        return f"{_text(value.func, above)}({', '.join(given)})"
    if isinstance(value, type) or not hasattr(value, "__qualname__"):
        return _class(value if isinstance(value, type) else type(value))
    return _function(value, above)


def _function(value: Any, above: tuple[Any, ...]) -> str:
    name = _class(value)
    code = getattr(value, "__code__", None)
    in_place = "<" in name or value.__module__ == "__main__"
    if not isinstance(code, types.CodeType) or not in_place or any(value is function for function in above):
        return name
    filled = (cell for cell in value.__closure__ or () if cell != types.CellType())
    inside = [*(value.__defaults__ or ()), *(cell.cell_contents for cell in filled)]
    known = [_code(code), *(_text(part, (*above, value)) for part in inside)]
    return f"{name} {hashlib.sha256(' '.join(known).encode()).hexdigest()[:DIGEST_DIGITS]}"


def _code(code: types.CodeType) -> str:
    # A set's order is another in every process.
    constants = (sorted(map(repr, part)) if isinstance(part, frozenset) else part for part in code.co_consts)
    texts = (_code(part) if isinstance(part, types.CodeType) else repr(part) for part in constants)
    return " ".join([code.co_code.hex(), *code.co_names, *texts])


def _class(value: Any) -> str:
    """The name of a class or a function, with its module where that is neither torch's nor one of ours."""
    module = value.__module__ or "builtins"
    known = module.split(".")[0] in ("builtins", "torch", "fganalysis")
    return str(value.__qualname__) if known else f"{module}.{value.__qualname__}"


def _tensor(value: Tensor) -> str:
    return f"{kind_of(value)} {digest_of('', value).hex()[:DIGEST_DIGITS]}"


def _network(name: str, network: torch.nn.Module) -> Iterator[tuple[str, str]]:
    for path, module in network.named_modules(prefix=name):
        shown = re.sub(r" at 0x[0-9a-f]+", "", " ".join(module.extra_repr().split()))
        yield path, f"{_class(type(module))}({shown}){'' if module.training else ' in evaluation mode'}"
    for path, parameter in network.named_parameters(prefix=name):
        yield path, kind_of(parameter) + ("" if parameter.requires_grad else " frozen")
    for path, buffer in network.named_buffers(prefix=name):
        yield path, kind_of(buffer)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
