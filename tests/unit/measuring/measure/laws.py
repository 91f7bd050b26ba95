"""A gradient and draws of known law: ĝ = t z along normal noise z, unbiased, with tr Cov ĝ = (d + 1)‖g‖²."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

GRADIENT = {"a": np.array([1.0, 2.0, -1.0]), "b": np.array([[1.0, 0.5], [0.0, -1.0]]), "c": np.array(0.5)}
SQUARE = float(sum((part**2).sum() for part in GRADIENT.values()))
NUMBERS = 8
VARIANCE = (NUMBERS + 1) * SQUARE


def along(noise: dict[str, Any]) -> dict[str, Any]:
    """Guesses from noise name → (guess, …), NumPy's or torch's."""
    n = len(noise["a"])
    slope = sum((noise[name] * _like(noise[name], part)).reshape(n, -1).sum(1) for name, part in GRADIENT.items())
    return {name: slope.reshape(n, *[1] * part.ndim) * noise[name] for name, part in GRADIENT.items()}


def _like(noise: Any, part: np.ndarray) -> Any:
    return torch.from_numpy(part) if isinstance(noise, torch.Tensor) else part


def with_numpy(n: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    return along({name: generator.standard_normal((n, *part.shape)) for name, part in GRADIENT.items()})


def with_torch(n: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    kind = torch.float64
    return along(
        {name: torch.randn((n, *part.shape), generator=generator, dtype=kind) for name, part in GRADIENT.items()}
    )


def one_a_call(n: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: part[0] for name, part in with_numpy(1, generator).items()}


def tilted(n: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Biased: a half is added to the first entry of a, so that ‖δ‖ = 1/2."""
    guesses = with_numpy(n, generator)
    guesses["a"][:, 0] += 0.5
    return guesses
