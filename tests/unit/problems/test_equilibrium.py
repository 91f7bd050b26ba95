"""Equilibrium propagation: the gradient against finite differences, the three guesses against their exact biases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import fganalysis as fga
from fganalysis.problems.equilibrium import Equilibrium, OneSided, RandomSign, Symmetric, random_weights
from tests.refusals import refusal
from theory import equilibrium as theory

ORDER = 30
ALL = {"space": "parameter", "layer": "all"}


def problem(
    sizes: tuple[int, ...] = (5, 4, 3, 2), n_examples: int = 6, gain: float = 0.35, seed: int = 0
) -> Equilibrium:
    generator = torch.Generator().manual_seed(seed + 1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weights = tuple(weight + 0.1 * drawn(*weight.shape) for weight in random_weights(sizes, gain, seed))
    return Equilibrium(weights, drawn(n_examples, sizes[0]), drawn(n_examples, sizes[-1]), tolerance=1e-15)


def energy(network: Equilibrium, states: list[Tensor], nudge: Tensor) -> Tensor:
    """F of each example, written out from the definition."""
    hidden = torch.cat(states[1:-1], 1)
    found = (hidden * torch.atanh(hidden) + torch.log1p(-hidden.square()) / 2).sum(1)
    found = found + states[-1].square().sum(1) / 2 + nudge * (states[-1] - network.targets).square().sum(1) / 2
    for weight, below, here in zip(network.weights, states, states[1:], strict=False):
        found = found - torch.einsum("bu,ui,bi->b", here, weight, torch.cat([below, torch.ones(len(below), 1)], 1))
    return found


def series(network: Equilibrium) -> dict[str, np.ndarray]:
    """What theory says of e_1 … of each layer, from the free fixed point."""
    weights, states = ([part.numpy() for part in parts] for parts in (network.weights, network.free))
    found = theory.coefficients(weights, states, network.targets.numpy(), ORDER)
    return dict(zip(network.names, found, strict=True))


@pytest.mark.parametrize("nudge", [0.0, 0.2, -0.2])
def test_a_relaxed_state_is_a_minimum_of_the_energy(nudge: float) -> None:
    network = problem()
    states = [array.clone().requires_grad_(place > 0) for place, array in enumerate(network.relaxed([nudge]))]
    at = energy(network, states, torch.tensor(nudge, dtype=torch.float64))
    slopes = torch.autograd.grad(at.sum(), states[1:])
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-13
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        moved = [states[0], *(s + 1e-3 * torch.randn(s.shape, generator=generator) for s in states[1:])]
        assert bool((energy(network, moved, torch.tensor(nudge, dtype=torch.float64)) > at).all())


@pytest.mark.parametrize("sizes", [(5, 2), (5, 4, 2), (5, 4, 3, 2), (3, 4, 4, 4, 4, 2)])
def test_the_exact_gradient_is_the_slope_of_the_loss_at_relaxed_fixed_points(sizes: tuple[int, ...]) -> None:
    network = problem(sizes, gain=0.25)
    generator = torch.Generator().manual_seed(3)

    def slope(place: int, direction: Tensor, step: float) -> float:
        ends = []
        for sign in (1, -1):
            weights = list(network.weights)
            weights[place] = weights[place] + sign * step * direction
            ends.append(replace(network, weights=tuple(weights)).loss())
        return (ends[0] - ends[1]) / (2 * step)

    for place, gradient in enumerate(network.gradient().values()):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        # Richardson: the error of order step² is taken off, what is left is of order step⁴ and rounding.
        difference = (4 * slope(place, direction, 3e-4) - slope(place, direction, 6e-4)) / 3
        assert float((gradient * direction).sum()) == pytest.approx(difference, rel=1e-9, abs=1e-11)


def test_every_entry_of_the_gradient_is_that_of_a_finite_difference_and_of_theory() -> None:
    network, step = problem((3, 2, 2), n_examples=2), 1e-5
    exact = network.gradient()
    for place, name in enumerate(network.names):
        np.testing.assert_allclose(series(network)[name][0], exact[name].numpy(), rtol=0, atol=1e-14)
        for entry in np.ndindex(*exact[name].shape):
            losses = []
            for sign in (1, -1):
                weights = [weight.clone() for weight in network.weights]
                weights[place][entry] += sign * step
                losses.append(replace(network, weights=tuple(weights)).loss())
            assert float(exact[name][entry]) == pytest.approx((losses[0] - losses[1]) / (2 * step), abs=1e-9)


def test_the_bias_that_is_measured_is_that_of_the_series() -> None:
    network = problem()
    exact, coefficients = network.gradient(), series(network)
    for beta in (0.003, 0.01, 0.03):
        laws: list[tuple[OneSided | Symmetric, Callable[[np.ndarray, float], np.ndarray]]] = [
            (OneSided(network, beta), theory.one_sided_bias),
            (Symmetric(network, beta), theory.symmetric_bias),
        ]
        for draw, law in laws:
            measured = fga.measure(draw, exact, n_guesses=64)
            for name in network.names:
                at = measured.sel(space="parameter", layer=name)
                expected = float(np.linalg.norm(law(coefficients[name], beta)))
                assert float(at["bias"]) == pytest.approx(expected, rel=1e-8, abs=1e-12)
                # The interval is that of rounding: where it is all of the noise, it is not long.
                assert float(at["bias_low"]) <= expected + 1e-12 and float(at["bias_high"]) >= expected - 1e-12
                assert float(at["bias_high"] - at["bias_low"]) < 1e-6 * float(at["gradient_norm"])
                assert float(at["variance"]) < 1e-14 * float(at["gradient_norm"]) ** 2


def test_every_guess_is_the_gradient_in_the_limit_with_its_order_and_its_leading_coefficient() -> None:
    network = problem()
    exact, coefficients = network.gradient(), series(network)
    for estimator, power in ((OneSided, 1), (Symmetric, 2)):
        for name in network.names:
            errors = []
            for beta in (2e-3, 1e-3):
                guess = estimator(network, beta).guess()[name]
                errors.append((guess - exact[name]).numpy() / beta**power)
            # Richardson: the leading coefficient is the limit of error/β^power, here to the next order but one.
            ratio = 2.0**power
            limit = (ratio * errors[1] - errors[0]) / (ratio - 1) if power == 2 else 2 * errors[1] - errors[0]
            leading = coefficients[name][power]
            np.testing.assert_allclose(limit, leading, atol=1e-3 * float(np.linalg.norm(leading)))
            assert np.linalg.norm(errors[0]) == pytest.approx(np.linalg.norm(leading), rel=0.05)
        smallest = fga.measure(estimator(network, 1e-4), exact, n_guesses=64).sel(ALL)
        assert float(smallest["relative_bias"]) < 1e-3 and float(smallest["cosine"]) > 1 - 1e-6


@pytest.mark.parametrize("beta", [0.02, 0.3])
def test_random_sign_has_the_mean_of_the_symmetric_guess_and_half_the_difference_as_noise(beta: float) -> None:
    network = problem()
    drawn = RandomSign(network, beta)(64, np.random.default_rng(0))
    plus, minus = (OneSided(network, sign * beta).guess() for sign in (1, -1))
    symmetric, coefficients = Symmetric(network, beta).guess(), series(network)
    variances = {}
    for name in network.names:
        sides = np.unique(drawn[name].numpy(), axis=0)  # Both of the two equally likely values: an enumeration.
        assert len(sides) == 2
        mean, variances[name] = theory.two_sides(*sides)
        np.testing.assert_allclose(mean, symmetric[name].numpy(), rtol=0, atol=1e-13)
        np.testing.assert_allclose(mean, (plus[name] + minus[name]).numpy() / 2, rtol=0, atol=1e-13)
        assert variances[name] == pytest.approx(float((plus[name] - minus[name]).square().sum()) / 4, rel=1e-12)
        if beta < 0.1:  # Within the circle in which the series converge.
            assert variances[name] == pytest.approx(theory.random_sign_variance(coefficients[name], beta), rel=1e-10)
    exact = network.gradient()
    measured = fga.measure(RandomSign(network, beta), exact, n_guesses=4096).sel(ALL)
    assert float(measured["variance_low"]) <= sum(variances.values()) <= float(measured["variance_high"])
    bias = float(fga.measure(Symmetric(network, beta), exact, n_guesses=64).sel(ALL)["bias"])
    assert float(measured["bias_low"]) <= bias <= float(measured["bias_high"])


def test_check_unbiased_calls_each_of_them_biased_but_for_a_bias_below_the_tolerance() -> None:
    network = problem()
    truth = fga.truth(network.gradient())
    for draw in (OneSided(network, 0.05), Symmetric(network, 0.3), RandomSign(network, 0.3)):
        assert fga.check_unbiased(draw, truth, tolerance=0.01).outcome == "biased", draw
    assert fga.check_unbiased(Symmetric(network, 0.01), truth, tolerance=0.01).outcome == "unbiased"


def test_a_quotient_by_the_wrong_nudge_is_seen() -> None:
    """The negative control: ÷ 1.01 β is another mean by 1 %, at a β where the symmetric bias is far smaller."""
    network = problem()
    exact, beta = network.gradient(), 0.003

    def wrong(n: int, generator: np.random.Generator) -> dict[str, Tensor]:
        return {name: guess / 1.01 for name, guess in Symmetric(network, beta)(n, generator).items()}

    right, off = (fga.measure(draw, exact, n_guesses=64).sel(ALL) for draw in (Symmetric(network, beta), wrong))
    assert float(right["relative_bias"]) < 1e-3 < 9e-3 < float(off["relative_bias_low"])


def test_examples_and_nudges_relax_as_each_of_them_alone() -> None:
    whole = replace(problem(), tolerance=1e-3)
    together = whole.relaxed([0.3, -0.1])
    for place, nudge in enumerate((0.3, -0.1)):
        for example in range(6):
            rows = slice(example, example + 1)
            alone = replace(whole, inputs=whole.inputs[rows], targets=whole.targets[rows]).relaxed([nudge])
            for one, other in zip(together, alone, strict=True):
                np.testing.assert_allclose(one[6 * place + example], other[0], rtol=0, atol=1e-14)


def test_a_saturated_unit_passes_no_gradient() -> None:
    network = problem()
    weights = list(network.weights)
    weights[0] = weights[0].clone()
    weights[0][1, -1] = 50.0
    network = replace(network, weights=tuple(weights))
    gradient = network.gradient()["layer_1"]
    assert float(gradient[1].abs().max()) == 0 and float(gradient.abs().max()) > 0
    np.testing.assert_allclose(series(network)["layer_1"][0], gradient.numpy(), rtol=0, atol=1e-14)


def test_random_weights_have_one_singular_value_and_no_biases() -> None:
    for weight, shape in zip(random_weights((7, 5, 6), 0.4, 0), ((5, 8), (6, 6)), strict=True):
        assert weight.shape == shape and float(weight[:, -1].abs().max()) == 0
        np.testing.assert_allclose(torch.linalg.svdvals(weight[:, :-1]), 0.4)


def relaxing(**changes: object) -> Callable[[], object]:
    return lambda: replace(problem(), **changes).gradient()  # type: ignore[arg-type]


WEIGHTS = problem().weights


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (relaxing(most_sweeps=2), "the relaxation of 6 of 6 states does not end: after 2 sweeps a unit still moves by"),
        (relaxing(tolerance=0), "tolerance must be a finite number above 0, got 0"),
        (relaxing(most_sweeps=0.5), "most_sweeps must be a whole number of at least 1, got 0.5"),
        (
            relaxing(weights=WEIGHTS[::-1]),
            "weights of layer_1 must have 6 columns, 5 units of the layer below and a bias",
        ),
        (relaxing(weights=WEIGHTS[:2]), "targets must have an entry for each of 6 examples and 3 outputs"),
        (relaxing(weights=()), "of at least one layer"),
        (relaxing(weights=3), "weights must be a tuple of the weights of each layer, got 3"),
        (relaxing(inputs=torch.zeros(6, 5)), "inputs must be a matrix in double precision"),
        (relaxing(inputs=torch.full((6, 5), torch.nan, dtype=torch.float64)), "inputs must have finite entries"),
        (relaxing(targets=None), "targets must be a matrix in double precision, a float64 tensor, got None"),
        (lambda: problem().relaxed([-1.0]), "a nudge must be a finite number above -1, got -1.0"),
        (lambda: problem().relaxed([]), "nudges must be a list of numbers, at least one"),
        (lambda: problem().energy_gradients("a"), "nudges must be a list of numbers, at least one"),  # type: ignore[arg-type]
        (lambda: OneSided(problem(), 0.0), "beta must not be 0: the limit is problem.gradient()"),
        (lambda: OneSided(3, 0.1), "problem must be what fganalysis.problems.equilibrium.Equilibrium makes, got 3"),  # type: ignore[arg-type]
        (lambda: Symmetric(problem(), 1.0), "beta must be a finite number above 0 and below 1, got 1.0"),
        (lambda: RandomSign(problem(), -0.1), "beta must be a finite number above 0 and below 1, got -0.1"),
        (lambda: RandomSign(problem(), 0.1)(4, torch.Generator()), "generator must be a numpy.random.Generator"),
        (lambda: random_weights([3], 0.5, 0), "sizes must be at least 2 whole numbers, inputs first"),
        (lambda: random_weights([3, 0], 0.5, 0), "a size must be a whole number of at least 1, got 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(call: Callable[[], object], words: str) -> None:
    said = refusal(call)
    assert said is not None and words in said


def test_a_saddle_has_no_gradient() -> None:
    """Inputs and biases of zero leave s = 0 fixed, a saddle once the weights hold each other."""
    couple = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    still = Equilibrium(
        (couple, couple, couple), torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    )
    said = refusal(still.gradient)
    assert said is not None and "of 1 of 1 examples is no strict minimum of the energy" in said
