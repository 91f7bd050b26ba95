"""One cell of `studies.tangents`: guesses along k tangents in n dimensions, for every k, beside what theory says."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy import special

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import MultiTangent
from fganalysis.estimators.noise import GAUSSIAN, Noise
from studies.kit.seeds import half_widths
from studies.tangents.rotated import Rotated
from theory import multi_tangent, projection

Array = NDArray[np.float64]
Combine = Literal["mean", "orthogonal"]
COMBINES: tuple[Combine, ...] = get_args(Combine)
QUANTITIES = {
    "cosine": "cosine of the guess and the gradient",
    "norm_ratio": "norm of the guess over that of the gradient",
    "squared_error": "squared norm of the guess's error over that of the gradient",
}
ROUTES = ("direct", "rotated")
Z95 = float(special.ndtri(0.975))  # Standard errors are already widened for Student's t: ± this many cover 95 %.


def qualities(
    n: int,
    largest_k: int,
    draws: int,
    direct_numbers: int,
    rotated_numbers: int,
    least_draws: int,
    seed: int,
    device: str,
) -> xr.Dataset:
    """Every k at one n: mean and standard error over guesses, and what theory says, (combine, route, k)."""
    ks = [2**power for power in range(largest_k + 1)]
    shape = (len(QUANTITIES), len(COMBINES), len(ROUTES), len(ks))
    values, errors = np.full(shape, np.nan), np.full(shape, np.nan)
    predicted, drawn = np.full((shape[0], shape[1], shape[3]), np.nan), np.zeros(shape[1:], dtype=np.int64)
    for i, combine in enumerate(COMBINES):
        for j, k in enumerate(ks):
            if combine == "orthogonal" and k > n:
                continue
            predicted[:, i, j] = predicted_qualities(combine, k, n)
            for r, n_draws in enumerate(_draws(n, k, draws, direct_numbers, rotated_numbers, least_draws)):
                if n_draws:
                    generator = _generator(device, seed, n, k, i, r)
                    sample = _measured(combine, k, n, n_draws, ROUTES[r], generator)
                    values[:, i, r, j] = sample.mean(-1)
                    errors[:, i, r, j] = half_widths(sample, -1) / Z95
                    drawn[i, r, j] = n_draws
    dims = ("combine", "route", "k")
    variables: dict[str, object] = {"draws": (dims, drawn)}
    for index, name in enumerate(QUANTITIES):
        variables[name] = (dims, values[index])
        variables[f"{name}_se"] = (dims, errors[index])
        variables[f"{name}_predicted"] = (("combine", "k"), predicted[index])
    return xr.Dataset(variables, coords={"combine": list(COMBINES), "route": list(ROUTES), "k": ks, "n": n})


def _draws(n: int, k: int, most: int, direct_numbers: int, rotated_numbers: int, least: int) -> tuple[int, int]:
    """How many guesses each route draws; the second none where the first has them all or the axes cannot be turned."""

    def affordable(limit: int, numbers: int) -> int:
        return min(most, max(least, limit // numbers))

    direct = affordable(direct_numbers, n * k)
    if direct == most or n <= k + 1:
        return direct, 0
    return direct, affordable(rotated_numbers, k * (k + 1))


def _measured(combine: Combine, k: int, n: int, n_draws: int, route: str, generator: torch.Generator) -> Array:
    """Cosine, norm ratio and squared error of every guess, (quantity, guess)."""
    noise: Noise = Rotated(n) if route == "rotated" else GAUSSIAN
    snapshot = _snapshot(n, k + 1 if route == "rotated" else None, generator.device)
    guesses = MultiTangent(k, combine, noise)(snapshot, n_draws, generator)
    inner, squares = (scalars[1, 0].cpu().numpy() for scalars in guesses.inner_products(snapshot))
    return np.stack([inner / np.sqrt(squares * n), np.sqrt(squares / n), (squares - 2 * inner + n) / n])


def _snapshot(n: int, turned: int | None, device: torch.device) -> Snapshot:
    """A network of one layer whose weight gradient is ones(n), or √n along the first of ``turned`` weights."""
    inputs = torch.ones(1, n, dtype=torch.float64, device=device)
    if turned is not None:
        inputs = torch.zeros(1, turned, dtype=torch.float64, device=device)
        inputs[0, 0] = n**0.5
    network = torch.nn.Linear(inputs.shape[1], 1, bias=False, dtype=torch.float64, device=device)
    return fga.capture(network, lambda outputs, targets: outputs.mean(), inputs, torch.zeros(1, device=device))


def predicted_qualities(combine: Combine, k: int, n: int) -> list[float]:
    """What theory says of mean cosine, norm ratio and squared error."""
    if combine == "mean":
        found = (multi_tangent.mean_cosine, multi_tangent.mean_norm_ratio, multi_tangent.mean_square_error)
        return [float(law(k, n)) for law in found]
    # ‖Ĝ‖² = ⟨Ĝ, G⟩: the norm ratio of a projection is its cosine.
    cosine = float(projection.mean_cosine(k, n))
    return [cosine, cosine, float(projection.mean_square_error(k, n))]


def _generator(device: str, *entropy: int) -> torch.Generator:
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) >> 1)
