"""Laws of the noise ε that a guess is made of: symmetric, unit variance, uncorrelated entries.

A law acts on *noise vectors*: the trailing ``vector_dims`` dimensions of the requested shape form one vector of n
entries, and different vectors are independent. The fourth-order moments that theory needs are two numbers,
``fourth(n)`` = E ε_i⁴ and ``pair(n)`` = E ε_i² ε_j² for i ≠ j:

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
    """What an estimator asks of a law of ε. Anything with these three methods will do."""

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
    """Independent fair signs ±1: the law of least fourth moment."""

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


GAUSSIAN = Gaussian()
NUMBERS_IN_PART = 2**18


def draw_in_parts(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """What `Gaussian` draws, on all of torch's threads: other numbers from the same generator, of the same law.

    One number of the generator seeds a generator for each part, so that the result does not depend on the threads. A
    generator on a GPU draws on its own.
    """
    if generator.device.type != "cpu":
        return GAUSSIAN.draw(shape, generator, like)
    noise = torch.empty(shape, dtype=like.dtype, device=like.device)
    parts = noise.view(-1).split(NUMBERS_IN_PART)
    entropy = int(torch.randint(2**62, (), generator=generator))
    seeds = np.random.SeedSequence(entropy).generate_state(len(parts), np.uint64).tolist()

    def fill(part: Tensor, seed: int) -> None:
        # A thread is in no mode of its own, and outside torch.inference_mode what is made inside may not be written.
        with torch.inference_mode(noise.is_inference()):
            part.normal_(generator=torch.Generator().manual_seed(seed))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, parts, seeds))
    return noise


def check_noise(noise: object) -> None:
    """Raises ValueError for what has not the methods of a law."""
    check_kind("noise", noise, Noise, "a law with draw, fourth and pair, such as estimators.noise.Gaussian()")


def drawn(
    noise: Noise, shape: tuple[int, ...], generator: torch.Generator, like: Tensor, vector_dims: int = 1
) -> Tensor:
    """What a law draws. Raises ValueError where it is no tensor of the shape and data type that were asked for."""
    found: object = noise.draw(shape, generator, like, vector_dims)
    if not isinstance(found, Tensor) or found.shape != shape or found.dtype != like.dtype:
        asked = f"a tensor of shape {tuple(shape)} and {str(like.dtype).removeprefix('torch.')}"
        raise ValueError(f"the noise law {described(noise)} must draw {asked}, got {described(found)}")
    return found


def is_isotropic(law: Noise) -> bool:
    """Whether O ε has the law of ε for every rotation O of a noise vector.

    That is known of two laws here, and asked of their class: moments do not tell, as a law of finite support can share
    the Gaussian's up to any order.
    """
    return type(law) in (Gaussian, Sphere)
