"""What an estimator is asked for by, an instance or its key, and what it is called in results."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from fganalysis.arguments import check_callable, described, listed
from fganalysis.estimators.protocol import Estimator
from fganalysis.estimators.registry import ESTIMATORS

HASH_DIGITS = 8


def resolve(estimator: str | Estimator) -> Estimator:
    """An instance from a key of the table (with default settings) or the instance itself.

    Raises:
        ValueError: an unknown key, where the message lists the known ones; what is neither a key nor an instance.
    """
    if not isinstance(estimator, str):
        check_callable("an estimator", estimator, "a key or an instance")
        check_callable("an estimator", estimator, "what is called with (snapshot, n_guesses, generator)", 3)
        return estimator
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {described(estimator)}; known ones: {listed(ESTIMATORS)}")
    return ESTIMATORS[estimator]()


def label(estimator: str | Estimator) -> str:
    """The estimator's name in results: its key, followed by the settings that differ from the defaults.

    Tensors, such as feedback matrices or a state, appear as their type and a short hash of their content: estimators
    that differ in them alone have different names. The seed of the noise has another name in it, the `stable_name`.
    """
    return _label(resolve(estimator))


def _label(instance: Any) -> str:
    keys = {cls: key for key, cls in ESTIMATORS.items()}
    key = keys.get(type(instance), getattr(instance, "__name__", type(instance).__name__))
    if not dataclasses.is_dataclass(instance):
        return key
    changed = [
        f"{field.name}={_short(getattr(instance, field.name))}"
        for field in dataclasses.fields(instance)
        if _differs(getattr(instance, field.name), field.default)
    ]
    return f"{key}({', '.join(changed)})" if changed else key


def settings(estimator: str | Estimator) -> dict[str, str | int | float | bool]:
    """The fields of an estimator as plain values, for a result's attributes."""
    instance = resolve(estimator)
    if not dataclasses.is_dataclass(instance):
        return {}
    return {field.name: _short(getattr(instance, field.name)) for field in dataclasses.fields(instance)}


def _short(value: Any) -> str | int | float | bool:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str | int | float | bool):
        return value
    # A wrapped estimator: wrappers of different estimators must not share a name.
    if callable(value):
        return _label(value)
    leaves = list(_leaves(value))
    if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
        return type(value).__name__
    digest = hashlib.sha256()
    for leaf in leaves:
        digest.update(_bytes(leaf))
    return f"{type(value).__name__}-{digest.hexdigest()[:HASH_DIGITS]}"


def _differs(value: Any, default: Any) -> bool:
    # A comparison of tensors gives a tensor, which has no truth value.
    return value is not default if isinstance(value, torch.Tensor) else bool(value != default)


def _leaves(value: Any) -> Iterator[Any]:
    """Everything inside sequences, mappings and dataclasses, in order, each group preceded by its length."""
    if isinstance(value, Mapping):
        value = tuple(value.items())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = tuple(getattr(value, field.name) for field in dataclasses.fields(value))
    if not isinstance(value, tuple | list):
        yield value
        return
    yield len(value)
    for part in value:
        yield from _leaves(part)


def _bytes(leaf: Any) -> bytes:
    if not isinstance(leaf, torch.Tensor):
        return f"{leaf!r};".encode() if isinstance(leaf, str | int | float | bool | None) else b"?;"
    whole = leaf.detach().cpu().contiguous()
    return f"{whole.dtype}{tuple(whole.shape)};".encode() + whole.flatten().view(torch.uint8).numpy().tobytes()
