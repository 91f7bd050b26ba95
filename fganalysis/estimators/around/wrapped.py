"""What estimators that wrap another estimator share: it may be given by key, and they learn if it learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.names import resolve
from fganalysis.estimators.protocol import Stateful


def wrap(wrapper: Any) -> None:
    """Resolves the field ``estimator`` of a frozen dataclass and forwards its state; for the ``__post_init__``.

    The methods of `fganalysis.estimators.protocol.Stateful` are put on the instance, where `isinstance` finds them. On
    the class, a wrapper of an estimator without state would count as stateful too. From Python 3.12 on, `isinstance`
    does not ask ``__getattr__``.
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
