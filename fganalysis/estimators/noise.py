"""Laws of the noise ε from which guesses are made: symmetric, with uncorrelated entries of unit variance.

The trailing ``vector_dims`` dimensions of a draw form one noise vector of n entries; different noise vectors are
independent. Theory needs two fourth moments, ``fourth(n)`` = E ε_i⁴ and ``pair(n)`` = E ε_i² ε_j² for i ≠ j:

    E ε_i ε_j ε_k ε_l = pair (δ_ij δ_kl + δ_ik δ_jl + δ_il δ_jk) + (fourth − 3 pair) δ_ijkl
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fganalysis.arguments import check_kind, described


@runtime_checkable
class Noise(Protocol):
    """A law of ε: any object with these three methods."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        """Noise of ``shape``, in the data type and on the device of ``like``."""

    def fourth(self, n: int) -> float:
        """E ε_i⁴ for a noise vector of n entries."""

    def pair(self, n: int) -> float:
        """E ε_i² ε_j², i ≠ j, for a noise vector of n entries."""


@dataclass(frozen=True)
class Gaussian:
    """ε ~ N(0, I)."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)

    def fourth(self, n: int) -> float:
        return 3.0

    def pair(self, n: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Rademacher:
    """Independent signs ±1 with probability one half each, the law with the smallest fourth moment."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        signs = torch.empty(shape, dtype=like.dtype, device=like.device)
        return signs.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)

    def fourth(self, n: int) -> float:
        return 1.0

    def pair(self, n: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Sphere:
    """Uniform on the sphere of radius √n: entries uncorrelated and of unit variance, but not independent."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1) -> Tensor:
        normal = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
        axes = tuple(range(-vector_dims, 0))
        radius = math.sqrt(math.prod(shape[-vector_dims:]))
        return normal.mul_(radius / torch.linalg.vector_norm(normal, dim=axes, keepdim=True))

    def fourth(self, n: int) -> float:
        return 3.0 * n / (n + 2.0)

    def pair(self, n: int) -> float:
        return n / (n + 2.0)


# Defaults of fields: Ruff refuses a call there, since it would look as if it were made anew for each instance.
GAUSSIAN = Gaussian()
RADEMACHER = Rademacher()
ON_SPHERE = Sphere()
NUMBERS_IN_PART = 2**18


def draw_in_parts(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal numbers, drawn on all of torch's threads. They are other numbers than `Gaussian` would draw.

    One number from the generator seeds a generator for each part, so the result does not depend on the number of
    threads. On a GPU the generator draws everything itself.
    """
    if generator.device.type != "cpu":
        return GAUSSIAN.draw(shape, generator, like)
    noise = torch.empty(shape, dtype=like.dtype, device=like.device)
    parts = noise.view(-1).split(NUMBERS_IN_PART)
    entropy = int(torch.randint(2**62, (), generator=generator))
    seeds = np.random.SeedSequence(entropy).generate_state(len(parts), np.uint64).tolist()

    def fill(part: Tensor, seed: int) -> None:
        # Threads do not inherit torch.inference_mode, and outside of it inference tensors cannot be written to.
        with torch.inference_mode(noise.is_inference()):
            part.normal_(generator=torch.Generator().manual_seed(seed))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, parts, seeds))
    return noise


def check_noise(noise: object) -> None:
    """Raises ValueError for an object without the methods of a law."""
    check_kind("noise", noise, Noise, "a law with draw, fourth and pair, such as estimators.noise.Gaussian()")


def drawn(
    noise: Noise, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1
) -> Tensor:
    """A draw from a law. Raises ValueError where the law returns no tensor of the requested shape and data type."""
    draw: object = noise.draw(shape, generator, like, vector_dims)
    if not isinstance(draw, Tensor) or draw.shape != shape or draw.dtype != like.dtype:
        asked = f"a tensor of shape {tuple(shape)} and {str(like.dtype).removeprefix('torch.')}"
        raise ValueError(f"the noise law {described(noise)} must draw {asked}, got {described(draw)}")
    return draw


def is_isotropic(law: Noise) -> bool:
    """Whether O ε has the law of ε for every rotation O of a noise vector.

    This is decided by the class of the law. Moments cannot decide it, since a law with finitely many values can share
    the moments of the Gaussian up to any order.
    """
    return type(law) in (Gaussian, Sphere)
