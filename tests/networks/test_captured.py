"""What a snapshot says of every network of the zoo, against brute force by torch.func."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.errors import CannotMeasure
from fganalysis.capturing.jacobian import Jacobian
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.guesses import ActivationEstimates
from tests.networks import brute_force
from tests.networks.zoo import ZOO, Case

NAMES = list(ZOO)


def captured(name: str, **settings: Any) -> tuple[Case, Snapshot]:
    case = ZOO[name]()
    return case, fga.capture(case.network, case.loss_fn, case.inputs, case.targets, **settings)


def by_name(snapshot: Snapshot, of_layers: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for layer, gradient in zip(snapshot.weights, of_layers, strict=True):
        found |= layer.by_parameter(gradient)
    return found


def at_modules(case: Case, snapshot: Snapshot, rows: list[Tensor]) -> dict[str, brute_force.Calls]:
    """(row, unit) a tap → in the form of brute force: a list of calls, each of tensors in the module's shape."""
    names = list(dict.fromkeys(tap.name for tap in snapshot.taps))
    known = brute_force.outputs(case.network, case.inputs, names)
    filled = {name: [[torch.zeros_like(leaf) for leaf in call] for call in known[name]] for name in names}
    for tap, part in zip(snapshot.taps, rows, strict=True):
        filled[tap.name][tap.number][tap.place] = tap.layout.whole(part)
    return filled


def directions(snapshot: Snapshot, n_guesses: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn((n_guesses, *tap.outputs.shape), generator=generator, dtype=torch.float64) for tap in snapshot.taps
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_every_parameter_is_autograds_and_each_is_in_one_layer(name: str) -> None:
    case, snapshot = captured(name)
    exact = brute_force.gradient(case.network, case.loss_fn, case.inputs, case.targets)
    found = by_name(snapshot, snapshot.weight_gradients)
    assert sorted(found) == sorted(exact)
    assert sum(layer.weight.numel() for layer in snapshot.weights) == sum(g.numel() for g in exact.values())
    for parameter, gradient in exact.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-9, atol=1e-12)
    assert list(snapshot.untapped_parameters) == brute_force.untapped(case.network, case.inputs)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("autodiff", ["reverse", "forward"])
def test_slopes_of_examples_are_those_of_brute_force(name: str, autodiff: str) -> None:
    try:
        case, snapshot = captured(name, autodiff=autodiff)
    except CannotMeasure as error:
        assert autodiff == "forward" and "autodiff='reverse'" in str(error)
        return
    drawn = directions(snapshot, 2)
    slopes = snapshot.slopes(drawn)[:, 0]
    for guess in range(2):
        moved = at_modules(case, snapshot, [part[guess] for part in drawn])
        exact = brute_force.example_slopes(case.network, case.parts, case.inputs, case.targets, moved)
        torch.testing.assert_close(slopes[guess], exact, rtol=1e-8, atol=1e-11)
        batch = snapshot.slopes(drawn, by_example=False)[guess, 0, 0]
        torch.testing.assert_close(batch, exact.sum(), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_guesses_at_outputs_are_guesses_at_weights_by_the_local_products(name: str) -> None:
    case, snapshot = captured(name)
    drawn = directions(snapshot, 3)
    estimates = ActivationEstimates(tuple(drawn))
    written = snapshot.at_weights(drawn)
    inner, squares = estimates.inner_products(snapshot)
    for guess in range(3):
        found = by_name(snapshot, [part[guess] if part.ndim == 3 else part for part in written])
        exact = brute_force.pulled_back(
            case.network, case.inputs, at_modules(case, snapshot, [part[guess] for part in drawn])
        )
        for parameter, product in exact.items():
            torch.testing.assert_close(found[parameter], product, rtol=1e-8, atol=1e-10)
    for number, (layer, gradient, guesses) in enumerate(
        zip(snapshot.weights, snapshot.weight_gradients, written, strict=True)
    ):
        if not layer.taps:
            assert inner[:, number].isnan().all() and squares[:, number].isnan().all()
            continue
        torch.testing.assert_close(inner[1, number], guesses.flatten(1) @ gradient.flatten(), rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(squares[1, number], guesses.flatten(1).square().sum(1), rtol=1e-8, atol=1e-11)
        at_taps = sum((drawn[i] * snapshot.gradients[i]).sum((1, 2)) for i in layer.taps)
        torch.testing.assert_close(inner[0, number], at_taps, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_means_of_groups_have_the_errors_of_their_dense_guesses(name: str) -> None:
    _, snapshot = captured(name)
    means = [tuple(part[guess] for part in directions(snapshot, 3, seed=1)) for guess in range(3)]
    estimates = ActivationEstimates(tuple(part[:1] for part in directions(snapshot, 3)))
    grams = estimates.error_grams(snapshot, means)
    for number, layer in enumerate(snapshot.weights):
        if not layer.taps:
            continue
        errors = torch.stack(
            [
                (snapshot.at_weights([part.unsqueeze(0) for part in mean])[number] - snapshot.weight_gradients[number])
                for mean in means
            ]
        ).flatten(1)
        torch.testing.assert_close(grams[1, number], errors @ errors.T, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in NAMES if "called_twice" not in name])
def test_upstream_jacobians_are_the_derivatives_between_the_modules(name: str) -> None:
    case, snapshot = captured(name)
    called = [tap.name for tap in snapshot.taps]
    for jacobian in snapshot.jacobians:
        if jacobian is None:
            continue
        here, there = jacobian.tap, jacobian.following
        if called.count(here.name) > 1 or called.count(there.name) > 1 or here.place or there.place:
            continue
        dense = brute_force.jacobian_between(case.network, case.inputs, here.name, there.name)
        matrix = dense.reshape(there.outputs.numel(), here.outputs.numel())
        generator = torch.Generator().manual_seed(0)
        forth = torch.randn(2, *here.outputs.shape, generator=generator, dtype=torch.float64)
        back = torch.randn(2, *there.outputs.shape, generator=generator, dtype=torch.float64)
        product = there.layout.whole(jacobian.product(forth)).flatten(1)
        torch.testing.assert_close(product, here.layout.whole(forth).flatten(1) @ matrix.T, rtol=1e-8, atol=1e-10)
        pulled = here.layout.whole(jacobian.transposed_product(back)).flatten(1)
        torch.testing.assert_close(pulled, there.layout.whole(back).flatten(1) @ matrix, rtol=1e-8, atol=1e-10)
        _check_singular_vectors(jacobian)


def _check_singular_vectors(jacobian: Jacobian) -> None:
    """LAPACK's triplets, and the randomised ones with the span of the leading two where they stand apart."""
    if jacobian.tap.owners is None or jacobian.following.owners is None:
        return
    dense = jacobian.dense()
    exact = torch.linalg.svdvals(dense)
    left, values, right = jacobian.singular_vectors("rank")
    rebuilt = (left * values[:, None, :]) @ right.mT
    torch.testing.assert_close(rebuilt, dense, rtol=1e-8, atol=1e-9)
    if min(jacobian.shape) < 2:
        return
    _, leading, vectors = jacobian._found(2, 20)
    torch.testing.assert_close(leading[:, 0], exact[:, 0], rtol=1e-6, atol=1e-9)
    there = (leading > 0).to(vectors)
    gram = vectors.mT @ vectors
    torch.testing.assert_close(gram, torch.diag_embed(there), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_every_guess_at_activations_and_weights_is_sampled(name: str) -> None:
    _, snapshot = captured(name)
    for estimator in ("activity", "upstream", "weight", "finite_difference", "minibatch", "backpropagation"):
        dataset = fga.sample(snapshot, estimator, 64)
        for layer in snapshot.weights:
            known = bool(layer.taps) or estimator in ("weight", "finite_difference")
            assert bool(dataset["mse"].sel(space="weight", layer=layer.name).notnull()) == known
        assert bool(dataset["mse"].sel(space="weight", layer="all").notnull())
    exact = fga.sample(snapshot, "backpropagation", 64)
    assert float(exact["relative_bias"].sel(space="weight", layer="all")) < 1e-12
