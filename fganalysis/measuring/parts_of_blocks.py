"""A block of guesses in parts, where the device has no memory for a whole one; the guesses are those of the whole.

A block is one call of an estimator on one generator, so that a smaller call would draw other noise. Two ways give the
same guesses in parts. Either every draw of the smaller call is made as large as that of the whole, and only the rows of
the part are kept: noise takes what it took, all that is made of it less. Or the estimator draws guess after guess, as
`from_function` does, and the next part goes on with the generator. Which of them is right for an estimator shows on two
guesses, and by the shapes that the whole drew before it failed; where neither is, the block is refused. Sums over the
parts round in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator, label
from fganalysis.estimators.guesses import Estimates, WeightEstimates
from fganalysis.measuring.sound_guesses import guesses_of

Use = Callable[[Estimates, int], None]
Way = Literal["rows", "in turn"]
# Two ways to the same guesses differ by rounding alone, relative to the largest number of a tensor: differences of
# losses in single precision by a few hundredths, where other noise differs by about one.
SAME_GUESSES = 0.05


class _Unknown(Exception):
    """A draw of which the rows are not known, or of another shape than the whole block drew."""


class _Draws(TorchFunctionMode):
    """Sees what is drawn from generators, and refuses other shapes than those that are ``known``.

    shapes: of the draws, in their order. known: of those that the whole block drew, as far as it came.
    """

    def __init__(self, known: Sequence[tuple[int, ...]] = ()) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self._known = known

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if keywords.get("generator") is None:
            return function(*arguments, **keywords)
        if function in (torch.randn, torch.rand):
            given = arguments if isinstance(arguments[0], int) else arguments[0]
            return self.made(tuple(given), lambda shape: function(shape, **keywords))
        if isinstance(arguments[0], Tensor) and function.__name__.endswith("_"):  # As Tensor.bernoulli_.
            filled = arguments[0]

            def fill(shape: tuple[int, ...]) -> Tensor:
                whole = filled if shape == filled.shape else filled.new_empty(shape)
                drawn: Tensor = function(whole, *arguments[1:], **keywords)
                return drawn

            drawn = self.made(tuple(filled.shape), fill)
            return filled if drawn is filled else filled.copy_(drawn)
        return self.made((), lambda shape: function(*arguments, **keywords))  # Whose rows are not known.

    def made(self, shape: tuple[int, ...], draw: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        """A draw of this shape."""
        if len(self.shapes) < len(self._known) and self._known[len(self.shapes)] != shape:
            raise _Unknown
        self.shapes.append(shape)
        return draw(shape)


class _Rows(_Draws):
    """Draws for all guesses of a block, of which those from start to stop are kept."""

    def __init__(self, n_guesses: int, start: int, stop: int, known: Sequence[tuple[int, ...]] = ()):
        super().__init__(known)
        self._n_guesses, self._start, self._stop = n_guesses, start, stop

    def made(self, shape: tuple[int, ...], draw: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        size = self._stop - self._start
        if not shape or shape[0] % size:
            raise _Unknown
        each = shape[0] // size
        whole = super().made((each * self._n_guesses, *shape[1:]), draw)
        return whole[each * self._start : each * self._stop].clone()


class Blocks:
    """The blocks of one sample, each handed on whole, or in parts once the device has run out of memory."""

    def __init__(self, estimator: Estimator, snapshot: Snapshot, block_size: int):
        self._estimator, self._snapshot, self._block_size = estimator, snapshot, block_size
        self._at_once = block_size
        self._ways: list[Way] = ["rows", "in turn"]
        self._known: Sequence[tuple[int, ...]] = ()

    def each(self, generator: Callable[[], torch.Generator], use: Use) -> None:
        """Calls ``use(guesses, number of the first in the block)`` for all guesses of the block of a generator.

        Raises:
            ValueError: no memory for a single guess, or for a block of an estimator whose guesses cannot be made in
                parts.
        """
        if self._at_once == self._block_size:
            if self._done(lambda: use(self._call(self._block_size, generator()), 0)):
                return
            self._free_memory()
            seen = _Draws()
            if self._done(lambda: use(self._seen(seen, self._block_size, generator()), 0)):
                return
            self._free_memory()
            self._split(seen.shapes)
        self._in_parts(generator, use)

    def _in_parts(self, generator: Callable[[], torch.Generator], use: Use) -> None:
        in_turn, start, n_drawn = generator(), 0, 0
        while start < self._block_size:
            stop, state = min(start + self._at_once, self._block_size), in_turn.get_state()
            if self._ways[0] == "rows":
                draws: _Draws = _Rows(self._block_size, start, stop, self._known)
            else:
                draws = _Draws(self._known[n_drawn:])
            source = generator() if self._ways[0] == "rows" else in_turn

            def part(start: int = start, stop: int = stop, draws: _Draws = draws, source: Any = source) -> None:
                use(self._seen(draws, stop - start, source), start)

            try:
                done = self._done(part)
            except _Unknown:
                if start or len(self._ways) == 1:
                    self._refuse()
                del self._ways[0]
                continue
            if done:
                start, n_drawn = stop, n_drawn + len(draws.shapes)
                continue
            self._free_memory()
            in_turn.set_state(state)
            if stop - start == 1:
                self._refuse_single()
            self._at_once = (stop - start) // 2

    def _split(self, known: Sequence[tuple[int, ...]]) -> None:
        """Finds out how the guesses of a block can be made in parts."""
        if self._block_size == 1:
            self._refuse_single()
        self._at_once, self._known = self._block_size // 2, known
        try:
            self._ways = [way for way in self._ways if self._is_right(way)]
        except torch.OutOfMemoryError:  # There is none for two guesses either, so nothing can be found out.
            self._ways = []
        if not self._ways:
            self._refuse()

    def _is_right(self, way: Way) -> bool:
        """Whether two guesses made one by one are the two of one call."""

        def seeded() -> torch.Generator:
            return torch.Generator(self._snapshot.device).manual_seed(0)

        both, in_turn = self._call(2, seeded()), seeded()
        for number in (0, 1):
            draws = _Draws() if way == "in turn" else _Rows(2, number, number + 1)
            try:
                one = self._seen(draws, 1, in_turn if way == "in turn" else seeded())
            except _Unknown:
                return False
            for alone, of_both in zip(_tensors(one), _tensors(both), strict=True):
                if bool((alone[0] - of_both[number]).abs().max() > SAME_GUESSES * of_both.abs().max()):
                    return False
        return True

    def _refuse_single(self) -> NoReturn:
        raise ValueError(
            f"{self._snapshot.device} has no memory left for a single guess of {label(self._estimator)}: free memory "
            "there, or use a smaller batch or network"
        )

    def _refuse(self) -> NoReturn:
        raise ValueError(
            f"{self._snapshot.device} has no memory for a block of {self._block_size} guesses of "
            f"{label(self._estimator)}, which cannot be made in parts with the same noise: use block_size="
            f"{self._block_size // 2} or less"
        )

    def _call(self, n_guesses: int, generator: torch.Generator) -> Estimates:
        return guesses_of(self._estimator, self._snapshot, n_guesses, generator)

    def _seen(self, draws: _Draws, n_guesses: int, generator: torch.Generator) -> Estimates:
        with draws:
            return self._call(n_guesses, generator)

    def _done(self, work: Callable[[], None]) -> bool:
        """Whether there was memory for it. Nothing of the failed work is held when this returns."""
        try:
            work()
        except torch.OutOfMemoryError:
            return False
        return True

    def _free_memory(self) -> None:
        """Gives back what torch holds in reserve."""
        if self._snapshot.device.type != "cpu":
            give_back = getattr(torch.get_device_module(self._snapshot.device), "empty_cache", None)
            if give_back is not None:
                give_back()


def _tensors(guesses: Estimates) -> tuple[Tensor, ...]:
    if isinstance(guesses, WeightEstimates):
        return (guesses.coefficients, *guesses.directions)
    return guesses.arrays()
