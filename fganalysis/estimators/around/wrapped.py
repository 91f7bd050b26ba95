"""What the estimators around another one share: they take it by key too, and learn where it learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.protocol import Stateful
from fganalysis.estimators.registry import resolve


def wrap(wrapper: Any) -> None:
    """For the ``__post_init__`` of a frozen dataclass: resolves its field ``estimator`` and hands on that one's state.

    The methods of `fganalysis.estimators.protocol.Stateful` go into the instance, as `isinstance` asks for them there:
    on the class, a wrapper of what has no state would be taken for stateful too, and a ``__getattr__`` is not asked
    from Python 3.12 on.
    """
    vars(wrapper)["estimator"] = resolve(wrapper.estimator)
    if isinstance(wrapper.estimator, Stateful):
        methods: dict[str, Callable[..., Any]]
        methods = {"initialised": _initialised, "advanced": _advanced, "state": _state, "with_state": _with_state}
        vars(wrapper).update({name: partial(method, wrapper) for name, method in methods.items()})


def _initialised(wrapper: Any, snapshot: Snapshot) -> Any:
    return replace(wrapper, estimator=wrapper.estimator.initialised(snapshot))


def _advanced(wrapper: Any, snapshot: Snapshot, generator: torch.Generator) -> Any:
    return replace(wrapper, estimator=wrapper.estimator.advanced(snapshot, generator))


def _state(wrapper: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = wrapper.estimator.state()
    return state


def _with_state(wrapper: Any, state: dict[str, Tensor]) -> Any:
    return replace(wrapper, estimator=wrapper.estimator.with_state(state))
