"""Does gradient energy in a subspace predict progress when descending in it? Song et al. (ICLR 2025) say no.

After a warm-up by stochastic gradient descent the network descends from one point along parts of its gradient, with the
same minibatches and learning rate, and the loss on the training examples is compared:

    whole       the gradient
    dominant    its part in the k leading eigenvectors of the Hessian, which are taken anew every few steps
    bulk        what `dominant` leaves out

    hidden      the gradient of the hidden layers; the output layer is kept fixed from here on
    top         V_kV_kᵀ g at every hidden tap and example: the upstream Jacobian's k leading directions
    other       k random directions of the Jacobian's row space instead
    rest        what `top` leaves out
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.capture import freeze
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.measuring import curvature
from studies.kit import kept_data
from studies.kit.devices import on

HESSIAN_BRANCHES = ("whole", "dominant", "bulk")
JACOBIAN_BRANCHES = ("hidden", "top", "other", "rest")
BRANCHES = (*HESSIAN_BRANCHES, *JACOBIAN_BRANCHES)
REFERENCE = dict.fromkeys(HESSIAN_BRANCHES, "whole") | dict.fromkeys(JACOBIAN_BRANCHES, "hidden")
Part = Callable[[Snapshot], tuple[list[Tensor], list[Tensor]]]


@dataclass(frozen=True)
class Settings:
    """One descent; ``refresh``: steps between two eigendecompositions of the Hessian."""

    width: int
    warm_up: int
    steps: int
    k: int
    seed: int
    dataset: str
    examples: int = 1024
    batch: int = 64
    learning_rate: float = 0.1
    refresh: int = 10
    device: str = "cpu"


def descend(settings: Settings) -> xr.Dataset:
    """loss (branch, step), the one before the first step included; share (branch,) of the squared gradient."""
    data = on(settings.device, kept_data.load(settings.dataset))
    inputs, targets = data.batch(settings.examples)
    classes = int(data.train_targets.max()) + 1
    width = settings.width
    network = fga.networks.mlp([inputs.shape[1], width, width, width, classes], bias=False, seed=settings.seed)
    network = network.to(settings.device)

    def everything(snapshot: Snapshot) -> tuple[list[Tensor], list[Tensor]]:
        return list(snapshot.weight_gradients), list(snapshot.weight_gradients)

    _follow(network, inputs, targets, everything, settings, settings.warm_up, seed=(settings.seed, 0))
    losses, shares = [], []
    for branch in BRANCHES:
        own = copy.deepcopy(network)
        part = _part(branch, own, inputs, targets, settings)
        loss, share = _follow(own, inputs, targets, part, settings, settings.steps, seed=(settings.seed, 1))
        losses.append(loss)
        shares.append(share)
    return xr.Dataset(
        {
            "loss": (("branch", "step"), losses, {"units": "loss", "long_name": "loss on the training examples"}),
            "share": ("branch", shares, {"units": "1", "long_name": "share of the squared gradient, mean over steps"}),
        },
        coords={"branch": list(BRANCHES), "step": np.arange(settings.steps + 1)},
    )


def _follow(
    network: torch.nn.Module,
    inputs: Tensor,
    targets: Tensor,
    part: Part,
    settings: Settings,
    steps: int,
    seed: tuple[int, int],
) -> tuple[list[float], float]:
    """Descends in place; the losses before and after every step, and the mean share of the squared gradient."""
    rng = np.random.default_rng(seed)
    loss_fn = torch.nn.functional.cross_entropy
    losses, shares = [], []
    for _ in range(steps):
        losses.append(_loss(network, inputs, targets))
        rows = torch.from_numpy(rng.integers(len(inputs), size=settings.batch))
        snapshot = freeze(network, loss_fn, inputs[rows], targets[rows], autodiff="reverse", step=0)
        followed, reference = part(snapshot)
        shares.append(_squares(followed) / _squares(reference))
        with torch.no_grad():
            for weight, direction in zip(network.parameters(), followed, strict=True):
                weight.sub_(direction, alpha=settings.learning_rate)
    return [*losses, _loss(network, inputs, targets)], float(np.mean(shares))


def _part(branch: str, network: torch.nn.Module, inputs: Tensor, targets: Tensor, settings: Settings) -> Part:
    """What of a snapshot's weight gradients a branch follows, and the gradients that its share is one of."""
    if branch in HESSIAN_BRANCHES:
        return _hessian_part(branch, network, inputs, targets, settings)
    generator = torch.Generator(settings.device).manual_seed(settings.seed)

    def part(snapshot: Snapshot) -> tuple[list[Tensor], list[Tensor]]:
        fixed = torch.zeros_like(snapshot.weight_gradients[-1])
        hidden = [*snapshot.weight_gradients[:-1], fixed]
        if branch == "hidden":
            return hidden, hidden
        kept = [*projected_gradients(snapshot, settings.k, generator if branch == "other" else None), fixed]
        if branch == "rest":
            kept = [whole - own for whole, own in zip(hidden, kept, strict=True)]
        return kept, hidden

    return part


def _hessian_part(branch: str, network: torch.nn.Module, inputs: Tensor, targets: Tensor, settings: Settings) -> Part:
    loss_fn = torch.nn.functional.cross_entropy
    taken, vectors = 0, torch.empty(0)

    def part(snapshot: Snapshot) -> tuple[list[Tensor], list[Tensor]]:
        nonlocal taken, vectors
        whole = list(snapshot.weight_gradients)
        if branch == "whole":
            return whole, whole
        if taken % settings.refresh == 0:
            now = fga.capture(network, loss_fn, inputs, targets)
            start = vectors[:, 0].double().numpy() if len(vectors) else None
            pairs = curvature.dominant(curvature.hessian_product(now), now, settings.k, tolerance=1e-2, start=start)
            vectors = torch.from_numpy(pairs.vectors).to(whole[0])
        taken += 1
        flat = torch.cat([gradient.flatten() for gradient in whole])
        dominant = vectors @ (vectors.T @ flat)
        chosen = dominant if branch == "dominant" else flat - dominant
        sizes = [gradient.numel() for gradient in whole]
        parts = zip(chosen.split(sizes), whole, strict=True)
        return [piece.view_as(gradient) for piece, gradient in parts], whole

    return part


def projected_gradients(snapshot: Snapshot, k: int, generator: torch.Generator | None = None) -> list[Tensor]:
    """Hidden taps' Σ_b P_b g_b x_bᵀ, P_b on the k leading directions of the example's Jacobian: W̃⊥_k's mean.

    With a generator, on k random directions of its row space instead.
    """
    found = []
    for jacobian, gradient, tap in zip(snapshot.upstream, snapshot.gradients, snapshot.taps, strict=False):
        if generator is None:
            basis = jacobian.singular_vectors(min(k, *jacobian.weight.shape))[2]
        else:
            right = jacobian.singular_vectors("rank")[2]
            shape = (len(right), right.shape[2], min(k, right.shape[2]))
            drawn = torch.randn(shape, generator=generator, dtype=right.dtype, device=right.device)
            basis = _spanned(right, drawn)
        kept = torch.einsum("bum,bm->bu", basis, torch.einsum("bum,bu->bm", basis, gradient))
        found.append(kept.T @ tap.inputs)
    return found


def _spanned(right: Tensor, drawn: Tensor) -> Tensor:
    """Orthonormal columns (example, unit, k) that span random combinations of the row spaces' bases."""
    left, values, _ = torch.linalg.svd(right @ drawn, full_matrices=False)
    return left * (values > 1e-5 * values[:, :1])[:, None, :]


def _squares(gradients: list[Tensor]) -> float:
    return sum(float(gradient.square().sum()) for gradient in gradients)


def _loss(network: torch.nn.Module, inputs: Tensor, targets: Tensor) -> float:
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(network(inputs), targets))
