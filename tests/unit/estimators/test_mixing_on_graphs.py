"""Activation mixing on networks that are no chain of Linear modules, against networks written by hand."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import fganalysis as fga
from fganalysis.estimators import ActivationMixing
from fganalysis.estimators.noise import GAUSSIAN
from tests.networks.by_hand import WRITTEN, Written, captured, parts, written
from tests.networks.zoo import ZOO, build, normal

STEP = 1e-6


def directions(case: Written, n_guesses: int, generator: torch.Generator, normalise: bool) -> list[Tensor]:
    """u (guess, *shape that arrives) of every hidden tap, then ε (guess, *shape of the outputs): as drawn, in order."""
    found = []
    for arriving in case.arriving:
        n = len(arriving)
        mixed = arriving.detach().reshape(n, -1)
        u = (GAUSSIAN.draw((n_guesses, n, n), generator, mixed) @ mixed) * (mixed > 0)
        if normalise:
            length = u.norm(dim=-1, keepdim=True)
            u = torch.where(length > 0, u / length, 0.0) * mixed.shape[1] ** 0.5
        found.append(u.reshape(n_guesses, *arriving.shape))
    last = case.snapshot.taps[-1]
    noise = GAUSSIAN.draw((n_guesses, *last.outputs.shape), generator, last.outputs)
    return [*found, last.layout.whole(noise)]


def slope(case: Written, index: int, direction: Tensor) -> Tensor:
    """(example,): central difference of each example's loss, where the direction is added at one place."""
    snapshot = case.snapshot
    at = [*(arriving.detach() for arriving in case.arriving), snapshot.outputs][index]
    after = [*case.after, lambda outputs: outputs][index]
    forth, back = (parts(snapshot, after(at + sign * STEP * direction)) for sign in (1, -1))
    return ((forth - back) / (2 * STEP)).detach()


@pytest.mark.parametrize("layers", ["joint", "separate"])
@pytest.mark.parametrize("slopes", ["example", "batch"])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_guess_is_slope_times_mixture_pulled_back(
    name: str, slopes: Literal["example", "batch"], layers: Literal["joint", "separate"]
) -> None:
    case = written(name)
    snapshot = case.snapshot
    normalise = slopes == "example"
    estimator = ActivationMixing(normalise=normalise, slope=slopes, layers=layers)
    found = estimator(snapshot, 2, torch.Generator().manual_seed(5)).guesses
    drawn = directions(case, 2, torch.Generator().manual_seed(5), normalise)
    for guess in range(2):
        by_place = [slope(case, index, along[guess]) for index, along in enumerate(drawn)]
        if layers == "joint":
            by_place = [torch.stack(by_place).sum(0)] * len(by_place)
        if slopes == "batch":
            by_place = [part.sum().expand_as(part) for part in by_place]
        for index, (t, along) in enumerate(zip(by_place, drawn, strict=True)):
            scaled = t.view(-1, *[1] * (along.ndim - 2)) * along[guess]
            if index < len(case.outputs):
                (scaled,) = torch.autograd.grad(case.arriving[index], case.outputs[index], scaled, retain_graph=True)
            expected = snapshot.taps[index].layout.rows(scaled)
            torch.testing.assert_close(found[index][guess], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["conv", "gpt", "lstm", "vit"])
def test_it_is_sampled_and_trains(name: str) -> None:
    case = ZOO[name]()
    snapshot = fga.capture(case.network, case.loss_fn, case.inputs, case.targets)
    measured = fga.sample(snapshot, ActivationMixing(), n_guesses=8, block_size=4)
    assert bool(measured["cosine"].sel(space="activation", layer="all").notnull())
    if snapshot.untapped_parameters:
        return
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        fga.estimate_gradient(
            case.network, case.loss_fn, case.inputs, case.targets, ActivationMixing(), generator, n_guesses=2
        )
    assert all(
        bool(parameter.grad.isfinite().all()) for parameter in case.network.parameters() if parameter.grad is not None
    )


def test_what_cannot_be_mixed_is_refused_in_one_sentence() -> None:
    def batch_norm() -> Any:
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))

    interacting = captured(build(batch_norm).train(), normal(5, 3))
    with pytest.raises(
        ValueError, match=r"'1' is BatchNorm in training mode .* a mixture of activations for no example"
    ):
        ActivationMixing()(interacting, 1, torch.Generator())
    network = build(lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)))
    with pytest.raises(ValueError, match="takes a backward pass between its taps: use autodiff='reverse'"):
        fga.estimate_gradient(
            network, nn.functional.cross_entropy, normal(4, 3), torch.tensor([0, 1, 2, 0]), ActivationMixing(),
            torch.Generator(), autodiff="forward",
        )  # fmt: skip
