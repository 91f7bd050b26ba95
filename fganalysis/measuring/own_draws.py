"""Draws of any origin as guesses that a `Truth` is compared with: a function of (n, generator), or draws made before.

A function is called with a generator that is seeded for each block of guesses, as those of estimators are. Three calls
before the first block show whether it takes its noise from there: only then do the numbers follow from the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fganalysis.arguments import check_callable, described
from fganalysis.estimators import stable_name
from fganalysis.estimators.guesses import Compared, Sums
from fganalysis.measuring.truth import Generators, Truth, arrays, as_matrix, coarsest, same_names, truth_of
from fganalysis.results import schema

DrawFunction = Callable[[int, Any], Mapping[str, Any]]
KINDS_OF_DRAWS = "a function of (n, generator), or an iterable of draws made before"
LARGEST = 2**63 - 1
SAME_DRAWS = 1e-3  # Relative: the same computation rounds otherwise where threads share it, noise differs by far more.


@dataclass(frozen=True)
class ParameterEstimates:
    """Guesses of a gradient without a network, ``guesses[layer]`` of shape (guess, row, column) in double precision.

    dtype: the coarsest data type in which they were made.
    """

    guesses: Sums
    dtype: torch.dtype
    made_at: ClassVar[str] = schema.PARAMETER

    def __len__(self) -> int:
        return len(self.guesses[0])

    def first(self, n_guesses: int) -> ParameterEstimates:
        return ParameterEstimates(tuple(guess[:n_guesses] for guess in self.guesses), self.dtype)

    def numbers_per_guess(self) -> int:
        return sum(guess[0].numel() for guess in self.guesses)

    def arrays(self) -> Sums:
        return self.guesses

    def precision(self) -> float:
        return float(torch.finfo(self.dtype).eps)

    def like(self, truth: Truth) -> list[tuple[str, Tensor]]:
        return list(zip(truth.layers, truth.gradients, strict=True))

    def known(self, truth: Truth) -> NDArray[np.bool_]:
        return np.ones((len(truth.spaces), len(truth.layers)), dtype=bool)

    def total(self) -> Sums:
        return tuple(guess.sum(0) for guess in self.guesses)

    def inner_products(self, truth: Truth) -> tuple[Tensor, Tensor]:
        flat = [guess.flatten(1) for guess in self.guesses]
        inner = [guess @ exact.flatten() for guess, exact in zip(flat, truth.gradients, strict=True)]
        return torch.stack(inner)[None], torch.stack([guess.square().sum(1) for guess in flat])[None]

    def error_grams(self, truth: Truth, means: Sequence[Sums]) -> Tensor:
        return grams(*[errors_of(means, truth)] * 2)

    def exact(self, truth: Truth) -> dict[str, Compared]:
        truth.check_exact()
        (space,) = truth.spaces
        return {space: Compared(truth.layers, truth.gradients)}

    def by_space(self, truth: Truth, total: Sums) -> dict[str, Sums]:
        (space,) = truth.spaces
        return {space: total}

    def not_looked_at(self, truth: Truth) -> tuple[str, ...]:
        return ()

    def dense(self, truth: Truth) -> tuple[Tensor | None, Tensor]:
        return None, torch.cat([guess.flatten(1) for guess in self.guesses], dim=1)

    def weight_gradients(self, truth: Truth) -> list[Tensor]:
        return [guess.mean(0) for guess in self.guesses]


def errors_of(means: Sequence[Sums], truth: Truth) -> Sums:
    """Means less the gradient, (mean, number) a layer."""
    layers = zip(*means, strict=True)
    return tuple((torch.stack(parts) - exact).flatten(1) for parts, exact in zip(layers, truth.gradients, strict=True))


def grams(first: Sums, second: Sums) -> Tensor:
    """Inner products of (mean, number) a layer with others, (space, layer, mean, mean)."""
    return torch.stack([one @ other.T for one, other in zip(first, second, strict=True)])[None]


class Source(Protocol):
    """What draws come from."""

    __name__: str

    @property
    def noise_name(self) -> str:
        """What the seeds of the noise take in."""

    def block(self, n_guesses: int, wanted: int, generator: torch.Generator) -> ParameterEstimates:
        """The first ``wanted`` guesses of a block of ``n_guesses``. Blocks are asked for in their order."""

    @property
    def probe(self) -> ParameterEstimates:
        """A guess, which may be one of a block to come."""


class Draws:
    """A function of (n, generator) as an estimator that takes a `Truth` in the place of a snapshot.

    It returns name → (n, …) or, with one guess a call, name → (…): the shape of a call with n = 1 tells which.
    """

    def __init__(self, draw: DrawFunction, truth: Truth):
        """Raises ValueError for what is no such function, and for one that does not draw from its generator."""
        check_callable("draw", draw, KINDS_OF_DRAWS, 2)
        self._draw, self._truth = draw, truth
        self.__name__ = str(getattr(draw, "__name__", type(draw).__name__))
        # What `stable_name` reads of a function.
        self.__qualname__ = str(getattr(draw, "__qualname__", type(draw).__qualname__))
        self.stable_name = getattr(draw, "stable_name", None)
        first = _named(first_call(draw, self.__name__, self._generator(_seeded(truth, 0))), truth)
        self._one_a_call = all(array.shape == shape for array, shape in zip(first.values(), truth.shapes, strict=True))
        self._probe = self._checked_draws().first(1)

    @property
    def noise_name(self) -> str:
        return stable_name(self)

    @property
    def probe(self) -> ParameterEstimates:
        return self._probe

    def __call__(self, snapshot: Any, n_guesses: int, generator: torch.Generator) -> ParameterEstimates:
        """Guesses of one block, or the next guesses of it: generators of NumPy are seeded by the block's generator.

        snapshot: the truth that the draw was made for, which stands in the place of a snapshot.
        """
        source = self._generator(generator)
        if self._one_a_call:
            calls = [_guesses(self._called(1, source), self._truth, None) for _ in range(n_guesses)]
            parts = tuple(torch.cat(layer) for layer in zip(*(call.guesses for call in calls), strict=True))
            return ParameterEstimates(parts, coarsest([call.dtype for call in calls]))
        return _guesses(self._called(n_guesses, source), self._truth, n_guesses)

    def block(self, n_guesses: int, wanted: int, generator: torch.Generator) -> ParameterEstimates:
        return self(self._truth, n_guesses, generator).first(wanted)

    def _called(self, n_guesses: int, generator: Any) -> object:
        with torch.enable_grad():  # The draw may differentiate.
            return self._draw(n_guesses, generator)

    def _generator(self, generator: torch.Generator) -> Any:
        if self._truth.generators == "torch":
            return generator
        seed = torch.randint(LARGEST, (), generator=generator, device=generator.device)
        return np.random.default_rng(int(seed))

    def _checked_draws(self) -> ParameterEstimates:
        """Two guesses, of a draw whose noise comes from its generator."""
        calls = [self(self._truth, 2, _seeded(self._truth, seed)) for seed in (0, 0, 1)]
        once, again, other = (torch.cat([part.flatten(1) for part in call.guesses], dim=1) for call in calls)
        if not _same(once, again):
            raise ValueError(
                f"the draw {self.__name__} gives other guesses when its generator is seeded alike: draw all noise "
                "from the generator, or give draws made before as an iterable"
            )
        if _same(once, other) and not _same(once[0], once[1]):
            raise ValueError(
                f"the draw {self.__name__} gives the same guesses with every generator, although its guesses differ: "
                "draw all noise from the generator"
            )
        return calls[0]


class MadeBefore:
    """Draws that were made before, in parts of any sizes: each name → (guess, …), or (…) for a single guess."""

    def __init__(self, draws: Iterable[Mapping[str, Any]], truth: Truth, n_guesses: int):
        """Raises ValueError for draws without any guess, and as `Draws` does for names and shapes."""
        self.__name__ = self.__qualname__ = "draws"
        self._parts: Iterator[Any] = iter([draws] if isinstance(draws, Mapping) else draws)
        self._truth, self._n_guesses = truth, n_guesses
        self._seen = self._start = 0  # Guesses of all parts so far, and those of the current part that were taken.
        self._part = self._next()

    @property
    def noise_name(self) -> str:
        return self.__name__

    @property
    def probe(self) -> ParameterEstimates:
        return self._part.first(1)

    def block(self, n_guesses: int, wanted: int, generator: torch.Generator) -> ParameterEstimates:
        pieces, dtypes = [], []
        while wanted:
            if self._start == len(self._part):
                self._part, self._start = self._next(), 0
            stop = min(self._start + wanted, len(self._part))
            pieces.append([guesses[self._start : stop] for guesses in self._part.guesses])
            dtypes.append(self._part.dtype)
            wanted, self._start = wanted - (stop - self._start), stop
        return ParameterEstimates(tuple(torch.cat(layer) for layer in zip(*pieces, strict=True)), coarsest(dtypes))

    def _next(self) -> ParameterEstimates:
        part = next(self._parts, None)
        if part is None:
            raise ValueError(
                f"draws must have n_guesses={self._n_guesses} guesses, but there are {self._seen}: ask for fewer"
            )
        guesses = _guesses(part, self._truth, None)
        self._seen += len(guesses)
        return guesses


def source_of(draw: DrawFunction | Iterable[Mapping[str, Any]], truth: Truth, n_guesses: int) -> Source:
    """What draws come from. Raises ValueError for what is neither a function of (n, generator) nor an iterable."""
    if not callable(draw) and isinstance(draw, Iterable) and not isinstance(draw, str | bytes):
        return MadeBefore(draw, truth, n_guesses)
    return Draws(draw, truth)


def shapes_of(baseline: Any, generator: Generators) -> tuple[Truth, Any]:
    """A gradient of zero in the names and shapes of a baseline's guesses, and the baseline with all of its draws.

    Whether a function makes one guess a call shows by its shapes, which then do not depend on the number of guesses.
    """
    if callable(baseline):
        check_callable("baseline", baseline, KINDS_OF_DRAWS, 2)
        calls = []
        for n_guesses in (1, 2):
            source = np.random.default_rng(0) if generator == "numpy" else torch.Generator().manual_seed(0)
            name = str(getattr(baseline, "__name__", type(baseline).__name__))
            calls.append(arrays("what baseline returns", first_call(baseline, name, source, n_guesses)))
        one, two = calls
        single = all(one[name].shape == two[name].shape for name in one if name in two)
        return truth_of({name: _zeros(array, name, not single) for name, array in one.items()}, generator), baseline
    if not isinstance(baseline, Iterable) or isinstance(baseline, str | bytes):
        raise ValueError(f"baseline must be {KINDS_OF_DRAWS}, got {described(baseline)}")
    parts = iter([baseline] if isinstance(baseline, Mapping) else baseline)
    first = next(parts, None)
    if first is None:
        raise ValueError("baseline must have draws, got none")
    named = arrays("what baseline returns", first)
    zeros = {name: _zeros(array, name, True) for name, array in named.items()}
    return truth_of(zeros, generator), chain([first], parts)


def _zeros(array: Tensor, name: str, many: bool) -> Tensor:
    """Zeros of the shape of one guess."""
    if many and array.ndim == 0:
        raise ValueError(f"the guesses {name!r} of baseline must have a dimension of guesses, got a single number")
    return torch.zeros_like(array[0] if many else array)


def first_call(draw: DrawFunction, name: str, generator: Any, n_guesses: int = 1) -> Any:
    """What a draw returns. Raises ValueError for an error in it, which may come from the other kind of generator."""
    try:
        with torch.enable_grad():
            return draw(n_guesses, generator)
    except Exception as error:
        kind = "torch.Generator" if isinstance(generator, torch.Generator) else "numpy.random.Generator"
        raise ValueError(
            f"the draw {name} raised {type(error).__name__} when it was called with n={n_guesses} and a {kind}: see "
            "that error, or choose the other kind with generator='numpy' or 'torch'"
        ) from error


def _same(first: Tensor, second: Tensor) -> bool:
    first, second = first.nan_to_num(), second.nan_to_num()
    return bool((first - second).abs().max() <= SAME_DRAWS * first.abs().max())


def _seeded(truth: Truth, seed: int) -> torch.Generator:
    return torch.Generator(truth.device).manual_seed(seed)


def _named(drawn: object, truth: Truth) -> dict[str, Tensor]:
    return same_names("what draw returns", arrays("what draw returns", drawn), truth.layers)


def _guesses(drawn: object, truth: Truth, n_guesses: int | None) -> ParameterEstimates:
    """The checked guesses of one call; of a part of draws made before, n_guesses is None: any number, or a single one.

    Raises:
        ValueError: other names or shapes than those of the truth, or another number of guesses.
    """
    named, guesses, lengths = _named(drawn, truth), [], {}
    for (name, array), shape in zip(named.items(), truth.shapes, strict=True):
        single = n_guesses is None and array.shape == shape
        if not single and (array.ndim != len(shape) + 1 or array.shape[1:] != shape):
            of_all = f"(guess, {', '.join(map(str, shape))})" if shape else "(guess,)"
            raise ValueError(f"the guesses of {name!r} must have the shape {of_all}, got {tuple(array.shape)}")
        lengths[name] = 1 if single else len(array)
        guesses.append(array.to(truth.device).double().reshape(lengths[name], *as_matrix(shape)))
        wanted = lengths[truth.layers[0]] if n_guesses is None else n_guesses
        if lengths[name] != wanted:
            made = f"{lengths[name]} guess{'es' * (lengths[name] != 1)}"
            raise ValueError(f"draw made {made} of {name!r} where n is {wanted}: make as many as are asked for")
    return ParameterEstimates(tuple(guesses), coarsest([truth.dtype, *(array.dtype for array in named.values())]))
