"""Many calls of a user's function as one, by `torch.func.vmap` over what the calls draw.

One call is watched: what it draws from its generator, in which order. The draws of further calls are made in the order
in which the calls would make them, so that they are the same numbers, and the function then runs once on all of them.
Functions that vmap does not take, that draw in place or as often as their numbers tell, cannot be run in this way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")
Draw = tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]


class CannotBatch(Exception):
    """A function whose calls cannot be one call. It is never seen outside of this package."""


class _Drawing(TorchFunctionMode):
    """Sees every function of torch that is given the generator."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if any(value is self._generator for value in (*arguments, *keywords.values())):
            return self.drawn((function, tuple(arguments), keywords))
        return function(*arguments, **keywords)

    def drawn(self, draw: Draw) -> Tensor:
        raise NotImplementedError


class Watched(_Drawing):
    """Records what a call draws.

    Attributes:
        draws: functions with their arguments. values: what they gave.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__(generator)
        self.draws: list[Draw] = []
        self.values: list[Tensor] = []

    def drawn(self, draw: Draw) -> Tensor:
        function, arguments, keywords = draw
        value = function(*arguments, **keywords)
        self.draws.append(draw)
        # A copy, as the function may change what it has drawn in place.
        self.values.append(value.clone() if isinstance(value, Tensor) else value)
        return value


class _Replayed(_Drawing):
    """Gives what was drawn before, as long as the function asks for the same in the same order."""

    def __init__(self, generator: torch.Generator, draws: Sequence[Draw], values: Sequence[Tensor]) -> None:
        super().__init__(generator)
        self._left = list(zip(draws, values, strict=True))

    def drawn(self, draw: Draw) -> Tensor:
        if not self._left or not _same(draw, self._left[0][0]):
            raise CannotBatch("its draws differ from call to call")
        return self._left.pop(0)[1].clone()

    def check_all_taken(self) -> None:
        if self._left:
            raise CannotBatch("its draws differ from call to call")


def check_draws(draws: Sequence[Draw]) -> None:
    """Raises CannotBatch where what is drawn depends on tensors, as draws in place do, or where nothing is drawn."""
    if not draws or any(isinstance(leaf, Tensor) for _, *given in draws for leaf in tree_leaves(given)):
        raise CannotBatch("it draws in place, into tensors, or not at all")


def values_of_calls(draws: Sequence[Draw], n_calls: int) -> list[Tensor]:
    """What further calls draw, (call, …) for each draw, in the order in which the calls would be made."""
    by_call = [[function(*given, **keywords) for function, given, keywords in draws] for _ in range(n_calls)]
    return [torch.stack(of_draw) for of_draw in zip(*by_call, strict=True)]


def called_at_once(
    call: Callable[[], list[Tensor]], generator: torch.Generator, draws: Sequence[Draw], values: Sequence[Tensor]
) -> list[Tensor]:
    """The results of ``call`` for all of the drawn values, (call, …) each.

    Raises:
        CannotBatch: whatever goes wrong. A mistake of the function's own shows again when it is called alone.
    """

    def one(*of_call: Tensor) -> tuple[Tensor, ...]:
        replayed = _Replayed(generator, draws, of_call)
        with replayed:
            result = call()
        replayed.check_all_taken()
        return tuple(result)

    state = generator.get_state()
    try:
        results: tuple[Tensor, ...] = torch.func.vmap(one, randomness="error")(*values)
    except Exception as error:
        raise CannotBatch(str(error)) from error
    if not torch.equal(generator.get_state(), state):
        generator.set_state(state)
        raise CannotBatch("it draws in other ways than by functions of torch")
    return list(results)


def _same(draw: Draw, other: Draw) -> bool:
    (function, given, keywords), (functions, givens, keyword) = draw, other
    return function is functions and given == givens and keywords == keyword
