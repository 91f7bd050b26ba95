"""Mistakes of activity perturbation, each a function for one of the places of `BrokenActivity`."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from studies.mutants.broken_activity import OnGuesses, OnNoise


def scaled(factor: float) -> OnGuesses:
    return lambda snapshot, guesses: [factor * guess for guess in guesses]


def one_coordinate_off(size: float) -> OnGuesses:
    """The last unit of the last example, by ``size`` times the gradient's norm."""

    def change(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
        guesses[-1][:, -1, -1] += size * _norm(snapshot.gradients)
        return guesses

    return change


def spread(size: float) -> OnGuesses:
    """A fixed random direction, unknown to the checks, of relative size ``size``."""

    def change(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(g.shape, generator=generator, dtype=g.dtype) for g in snapshot.gradients]
        offsets = [offset.to(snapshot.device) for offset in drawn]
        scale = size * _norm(snapshot.gradients) / _norm(offsets)
        return [guess + scale * offset for guess, offset in zip(guesses, offsets, strict=True)]

    return change


def last_example_times(factor: float) -> OnGuesses:
    def change(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
        for guess in guesses:
            guess[:, -1] *= factor
        return guesses

    return change


def one_sign_flipped(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
    guesses[-1][:, -1, -1] *= -1
    return guesses


def mask_off_by_one(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
    masks = [(tap.outputs > 0).roll(1, dims=1) for tap in snapshot.taps[:-1]]
    return [guess * mask for guess, mask in zip(guesses, masks, strict=False)] + guesses[-1:]


def mask_of_another_example(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
    masks = [(tap.outputs > 0).roll(1, dims=0) for tap in snapshot.taps[:-1]]
    return [guess * mask for guess, mask in zip(guesses, masks, strict=False)] + guesses[-1:]


def mask_from_zero(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
    masks = [tap.outputs >= 0 for tap in snapshot.taps[:-1]]
    return [guess * mask for guess, mask in zip(guesses, masks, strict=False)] + guesses[-1:]


def layers_swapped(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
    return [guesses[1], guesses[0], *guesses[2:]]


def normalised(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
    length = torch.cat([guess.flatten(1) for guess in guesses], dim=1).norm(dim=1)[:, None, None]
    # A guess of zero, which an enumeration has, stays zero.
    return [guess * (_norm(snapshot.gradients) / length.clamp(min=1e-300)) for guess in guesses]


def mean_over_examples(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
    return [guess.mean(1, keepdim=True).expand_as(guess) for guess in guesses]


def not_divided_by_examples(snapshot: Snapshot, guesses: list[Tensor]) -> list[Tensor]:
    return [guess * snapshot.n_examples for guess in guesses]


def noise_times(factor: float) -> OnNoise:
    return lambda snapshot, drawn: [factor * noise for noise in drawn]


def noise_shifted(shift: float) -> OnNoise:
    return lambda snapshot, drawn: [noise + shift for noise in drawn]


def noise_shared(snapshot: Snapshot, drawn: list[Tensor]) -> list[Tensor]:
    return [noise[:, :1].expand_as(noise) for noise in drawn]


def noise_centred(snapshot: Snapshot, drawn: list[Tensor]) -> list[Tensor]:
    return [noise - noise.mean(1, keepdim=True) for noise in drawn]


def noise_of_the_first_layer(snapshot: Snapshot, drawn: list[Tensor]) -> list[Tensor]:
    return [drawn[0]] * len(drawn)


def noise_of_the_first_guess(snapshot: Snapshot, drawn: list[Tensor]) -> list[Tensor]:
    return [noise[:1].expand_as(noise) for noise in drawn]


def slopes_clipped(snapshot: Snapshot, drawn: list[Tensor], slopes: Tensor) -> Tensor:
    limit = _limit(snapshot)
    return slopes.clamp(-limit, limit)


def outliers_dropped(snapshot: Snapshot, drawn: list[Tensor], slopes: Tensor) -> Tensor:
    return torch.where(slopes.abs() <= _limit(snapshot), slopes, 0.0)


def only_downhill(snapshot: Snapshot, drawn: list[Tensor], slopes: Tensor) -> Tensor:
    return slopes.clamp(max=0)


def slope_of_the_next_layer(snapshot: Snapshot, drawn: list[Tensor], slopes: Tensor) -> Tensor:
    return slopes.roll(-1, dims=1)


def slope_of_the_next_example(snapshot: Snapshot, drawn: list[Tensor], slopes: Tensor) -> Tensor:
    return slopes.roll(-1, dims=2)


def slopes_summed(snapshot: Snapshot, drawn: list[Tensor], slopes: Tensor) -> Tensor:
    return slopes.sum(-1, keepdim=True).expand_as(slopes)


def slopes_stale(snapshot: Snapshot, drawn: list[Tensor], slopes: Tensor) -> Tensor:
    """Slopes of the network as it was one step of descent ago."""
    gradients = snapshot.remember("stale gradients", lambda: _gradients_before_a_step(snapshot, rate=0.3))
    return torch.stack([torch.linalg.vecdot(noise, g) for noise, g in zip(drawn, gradients, strict=True)], dim=1)


def _gradients_before_a_step(snapshot: Snapshot, rate: float) -> tuple[Tensor, ...]:
    network = copy.deepcopy(snapshot.network)
    with torch.enable_grad():
        loss = snapshot.loss_fn(network(snapshot.inputs), snapshot.targets)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
    with torch.no_grad():
        for weight, gradient in zip(network.parameters(), gradients, strict=True):
            weight.add_(gradient, alpha=rate)
    return fga.capture(network, snapshot.loss_fn, snapshot.inputs, snapshot.targets).gradients


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).norm()


def _limit(snapshot: Snapshot) -> Tensor:
    """1.5 standard deviations of the slopes, (layer, example)."""
    return 1.5 * torch.stack([gradient.norm(dim=1) for gradient in snapshot.gradients])
