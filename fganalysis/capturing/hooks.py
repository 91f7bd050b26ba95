"""Hooks that record inputs and outputs of the Linear modules with trainable parameters, in execution order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fganalysis.capturing.snapshot import CannotMeasure


class TapHooks:
    """Records the taps of one forward pass inside a ``with`` block.

    Attributes:
        modules: name and module of every tap, in the order in which the forward pass reaches them.
        inputs, outputs: of each tap, with their graphs or tangents.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        arriving: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        leaving: Callable[[Tensor], Tensor] = lambda tensor: tensor.clone(),
    ):
        """``arriving`` and ``leaving`` replace the input that a tap reads and the output that goes on.

        A clone of the output goes on, as an in-place activation function would overwrite the recorded output.
        """
        self.modules: list[tuple[str, torch.nn.Linear]] = []
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self._arriving, self._leaving = arriving, leaving
        self._taps = [(name, module) for name, module in network.named_modules() if is_tap(module)]
        self._handles: list[Any] = []

    def __enter__(self) -> TapHooks:
        for name, module in self._taps:
            self._handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after(name)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, name: str) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
        def before(
            module: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            given = [*arguments, *keywords.values()]
            if len(given) != 1 or not isinstance(given[0], Tensor):
                raise CannotMeasure(
                    f"tap {name!r} is called with {len(given)} arguments, where a Linear module takes one tensor: "
                    "leave it out by requires_grad_(False)"
                )
            if any(name == seen for seen, _ in self.modules):
                raise CannotMeasure(
                    f"tap {name!r} is used more than once in a forward pass, which is not supported: give each use a "
                    "module of its own, or leave it out by requires_grad_(False)"
                )
            self.inputs.append(given[0])
            replaced = self._arriving(given[0])
            return ((replaced,), {}) if arguments else ((), dict.fromkeys(keywords, replaced))

        return before

    def _after(self, name: str) -> Callable[[torch.nn.Module, tuple[Any, ...], Any], Tensor]:
        def after(module: torch.nn.Module, arguments: tuple[Any, ...], output: Any) -> Tensor:
            assert isinstance(module, torch.nn.Linear)
            if not isinstance(output, Tensor):
                raise CannotMeasure(f"tap {name!r} returns {type(output).__name__}, where a Linear returns one tensor")
            self.modules.append((name, module))
            self.outputs.append(output)
            return self._leaving(output)

        return after


def is_tap(module: torch.nn.Module) -> bool:
    """A Linear module with a trainable weight or bias of its own."""
    return isinstance(module, torch.nn.Linear) and any(trained(module))


def trained(module: torch.nn.Linear) -> tuple[bool, bool]:
    """Whether the weight and the bias are trainable parameters of the module itself."""
    weight, bias = (module._parameters.get(leaf) for leaf in ("weight", "bias"))
    return weight is not None and weight.requires_grad, bias is not None and bias.requires_grad
