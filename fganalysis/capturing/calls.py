"""Calls: records every call of the modules whose outputs guesses may perturb, in the order of the forward pass.

A tap is a module that owns trainable parameters and calls no other such module while it runs. So parameters of
submodules that are never called (the output projection of attention) belong to the module that is called, and
parameters of a module that calls other taps (a class token) belong to no tap.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fganalysis.arguments import described, listed
from fganalysis.capturing.errors import CannotMeasure

Taps = Sequence[str | torch.nn.Module] | None


@dataclass(frozen=True)
class Call:
    """One call of a tap. outputs: the floating-point tensors in what it returned, by their place there."""

    name: str
    module: torch.nn.Module
    number: int
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    outputs: dict[int, Tensor]


class Calls:
    """Records the calls of one forward pass inside a ``with`` block.

    all: the calls of taps, in the order in which they return. order: name and number of every call, as they begin.
    """

    def __init__(
        self,
        modules: Sequence[tuple[str, torch.nn.Module]],
        leaving: Callable[[str, int, int, Tensor], Tensor] | None = None,
        arriving: Callable[[str, int, Any], Any] | None = None,
    ):
        """``modules``: what may be a tap, from `owners`.

        ``leaving`` replaces a tensor that a tap returns, given the tap's name, the number of the call and the place of
        the tensor; ``arriving`` what it is called with, a pair of arguments and keywords. Without ``leaving`` a clone
        goes on, as an in-place activation function would overwrite the recorded output.
        """
        self.all: list[Call] = []
        self.order: list[tuple[str, int]] = []
        self._leaving = leaving or (lambda name, number, place, tensor: tensor.clone())
        self._arriving = arriving
        self._owners = modules
        self._counts: dict[str, int] = {}
        self._running: list[dict[str, Any]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> Calls:
        for name, module in self._owners:
            self._handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after(name), with_kwargs=True))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, name: str) -> Callable[..., Any]:
        def before(module: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            for running in self._running:
                running["calls others"] = True
            number = self._counts.get(name, 0)
            self._counts[name] = number + 1
            self.order.append((name, number))
            self._running.append({"number": number, "given": (arguments, keywords), "calls others": False})
            return None if self._arriving is None else self._arriving(name, number, (arguments, keywords))

        return before

    def _after(self, name: str) -> Callable[..., Any]:
        def after(module: torch.nn.Module, arguments: Any, keywords: Any, output: Any) -> Any:
            running = self._running.pop()
            if running["calls others"]:
                return None
            leaves, structure = pytree.tree_flatten(output)
            tensors = {
                place: leaf
                for place, leaf in enumerate(leaves)
                if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
            }
            if not tensors:
                raise CannotMeasure(
                    f"tap {name!r} returns {described(output)}, where its outputs must be tensors, in tuples, lists or "
                    "dicts: leave it out by requires_grad_(False) or choose other taps"
                )
            given_arguments, given_keywords = running["given"]
            self.all.append(Call(name, module, running["number"], given_arguments, given_keywords, tensors))
            replaced = [
                self._leaving(name, running["number"], place, leaf) if place in tensors else leaf
                for place, leaf in enumerate(leaves)
            ]
            return pytree.tree_unflatten(replaced, structure)

        return after


def owners(network: torch.nn.Module, taps: Taps) -> list[tuple[str, torch.nn.Module]]:
    """Name and module of everything that may be a tap: what was chosen, or all modules with trainable parameters.

    Of the latter those are taps that call no other of them.
    """
    named = list(network.named_modules())
    if taps is not None:
        return _chosen(named, taps)
    # What computes a weight from other parameters belongs to the module whose weight it is.
    computed = [
        f"{name}.parametrizations." if name else "parametrizations."
        for name, module in named
        if hasattr(module, "parametrizations")
    ]
    return [
        (name, module)
        for name, module in named
        if any(parameter.requires_grad for parameter in module.parameters())
        and not any(name.startswith(inside) for inside in computed)
    ]


def _chosen(named: list[tuple[str, torch.nn.Module]], taps: object) -> list[tuple[str, torch.nn.Module]]:
    """The modules that ``taps`` names, by name, pattern or module.

    Raises:
        ValueError: no list, something that fits no module with trainable parameters, or a module inside another.
    """
    if isinstance(taps, str | torch.nn.Module) or not isinstance(taps, list | tuple | set | frozenset) or not taps:
        raise ValueError(f"taps must be a list of names, patterns such as 'blocks.*' or modules, got {described(taps)}")
    picked: dict[str, torch.nn.Module] = {}
    for wanted in taps:
        fitting = {
            name: module
            for name, module in named
            if (module is wanted if isinstance(wanted, torch.nn.Module) else _fits(name, wanted))
            and any(parameter.requires_grad for parameter in module.parameters())
        }
        if not fitting:
            known = [name for name, module in named if any(p.requires_grad for p in module.parameters(recurse=False))]
            raise ValueError(
                f"taps: {described(wanted)} fits no module with trainable parameters, known are {listed(known)}"
            )
        picked |= fitting
    for outer in picked:
        for inner in picked:
            if outer != inner and inner.startswith(f"{outer}." if outer else ""):
                raise ValueError(f"taps: {inner!r} is inside {outer!r}, so only one of them can be a tap")
    return [(name, module) for name, module in named if name in picked]


def _fits(name: str, pattern: object) -> bool:
    if not isinstance(pattern, str):
        raise ValueError(f"taps must hold names, patterns or modules of the network, got {described(pattern)}")
    # A star stands for one part of a name: 'blocks.*' are the blocks, not all that is in them.
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))
