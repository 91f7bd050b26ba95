"""Pulling many cotangents back through one autograd graph: at once where the backward pass allows it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor


class Pull:
    """Vector–Jacobian products of ``output`` by ``inputs``, of cotangents (guess, …) in the shape of the output."""

    def __init__(self, output: Tensor, inputs: Sequence[Tensor]):
        self._output, self._inputs = output, list(inputs)
        self._batches: bool | None = None
        # Batched backward passes of one graph are not safe in several threads at once.
        self._lock = threading.RLock()

    def __call__(self, cotangents: Tensor) -> list[Tensor]:
        """(guess, *shape of the input) for every input."""
        cotangents = cotangents.to(self._output.dtype)
        with self._lock:
            if not self._output.requires_grad:
                return [tensor.new_zeros(len(cotangents), *tensor.shape) for tensor in self._inputs]
            if len(cotangents) > 1 and self._in_batches(cotangents):
                return self._pulled(cotangents, True)
            single = [self._pulled(cotangent, False) for cotangent in cotangents]
        if len(single) == 1:
            return [part.unsqueeze(0) for part in single[0]]
        return [torch.stack(parts) for parts in zip(*single, strict=True)]

    def _pulled(self, cotangents: Tensor, batched: bool) -> list[Tensor]:
        with torch.enable_grad():
            parts = torch.autograd.grad(
                self._output, self._inputs, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=batched
            )
        lead = cotangents.shape[: cotangents.ndim - self._output.ndim]
        return [
            tensor.new_zeros((*lead, *tensor.shape)) if part is None else part
            for part, tensor in zip(parts, self._inputs, strict=True)
        ]

    def _in_batches(self, cotangents: Tensor) -> bool:
        """Whether the backward pass takes many cotangents at once and gives the same; found out by trying, once."""
        if self._batches is None:
            try:
                together = self._pulled(cotangents[:2], True)
                alone = [self._pulled(cotangent, False) for cotangent in cotangents[:2]]
                self._batches = all(
                    _same(part, torch.stack(parts))
                    for part, parts in zip(together, zip(*alone, strict=True), strict=True)
                )
            except Exception:  # Rules for batches are missing in many ways, and the plain pass is the judge.
                self._batches = False
        return self._batches


def _same(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).norm() <= 1e3 * torch.finfo(first.dtype).eps * second.norm())
