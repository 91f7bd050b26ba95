"""The loss along directions of all weights: derivatives by nested forward mode, and values at moved weights.

    ℓ(t) = L(θ + t z)        ℓ'(0) = z·G,   ℓ''(0) = zᵀHz,   ℓ'''(0) = T zzz

The network may be taken in another precision than the snapshot's: parameters, buffers and floating-point numbers of the
batch are rounded to it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fganalysis.capturing.batch import functionally_called, map_tensors
from fganalysis.capturing.forward_mode import LOCK
from fganalysis.capturing.precision import plainly
from fganalysis.capturing.snapshot import Snapshot

ByName = Mapping[str, Tensor]  # Of parameters.
TANGENT_NUMBERS = 2**22  # Of weights and activations, in all nested tangents.


class LossAlong:
    """The loss of a snapshot as a function of its trained weights, in one precision."""

    def __init__(self, snapshot: Snapshot, dtype: torch.dtype):
        def rounded(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()

        self._snapshot = snapshot
        self._network = copy.deepcopy(snapshot.network).to(dtype).requires_grad_(False)
        self._inputs, self._targets = (map_tensors(part, rounded) for part in (snapshot.inputs, snapshot.targets))
        names = [name for layer in snapshot.weights for name in layer.parameter_names]
        self.weights: dict[str, Tensor] = {name: self._network.get_parameter(name) for name in names}

    def directions(self, of_layers: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Directions, (guess, unit, input) a layer, by parameter name, rounded to the precision."""
        by_name: dict[str, Tensor] = {}
        for layer, direction in zip(self._snapshot.weights, of_layers, strict=True):
            by_name |= layer.by_parameter(direction)
        return {name: by_name[name].to(weight) for name, weight in self.weights.items()}

    def moved(self, along: ByName, step: float) -> dict[str, Tensor]:
        """θ + step·z, each number rounded to the precision."""
        return {name: torch.add(weight, along[name], alpha=step) for name, weight in self.weights.items()}

    def loss(self, weights: ByName) -> Tensor:
        """L at these weights. What a forward pass writes to buffers is not kept."""
        buffers = {name: buffer.clone() for name, buffer in self._network.named_buffers()}
        outputs = functionally_called(self._network, (dict(weights), buffers), self._inputs)
        loss: Tensor = self._snapshot.loss_fn(outputs, self._targets)
        return loss

    def value(self, weights: ByName) -> float:
        """L at these weights, as a number of Python's.

        Raises:
            ValueError: a network or a loss that does not run in this precision.
        """
        with torch.no_grad(), plainly(self._snapshot.device):
            return float(_run(lambda: self.loss(weights), "does not run in this precision"))

    def derivatives(self, along: ByName) -> Tensor:
        """z·G, zᵀHz and T zzz of many directions, (guess, derivative); along: (guess, …) by parameter name.

        Raises:
            ValueError: a network or a loss without a third derivative in forward mode.
        """
        first_weight = next(iter(self.weights.values()))
        zero = torch.zeros((), dtype=first_weight.dtype, device=first_weight.device)

        def of_one(direction: ByName) -> Tensor:
            return torch.stack(self._derivatives(zero, direction))

        with LOCK, torch.no_grad(), plainly(self._snapshot.device):
            try:
                together: Tensor = torch.func.vmap(of_one, chunk_size=self.at_once)(dict(along))
                return together
            except torch.OutOfMemoryError:
                raise
            except Exception:  # A batch can fail in as many ways as there are operations; alone it may succeed.
                n_guesses = len(next(iter(along.values())))
                singles = [{name: part[guess] for name, part in along.items()} for guess in range(n_guesses)]
                words = "has no third derivative in forward mode"
                return torch.stack([_run(partial(of_one, single), words) for single in singles])

    @property
    def at_once(self) -> int:
        """Directions whose derivatives are best taken together."""
        numbers = sum(weight.numel() for weight in self.weights.values())
        numbers += sum(tap.outputs.numel() for tap in self._snapshot.taps)
        return max(1, TANGENT_NUMBERS // (8 * numbers))  # Three nested tangents hold 2³ numbers for each.

    def _derivatives(self, zero: Tensor, along: ByName) -> tuple[Tensor, ...]:
        def loss(t: Tensor) -> Tensor:
            return self.loss({name: weight + t * along[name] for name, weight in self.weights.items()})

        def first(t: Tensor) -> tuple[Tensor, Tensor]:
            slope = torch.func.jvp(loss, (t,), (torch.ones_like(t),))[1]
            return slope, slope

        def second(t: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            curvature, slope = _with_slope(first, t)
            return curvature, (slope, curvature)

        third, lower = _with_slope(second, zero)
        return (*lower, third)


def _with_slope(function: Callable[[Tensor], tuple[Tensor, Any]], t: Tensor) -> tuple[Tensor, Any]:
    """The derivative of what a function returns first, and what it returns beside that."""
    _, *found = torch.func.jvp(function, (t,), (torch.ones_like(t),), has_aux=True)
    return found[0], found[1]


def _run(call: Callable[[], Any], words: str) -> Any:
    try:
        return call()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise ValueError(f"the network or its loss {words}: {type(error).__name__} from torch") from error
