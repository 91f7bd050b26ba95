"""The named properties that estimators have, as assertions; tests/law_claims.py says which estimator claims which."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.tap import Autodiff
from fganalysis.estimators import Estimator, Stateful
from fganalysis.testing import exact_moments, signs


def tiny_snapshot(
    sizes: tuple[int, ...] = (3, 2, 2),
    n_examples: int = 2,
    seed: int = 0,
    bias: bool = False,
    activation: type[torch.nn.Module] = torch.nn.Tanh,
    autodiff: Autodiff = "reverse",
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


@dataclass(frozen=True)
class EverySubset:
    """Each subset of rows once, in turn: what `Minibatch` and `Subsampled` draw from, enumerated."""

    def draw(self, n_guesses: int, n_examples: int, size: int, generator: torch.Generator) -> Tensor:
        subsets = list(itertools.combinations(range(n_examples), size))
        assert len(subsets) == n_guesses, f"{len(subsets)} subsets need as many guesses, got {n_guesses}"
        return torch.tensor(subsets)


def distribution(estimator: Any, snapshot: Snapshot) -> list[tuple[Tensor, Tensor]]:
    """Mean (number,) and covariance (number, number) of a guess, activation space (where it has guesses), then weight.

    By enumeration of the signs or the rows that it draws; of any other estimator, of six guesses from one seed.
    """
    if hasattr(estimator, "noise"):
        exact = exact_moments(estimator, snapshot, signs)
        spaces = [(exact.weight_mean, exact.weight_covariance)]
        if exact.activation_mean is not None and exact.activation_covariance is not None:
            spaces.insert(0, (exact.activation_mean, exact.activation_covariance))
        return spaces
    if hasattr(estimator, "rows"):
        subsets = list(itertools.combinations(range(snapshot.n_examples), estimator.size))
        guesses = guesses_of(replace(estimator, rows=EverySubset()), snapshot, len(subsets))
    else:
        guesses = guesses_of(estimator, snapshot)
    return [(space.mean(0), space.T.cov(correction=0)) for space in guesses]


def assert_exactly_unbiased(estimator: Estimator, snapshot: Snapshot) -> None:
    """The enumerated mean of the guess is the gradient, in every space in which there is a guess, to 1e-10."""
    means = [mean for mean, _ in distribution(estimator, snapshot)]
    for mean, gradient in zip(reversed(means), reversed(exact_gradient(snapshot)), strict=False):
        torch.testing.assert_close(mean, gradient, rtol=0, atol=1e-10)


def assert_equivariant_under_loss_scaling(estimator: Estimator, snapshot: Snapshot, factor: float = 3.0) -> None:
    """Scaling the loss by a factor scales every guess by it, with the same noise."""
    scaled = fga.capture(
        snapshot.network, lambda o, t: factor * snapshot.loss_fn(o, t), snapshot.inputs, snapshot.targets
    )
    for own, other in zip(guesses_of(estimator, snapshot), guesses_of(estimator, scaled), strict=True):
        torch.testing.assert_close(other, factor * own, rtol=1e-9, atol=1e-12)


def assert_equivariant_under_unit_permutation(estimator: Estimator, snapshot: Snapshot) -> None:
    """Permuting the hidden units permutes the distribution of the guess, and changes nothing else."""
    orders = [torch.arange(tap.units).roll(1) for tap in snapshot.taps[:-1]]
    orders.append(torch.arange(snapshot.taps[-1].units))
    permuted = fga.capture(_permuted_network(snapshot, orders), snapshot.loss_fn, snapshot.inputs, snapshot.targets)
    activations, weights = [], []
    inputs = torch.arange(snapshot.taps[0].inputs.shape[1])
    for tap, order in zip(snapshot.taps, orders, strict=True):
        activations.append(torch.arange(tap.outputs.numel()).view_as(tap.outputs)[:, order])
        weights.append(torch.arange(tap.weight.numel()).view_as(tap.weight)[order][:, inputs])
        inputs = torch.cat([order, torch.arange(len(order), len(order) + tap.has_bias)])
    _assert_permuted(estimator, snapshot, permuted, activations, weights)


def assert_equivariant_under_example_permutation(estimator: Estimator, snapshot: Snapshot) -> None:
    """Permuting the examples permutes the distribution of the activation guess and leaves that of the weight guess."""
    order = torch.arange(snapshot.n_examples).roll(1)
    permuted = fga.capture(snapshot.network, snapshot.loss_fn, snapshot.inputs[order], snapshot.targets[order])
    activations = [torch.arange(tap.outputs.numel()).view_as(tap.outputs)[order] for tap in snapshot.taps]
    weights = [torch.arange(tap.weight.numel()) for tap in snapshot.taps]
    _assert_permuted(estimator, snapshot, permuted, activations, weights)


def _permuted_network(snapshot: Snapshot, orders: Sequence[Tensor]) -> torch.nn.Module:
    """The network with the units of every tap in a new order, (unit,) a tap."""
    state = dict(snapshot.network.state_dict())
    inputs: Any = slice(None)
    for tap, order in zip(snapshot.taps, orders, strict=True):
        state[f"{tap.name}.weight"] = state[f"{tap.name}.weight"][order][:, inputs]
        if tap.has_bias:
            state[f"{tap.name}.bias"] = state[f"{tap.name}.bias"][order]
        inputs = order
    sizes = [snapshot.inputs.shape[1], *(tap.units for tap in snapshot.taps)]
    activation = type(next(m for m in snapshot.network.children() if not isinstance(m, torch.nn.Linear)))
    network = fga.networks.mlp(sizes, snapshot.taps[0].has_bias, activation=activation, dtype=torch.float64)
    network.load_state_dict(state)
    return network


def _assert_permuted(
    estimator: Estimator,
    snapshot: Snapshot,
    permuted: Snapshot,
    activations: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> None:
    """The permuted snapshot's distribution is the snapshot's own, numbers taken at the given places, a tensor a tap."""
    places = []
    for of_taps in (activations, weights):
        starts = itertools.accumulate([0, *(taps.numel() for taps in of_taps)])
        places.append(torch.cat([taps.flatten() + start for taps, start in zip(of_taps, starts, strict=False)]))
    own, other = distribution(estimator, snapshot), distribution(estimator, permuted)
    for (mean, covariance), (new_mean, new_covariance), place in zip(own, other, places[-len(own) :], strict=True):
        torch.testing.assert_close(new_mean, mean[place], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(new_covariance, covariance[place][:, place], rtol=1e-9, atol=1e-12)


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


def assert_factored_as_dense(estimator: Estimator, snapshot: Snapshot) -> None:
    """What is computed of the factored guesses is what the guesses written out give."""
    estimates = estimator(snapshot, 6, torch.Generator().manual_seed(0))
    inner, squares = estimates.inner_products(snapshot)
    grams = estimates.error_grams(snapshot, [estimates.total()])
    for space, guesses in enumerate(estimates.dense(snapshot)):
        if guesses is None:
            assert inner[space].isnan().all() and squares[space].isnan().all()
            continue
        gradient = exact_gradient(snapshot)[space]
        torch.testing.assert_close(inner[space].sum(0), guesses @ gradient)
        torch.testing.assert_close(squares[space].sum(0), guesses.square().sum(1))
        torch.testing.assert_close(grams[space].sum(), (guesses.sum(0) - gradient).square().sum())
    weights = torch.cat([gradient.flatten() for gradient in estimates.weight_gradients(snapshot)])
    torch.testing.assert_close(weights, guesses_of(estimator, snapshot)[-1].mean(0))
    first = estimates.first(2).dense(snapshot)[1]
    torch.testing.assert_close(first, guesses_of(estimator, snapshot)[-1][:2])


def assert_error_is_bias_and_variance(estimator: Estimator, snapshot: Snapshot) -> None:
    """E‖ĝ − g‖² = ‖E ĝ − g‖² + tr Cov ĝ of six guesses, the bias from the factored sums, the rest from dense ones."""
    estimates = estimator(snapshot, 6, torch.Generator().manual_seed(0))
    mean = tuple(total / 6 for total in estimates.total())
    squared_bias = estimates.error_grams(snapshot, [mean])[:, :, 0, 0].sum(1)
    inner, squares = (numbers.sum(1).mean(1) for numbers in estimates.inner_products(snapshot))
    for space, guesses in enumerate(estimates.dense(snapshot)):
        if guesses is not None:
            mse = squares[space] - 2 * inner[space] + exact_gradient(snapshot)[space].square().sum()
            variance = guesses.var(0, correction=0).sum()
            torch.testing.assert_close(mse, squared_bias[space] + variance, rtol=1e-9, atol=1e-12)


def assert_longer_run_extends(estimator: Estimator, snapshot: Snapshot) -> None:
    """Twice the guesses begin with the guesses of the shorter run."""
    short = fga.sample(snapshot, estimator, n_guesses=24, seed=3, block_size=4)
    long = fga.sample(snapshot, estimator, n_guesses=48, seed=3, block_size=4)
    for name in ("inner_product", "squared_norm"):
        torch.testing.assert_close(
            torch.from_numpy(long[name].values[..., :24]), torch.from_numpy(short[name].values), equal_nan=True
        )


def assert_memory_and_workers_change_nothing(estimator: Estimator, snapshot: Snapshot) -> None:
    """Three workers with little memory give the numbers that one gives."""
    alone = fga.sample(snapshot, estimator, n_guesses=100, seed=1, workers=1)
    several = fga.sample(snapshot, estimator, n_guesses=100, seed=1, workers=3, memory=2**22)
    assert alone.drop_vars("gram").equals(several.drop_vars("gram"))
    torch.testing.assert_close(
        torch.from_numpy(several["gram"].values),
        torch.from_numpy(alone["gram"].values),
        rtol=1e-12,
        atol=1e-15,
        equal_nan=True,
    )


def assert_state_goes_on(estimator: Stateful, snapshot: Snapshot) -> None:
    """A state put away and taken back goes on as if it never had been; advancing returns another estimator.

    From the first step on a file can hold it, which refuses tensors that share memory.
    """

    def noise(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    initial = estimator.initialised(snapshot)
    numbers = sorted((tensor.data_ptr(), tensor.nbytes) for tensor in initial.state().values())
    assert all(start + size <= after for (start, size), (after, _) in itertools.pairwise(numbers)), "memory is shared"
    first = initial.advanced(snapshot, noise(1))
    kept = {name: tensor.clone() for name, tensor in first.state().items()}
    assert kept, "advancing leaves a state"
    through = first.advanced(snapshot, noise(2))
    restored = estimator.with_state(kept).advanced(snapshot, noise(2))
    assert any(not torch.equal(tensor, kept[name]) for name, tensor in through.state().items())
    for name, tensor in first.state().items():
        torch.testing.assert_close(tensor, kept[name], rtol=0, atol=0)
    for name, tensor in through.state().items():
        torch.testing.assert_close(restored.state()[name], tensor, rtol=0, atol=0)
    for one, other in zip(guesses_of(through, snapshot), guesses_of(restored, snapshot), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
