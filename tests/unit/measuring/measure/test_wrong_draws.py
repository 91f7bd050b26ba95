"""Bad input of measure(), truth() and what takes them is one sentence that names the cause and the way out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from tests.refusals import refusal
from tests.unit.measuring.measure.laws import GRADIENT, with_numpy, with_torch


def changed(**parts: Any) -> Any:
    def draw(n: int, generator: np.random.Generator) -> dict[str, Any]:
        return {**with_numpy(n, generator), **{name: part(n, generator) for name, part in parts.items()}}

    return draw


def without_b(n: int, generator: np.random.Generator) -> dict[str, Any]:
    return {name: part for name, part in with_numpy(n, generator).items() if name != "b"}


def too_few(n: int, generator: np.random.Generator) -> dict[str, Any]:
    return with_numpy(max(n - 1, 1), generator)


def always_one(n: int, generator: np.random.Generator) -> dict[str, Any]:
    return with_numpy(1, generator)


def of_its_own(n: int, generator: np.random.Generator) -> dict[str, Any]:
    return with_numpy(n, np.random.default_rng())


def always_the_same(n: int, generator: np.random.Generator) -> dict[str, Any]:
    return with_numpy(n, np.random.default_rng(0))


def often_nan(n: int, generator: np.random.Generator) -> dict[str, Any]:
    guesses = with_numpy(n, generator)
    guesses["a"][generator.random(n) < 0.2] = np.nan
    return guesses


DRAWS: dict[str, tuple[Any, str]] = {
    "no mapping": (lambda n, generator: [1.0], "what draw returns must be a mapping from names to arrays, got"),
    "a name less": (without_b, "must have the names of the truth, a, b, c, got a, c"),
    "a name more": (changed(d=lambda n, g: np.zeros(n)), "must have the names of the truth, a, b, c, got a, b, c, d"),
    "another shape": (changed(a=lambda n, g: np.zeros((n, 4))), "guesses of 'a' must have the shape (guess, 3), got"),
    "a flat array": (changed(b=lambda n, g: np.zeros((n, 4))), "guesses of 'b' must have the shape (guess, 2, 2), got"),
    "no array": (changed(a=lambda n, g: "many"), "'a' must be a dense array of real numbers, got 'many'"),
    "complex": (changed(a=lambda n, g: np.zeros((n, 3), dtype=complex)), "must be a dense array of real numbers"),
    "objects": (changed(a=lambda n, g: np.full((n, 3), None)), "must be a dense array of real numbers"),
    "too few": (too_few, "draw made 1 guess of 'a' where n is 2: make as many as are asked for"),
    "one alone": (always_one, "draw made 1 guess of 'a' where n is 2"),
    "noise of its own": (of_its_own, "gives other guesses when its generator is seeded alike: draw all noise from"),
    "one seed": (always_the_same, "gives the same guesses with every generator, although its guesses differ"),
    "NaN": (often_nan, "made a guess that is NaN, infinite or too long to square (seed 0)"),
    "infinite": (changed(a=lambda n, g: np.full((n, 3), np.inf)), "made a guess that is NaN, infinite or too long"),
    "another library": (
        with_torch,
        "raised TypeError when it was called with n=1 and a numpy.random.Generator",
    ),
    "a number": (3, "draw must be a function of (n, generator), or an iterable of draws made before, got 3"),
    "a text": (
        "weight",
        "draw must be a function of (n, generator), or an iterable of draws made before",
    ),
    "one argument": (lambda n: {}, "draw must be a function of (n, generator)"),
    "no draws": ([], "must have n_guesses=64 guesses, but there are 0: ask for fewer"),
    "too few made before": (
        with_numpy(63, np.random.default_rng(0)),
        "draws must have n_guesses=64 guesses, but there are 63: ask for fewer",
    ),
    "texts": (["a", "b"], "what draw returns must be a mapping from names to arrays, got 'a'"),
}


@pytest.mark.parametrize("name", DRAWS)
def test_wrong_draws(name: str) -> None:
    draw, sentence = DRAWS[name]
    assert sentence in str(refusal(lambda: fga.measure(draw, GRADIENT, n_guesses=64)))


TRUTHS: dict[str, tuple[Any, str]] = {
    "a list": ([1.0], "truth must be a mapping from names to arrays, got [1.0]"),
    "empty": ({}, "at least one, got an empty mapping"),
    "a number for a name": ({1: np.ones(2)}, "truth must have names that are texts, got 1"),
    "all": ({"all": np.ones(2)}, "truth has the name 'all', which is that of all arrays together: rename the array"),
    "NaN": ({"a": np.array([1.0, np.nan])}, "truth 'a' has NaN or infinite entries"),
    "no entries": ({"a": np.ones((0, 2))}, "truth 'a' must not be empty, got the shape (0, 2)"),
    "masked": ({"a": np.ma.masked_array([1.0], [True])}, "truth 'a' is a masked array"),
    "a list of numbers": ({"a": [1.0, 2.0]}, "truth 'a' must be a dense array of real numbers, got [1.0, 2.0]"),
    "sparse": ({"a": torch.eye(2).to_sparse()}, "truth 'a' must be a dense array of real numbers"),
    "meta": ({"a": torch.ones(2, device="meta")}, "truth 'a' must be a dense array of real numbers"),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_wrong_truths(name: str) -> None:
    truth, sentence = TRUTHS[name]
    assert sentence in str(refusal(lambda: fga.measure(with_numpy, truth)))
    assert sentence in str(refusal(lambda: fga.truth(truth)))


ERRORS: dict[str, tuple[Any, str]] = {
    "other names": ({"a": np.ones(3)}, "standard_error must have the names of the truth, a, b, c, got a"),
    "other shape": (
        {**GRADIENT, "a": np.ones(2)},
        "'a' must have the shape of the truth, (3,), got (2,)",
    ),
    "negative": (GRADIENT, "standard_error 'a' has negative entries: give the root of each variance"),
    "NaN": ({**GRADIENT, "a": np.full(3, np.nan)}, "standard_error 'a' has NaN or infinite entries"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_wrong_standard_errors(name: str) -> None:
    error, sentence = ERRORS[name]
    assert sentence in str(refusal(lambda: fga.truth(GRADIENT, standard_error=error)))


def test_wrong_settings() -> None:
    estimated = fga.truth(GRADIENT, standard_error={name: abs(part) for name, part in GRADIENT.items()})
    calls: dict[str, Any] = {
        "generator must be 'numpy' or 'torch', got 'jax'": lambda: fga.measure(with_numpy, GRADIENT, generator="jax"),  # type: ignore[arg-type]
        "n_guesses must be a whole number of at least 2": lambda: fga.measure(with_numpy, GRADIENT, 1),
        "seed must be a whole number": lambda: fga.measure(with_numpy, GRADIENT, seed=-1),
        "give one of the two": lambda: fga.measure(with_numpy, GRADIENT, baseline=with_numpy),
        "a truth or, where there is none, a baseline": lambda: fga.measure(with_numpy, None),
        "baseline must be a function of (n, generator)": lambda: fga.measure(with_numpy, None, baseline=3),  # type: ignore[arg-type]
        "baseline must have draws, got none": lambda: fga.measure(with_numpy, None, baseline=[]),
        "a verdict takes an exact truth, and this one has standard errors": lambda: fga.check_unbiased(
            with_numpy, estimated
        ),
        "the gradient is zero, so a relative bias has no meaning": lambda: fga.check_unbiased(
            with_numpy, fga.truth({name: 0 * part for name, part in GRADIENT.items()})
        ),
        "draw must be a function of (n, generator)": lambda: fga.check_unbiased("weight", fga.truth(GRADIENT)),
        "snapshot must be what fga.capture or fga.truth returns, got a dict": lambda: fga.check_unbiased(
            with_numpy,
            GRADIENT,  # type: ignore[arg-type]
        ),
        "makes no guess in 'weight' space, only in: parameter": lambda: fga.check_unbiased(
            with_numpy, fga.truth(GRADIENT), space="weight"
        ),
    }
    for sentence, call in calls.items():
        assert sentence in str(refusal(call)), sentence


def test_what_does_not_vary_is_no_draw_that_ignores_its_generator() -> None:
    def exact(n: int, generator: np.random.Generator) -> dict[str, Any]:
        return {name: np.tile(part, (n, *[1] * part.ndim)) for name, part in GRADIENT.items()}

    measured = fga.measure(exact, GRADIENT, n_guesses=256).sel(space="parameter", layer="all")
    assert float(measured["bias"]) == 0 and float(measured["variance"]) == pytest.approx(0, abs=1e-12)
