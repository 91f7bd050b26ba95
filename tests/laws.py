"""The named properties that estimators have, as assertions to apply to whole tables of them."""

from __future__ import annotations

import torch
from torch import Tensor

import fganalysis as fga
from fganalysis.estimators import Estimator
from fganalysis.noise import Rademacher, Sphere
from fganalysis.snapshot import Snapshot
from fganalysis.testing import exact_moments

# Every estimator, with settings that fit the tiny networks of the tests.
TABLE: list[Estimator] = [
    fga.estimators.Backpropagation(),
    fga.estimators.WeightPerturbation(),
    fga.estimators.WeightPerturbation(noise=Sphere(), layers="separate"),
    fga.estimators.WeightPerturbation(shared=False),
    fga.estimators.ActivityPerturbation(),
    fga.estimators.ActivityPerturbation(noise=Rademacher(), shared=True, slope="batch"),
    fga.estimators.ActivityPerturbation(active_only=True, layers="separate"),
    fga.estimators.Upstream(),
    fga.estimators.Upstream(normalise=True),
    fga.estimators.OrthogonalUpstream(k=1),
    fga.estimators.OrthogonalUpstream(k=2, exact=True, shared=True),
    fga.estimators.OrthogonalUpstream(k=1, which="bottom"),
    fga.estimators.OrthogonalUpstream(k="rank"),
    fga.estimators.NewtonSchulzUpstream(k=1),
    fga.estimators.PreconditionedUpstream(),
]


def tiny_snapshot(
    sizes: tuple[int, ...] = (3, 2, 2),
    n_examples: int = 2,
    seed: int = 0,
    bias: bool = False,
    activation: type[torch.nn.Module] = torch.nn.Tanh,
    autodiff: str = "reverse",
) -> Snapshot:
    """A double-precision network with few noise dimensions, on a random batch with a classification loss."""
    network = fga.networks.mlp(list(sizes), bias=bias, seed=seed, activation=activation, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed + 1)
    inputs = torch.randn(n_examples, sizes[0], generator=generator, dtype=torch.float64)
    targets = torch.randint(0, sizes[-1], (n_examples,), generator=generator)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, targets, autodiff=autodiff)


def guesses_of(estimator: Estimator, snapshot: Snapshot, n_guesses: int = 6, seed: int = 0) -> list[Tensor]:
    """The dense guesses of one seeded call, a tensor a space in which there are any."""
    generator = torch.Generator().manual_seed(seed)
    return [space for space in estimator(snapshot, n_guesses, generator).dense(snapshot) if space is not None]


def exact_gradient(snapshot: Snapshot) -> tuple[Tensor, Tensor]:
    """The flattened exact gradients, in the order of `exact_moments`: activation, weight."""
    return (
        torch.cat([gradient.flatten() for gradient in snapshot.gradients]),
        torch.cat([gradient.flatten() for gradient in snapshot.weight_gradients]),
    )


def assert_exactly_unbiased(estimator: Estimator, snapshot: Snapshot) -> None:
    """The enumerated mean of the guess is the gradient, in every space in which there is a guess, to 1e-10."""
    moments = exact_moments(estimator, snapshot)
    activation, weight = exact_gradient(snapshot)
    torch.testing.assert_close(moments.weight_mean, weight, rtol=0, atol=1e-10)
    if moments.activation_mean is not None:
        torch.testing.assert_close(moments.activation_mean, activation, rtol=0, atol=1e-10)


def assert_equivariant_under_loss_scaling(estimator: Estimator, snapshot: Snapshot, factor: float = 3.0) -> None:
    """Scaling the loss by a factor scales every guess by it, with the same noise."""
    scaled = fga.capture(
        snapshot.network, lambda o, t: factor * snapshot.loss_fn(o, t), snapshot.inputs, snapshot.targets
    )
    for own, other in zip(guesses_of(estimator, snapshot), guesses_of(estimator, scaled), strict=True):
        torch.testing.assert_close(other, factor * own, rtol=1e-9, atol=1e-12)


def assert_seeded(estimator: Estimator, snapshot: Snapshot) -> None:
    """One seed gives the same guesses twice and leaves the global generator where it was."""
    before = torch.random.get_rng_state()
    first, second = guesses_of(estimator, snapshot), guesses_of(estimator, snapshot)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(torch.random.get_rng_state(), before)


def assert_modes_agree(estimator: Estimator, reverse: Snapshot, forward: Snapshot) -> None:
    """Slopes by forward mode and by the inner product with the gradient give the same guesses to rounding."""
    for one, other in zip(guesses_of(estimator, reverse), guesses_of(estimator, forward), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def assert_longer_run_extends(estimator: Estimator, snapshot: Snapshot) -> None:
    """Twice the guesses begin with the guesses of the shorter run."""
    short = fga.sample(snapshot, estimator, n_guesses=24, seed=3, block_size=4)
    long = fga.sample(snapshot, estimator, n_guesses=48, seed=3, block_size=4)
    for name in ("inner_product", "squared_norm"):
        torch.testing.assert_close(
            torch.from_numpy(long[name].values[..., :24]), torch.from_numpy(short[name].values), equal_nan=True
        )
