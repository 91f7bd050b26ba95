"""A process of its own for JAX, whose threads are not to live beside the forked workers of other tests.

Reads a block of Python with a dataset ``measured`` from standard input and prints what it measured, and what
`fganalysis.measure` says of the law of tests/unit/measuring/measure/laws.py drawn by JAX, as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import numpy as np
import xarray as xr

import fganalysis as fga
from tests.unit.measuring.measure.laws import GRADIENT

QUANTITIES = ("bias", "shrinkage", "variance", "cosine", "efficiency")
PARTS = ("", "_se", "_low", "_high")


def along(noise: dict[str, Any]) -> dict[str, Any]:
    """One guess from noise of the shapes of the gradient."""
    slope = sum((noise[name] * part).sum() for name, part in GRADIENT.items())
    return {name: slope * part for name, part in noise.items()}


@jax.jit
def many(keys: jax.Array) -> dict[str, jax.Array]:
    def one(key: jax.Array) -> dict[str, jax.Array]:
        keys = dict(zip(GRADIENT, jax.random.split(key, len(GRADIENT)), strict=True))
        return along({name: jax.random.normal(keys[name], part.shape) for name, part in GRADIENT.items()})

    return jax.vmap(one)(keys)


def with_jax(n: int, generator: np.random.Generator) -> dict[str, jax.Array]:
    return many(jax.random.split(jax.random.key(int(generator.integers(2**31))), n))


def numbers(measured: xr.Dataset) -> dict[str, float]:
    at = measured.sel(space="parameter", layer="all")
    names = [*(name + part for name in QUANTITIES for part in PARTS), "gradient_norm"]
    return {name: float(at[name]) for name in names if name in at}


if __name__ == "__main__":
    page: dict[str, Any] = {"__name__": "pasted"}
    exec(compile(sys.stdin.read(), "your_own_gradients.md", "exec"), page)
    law = fga.measure(with_jax, GRADIENT, seed=1)
    json.dump({"page": numbers(page["measured"]), "law": numbers(law)}, sys.stdout)
