"""The autograd graph of the recorded pass, for what is asked of it after the gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fganalysis.capturing.batch import along_examples


@dataclass(frozen=True, eq=False)
class RecordedGraph:
    """Tensors with their graph: the taps' outputs, in the shape that the modules gave them, the network's and the loss.

    arriving: what each tap was called with, as far as it depends on parameters. outputs: with ∂L/∂o, by the loss
    function alone, which is made where it is asked for.
    """

    at_taps: tuple[Tensor, ...]
    arriving: tuple[tuple[Tensor, ...], ...]
    outputs: tuple[Tensor, ...]
    loss: Tensor
    gradients: Callable[[], list[Tensor]]

    def gradients_of_examples(self, taps: list[int], n_examples: int) -> list[Tensor]:
        """Gradient of each example's part of the loss at some taps, (example, *shape of the output) each.

        A backward pass an example.
        """
        at_outputs = self.gradients()
        wanted = [self.at_taps[index] for index in taps]
        rows: list[list[Tensor]] = []
        for example in range(n_examples):
            chosen = torch.zeros(n_examples, dtype=wanted[0].dtype, device=wanted[0].device)
            chosen[example] = 1
            used, cotangents = [], []
            for output, gradient in zip(self.outputs, at_outputs, strict=True):
                by_number = along_examples(chosen, output)
                if not output.requires_grad or not bool(gradient.any()) or by_number is None:
                    continue
                used.append(output)
                cotangents.append(gradient * by_number)
            parts = torch.autograd.grad(used, wanted, cotangents, retain_graph=True, allow_unused=True)
            rows.append(
                [torch.zeros_like(at) if part is None else part for at, part in zip(wanted, parts, strict=True)]
            )
        return [torch.stack(column) for column in zip(*rows, strict=True)]
