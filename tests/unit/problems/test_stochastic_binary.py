"""Networks of stochastic binary units: the exact gradient, and every estimator's moments by enumeration."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy import integrate, special

import fganalysis as fga
from fganalysis.problems.binary_estimators import (
    BINARY_ESTIMATORS,
    Arm,
    Concrete,
    Draws,
    GumbelStraightThrough,
    Path,
    PathSampleAnalytic,
    ScoreFunction,
    StraightThrough,
)
from fganalysis.problems.stochastic_binary import Array, StochasticBinary
from theory import stochastic_binary as theory

RNG = np.random.default_rng(0)
INPUTS, TARGETS = RNG.normal(size=(4, 2)), np.array([1.0, -1.0, 1.0, 1.0])
ALONG_PATHS: dict[str, tuple[ScoreFunction | StraightThrough | PathSampleAnalytic, Callable[..., theory.Moments]]] = {
    "score function": (ScoreFunction(), theory.score_function),
    "score function with baseline": (
        ScoreFunction(baseline=True),
        lambda *network: theory.score_function(*network, baseline=True),
    ),
    "straight-through": (StraightThrough(), theory.straight_through),
    "path sample-analytic": (PathSampleAnalytic(), theory.path_sample_analytic),
}


def network(*units: int, examples: int = 4) -> StochasticBinary:
    """Weights that are large enough for curved sigmoids."""
    found = StochasticBinary.initial(units, INPUTS[:examples], TARGETS[:examples], seed=1)
    return dataclasses.replace(found, weights=tuple(3 * weight for weight in found.weights))


def arguments(net: StochasticBinary) -> tuple[tuple[Array, ...], Array, Array]:
    return net.weights, net.inputs, net.targets


def paths(net: StochasticBinary) -> tuple[Path, Array]:
    """Every path of a network on one example, and its probability."""
    sizes = [len(weight) for weight in net.weights[:-1]]
    bits = np.array(list(itertools.product((0.0, 1.0), repeat=sum(sizes))))
    path = Path.through(net, [part[:, None] for part in np.split(bits, np.cumsum(sizes)[:-1], axis=1)])
    chances = [np.where(x == 1, p, 1 - p) for x, p in zip(path.states[1:], path.probabilities, strict=True)]
    return path, np.concatenate(chances, axis=-1).prod(-1)[:, 0]


def enumerated(
    estimator: ScoreFunction | StraightThrough | PathSampleAnalytic, net: StochasticBinary
) -> tuple[list[Array], list[Array]]:
    """Mean and variance of every entry over all paths of every example, by the estimator's code."""
    means, variances = [], []
    for x, y in zip(net.inputs, net.targets, strict=True):
        alone = dataclasses.replace(net, inputs=x[None], targets=np.array([y]))
        path, probability = paths(alone)
        guesses = estimator.along(alone, path)
        means.append([np.tensordot(probability, guess, 1) for guess in guesses])
        seconds = [np.tensordot(probability, guess**2, 1) for guess in guesses]
        variances.append([second - mean**2 for second, mean in zip(seconds, means[-1], strict=True)])
    n = len(net.inputs)
    return [sum(layer) / n for layer in zip(*means, strict=True)], [
        sum(layer) / n**2 for layer in zip(*variances, strict=True)
    ]


def assert_close(found: list[Array], expected: list[Array]) -> None:
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-10, atol=1e-13)


def test_the_loss_is_the_mean_over_all_paths() -> None:
    net = network(3, 2, 2, examples=1)
    path, probability = paths(net)
    np.testing.assert_allclose(probability.sum(), 1)
    np.testing.assert_allclose(net.loss(), probability @ net.losses(path.outputs)[:, 0], rtol=1e-12)


def test_the_gradient_is_that_of_the_loss() -> None:
    net, step = network(3, 2, 2), 1e-5
    gradient = net.gradient()
    assert list(gradient) == ["hidden_1", "hidden_2", "hidden_3", "output"]
    for index, (weight, exact) in enumerate(zip(net.weights, gradient.values(), strict=True)):
        for place in np.ndindex(weight.shape):
            losses = []
            for sign in (1, -1):
                moved = [own.copy() for own in net.weights]
                moved[index][place] += sign * step
                losses.append(dataclasses.replace(net, weights=tuple(moved)).loss())
            # Rounding 1e-16/1e-5, truncation 1e-10 times a third derivative.
            np.testing.assert_allclose((losses[0] - losses[1]) / (2 * step), exact[place], atol=1e-9)


@pytest.mark.parametrize("units", [(3,), (2, 3), (3, 2, 2)])
@pytest.mark.parametrize("name", ALONG_PATHS)
def test_moments_over_all_paths_are_those_of_theory(name: str, units: tuple[int, ...]) -> None:
    estimator, law = ALONG_PATHS[name]
    net = network(*units)
    mean, variance = enumerated(estimator, net)
    expected = law(*arguments(net))
    assert_close(mean, expected.mean)
    assert_close(variance, expected.variance)
    if name.startswith("score"):
        assert_close(mean, list(net.gradient().values()))


def test_a_law_that_is_off_is_seen() -> None:
    """The negative control: a baseline left out, and the chain rule in the place of differences."""
    net = network(2, 3)
    _, variance = enumerated(ScoreFunction(baseline=True), net)
    assert abs(variance[0] / theory.score_function(*arguments(net)).variance[0] - 1).max() > 0.1
    mean, _ = enumerated(PathSampleAnalytic(), net)
    assert abs(mean[1] - theory.straight_through(*arguments(net)).mean[1]).max() > 1e-3


def test_flips_are_exact_at_the_last_hidden_layer_and_biased_below_it() -> None:
    net = network(3, 2, 2)
    exact = list(net.gradient().values())
    flips, chain = theory.path_sample_analytic(*arguments(net)).mean, theory.straight_through(*arguments(net)).mean
    assert_close(flips[2:], exact[2:])
    assert_close(theory.path_sample_analytic(*arguments(network(4))).mean, list(network(4).gradient().values()))
    for own, other, truth in zip(flips[:2], chain[:2], exact[:2], strict=True):
        assert 1e-4 < np.linalg.norm(own - truth) < np.linalg.norm(other - truth)
    assert abs(chain[2] - exact[2]).max() > 1e-3
    assert_close(chain[3:], exact[3:])


def test_both_agree_where_nothing_is_curved() -> None:
    """With small weights a flip is a derivative: the difference falls as the square of the weights."""
    differences = []
    for scale in (0.02, 0.01):
        net = dataclasses.replace(network(3, 2), weights=tuple(scale * weight for weight in network(3, 2).weights))
        first, second = (law(*arguments(net)).mean[0] for law in (theory.path_sample_analytic, theory.straight_through))
        differences.append(np.linalg.norm(first - second) / np.linalg.norm(first))
    assert differences[0] < 2e-3
    np.testing.assert_allclose(differences[0] / differences[1], 4, rtol=0.3)


@pytest.mark.parametrize("units", [(2,), (2, 2)])
def test_arm_is_unbiased_and_its_variance_that_of_theory(units: tuple[int, ...]) -> None:
    """The mean exactly; the variance of 40 000 guesses to 4 standard errors, at most 3 percent."""
    net = network(*units)
    law, exact = theory.arm(*arguments(net)), list(net.gradient().values())
    assert_close(law.mean, exact)
    for guesses, truth, variance in zip(Arm()(net, 40_000, np.random.default_rng(2)), exact, law.variance, strict=True):
        squares = (guesses - truth) ** 2
        error = squares.std(0) / np.sqrt(len(squares))
        assert (abs(squares.mean(0) - variance) < 4 * error).all()
        assert (error < 0.03 * variance).all()


@pytest.mark.parametrize("estimator", [GumbelStraightThrough(0.7), Concrete(0.7)], ids=lambda own: own.name)
def test_relaxed_units_against_an_integral(estimator: GumbelStraightThrough | Concrete) -> None:
    """One unit, one example: the mean over U by quadrature against 40 000 guesses, to 4 standard errors."""
    net = network(1, examples=1)
    (hidden, output), (x, y) = net.weights, (net.inputs[0], net.targets[0])
    a = float(hidden[0, :-1] @ x + hidden[0, -1])

    def guess(uniform: float) -> float:
        soft = special.expit((a - special.logit(uniform)) / 0.7)
        unit = soft if isinstance(estimator, Concrete) else float(soft > 0.5)
        slope = -y * special.expit(-y * (output[0, 0] * unit + output[0, 1]))
        return float(slope * output[0, 0] * soft * (1 - soft) / 0.7)

    expected = integrate.quad(guess, 0, 1, points=[special.expit(a)])[0]
    found = estimator(net, 40_000, np.random.default_rng(3))[0][:, 0, -1]
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - expected) < 4 * error < 0.03 * abs(expected)


def test_measure_gives_the_bias_and_the_variance_of_theory() -> None:
    """|z| ≤ 4 for every layer; the bias of straight-through is then known to a few percent."""
    net = network(3, 2, 2)
    for estimator, law in ALONG_PATHS.values():
        measured = fga.measure(Draws(net, estimator), net.gradient(), n_guesses=4096).sel(space="parameter")
        expected = law(*arguments(net))
        truths = list(net.gradient().values())
        squares = [float(np.sum((m - t) ** 2)) for m, t in zip(expected.mean, truths, strict=True)]
        for name, values in (("squared_bias", squares), ("variance", [float(v.sum()) for v in expected.variance])):
            z = (measured[name] - [*values, sum(values)]) / measured[f"{name}_se"]
            assert (abs(z) <= 4).all(), (estimator.name, name)


@pytest.mark.parametrize("estimator", BINARY_ESTIMATORS, ids=lambda own: own.name)
def test_verdicts(estimator: ScoreFunction) -> None:
    """The relative bias of straight-through is 0.03 here, that of the path sample-analytic guess 0.0004."""
    net = network(3, 2)
    verdict = fga.check_unbiased(Draws(net, estimator), fga.truth(net.gradient()), tolerance=0.02)
    unbiased = isinstance(estimator, ScoreFunction | Arm | PathSampleAnalytic)
    assert verdict.outcome == ("unbiased" if unbiased else "biased")


def test_names_differ_and_settings_are_refused() -> None:
    assert len({estimator.name for estimator in BINARY_ESTIMATORS}) == len(BINARY_ESTIMATORS)
    with pytest.raises(ValueError, match="temperature must be a finite number above 0, got 0"):
        Concrete(0)
    with pytest.raises(ValueError, match="temperature must be a finite number above 0, got -1"):
        GumbelStraightThrough(-1)
    with pytest.raises(ValueError, match="baseline must be True or False, got 'no'"):
        ScoreFunction("no")  # type: ignore[arg-type]


def test_draws_refuse_what_is_no_network_estimator_number_or_generator() -> None:
    net = network(2)
    for wrong in (Arm, "arm", None):
        with pytest.raises(ValueError, match="estimator must be an instance of an estimator, such as Arm"):
            Draws(net, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="network must be a StochasticBinary, got 'net'"):
        Draws("net", Arm())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_guesses must be a whole number of at least 1, got 0"):
        Draws(net, Arm())(0, RNG)
    with pytest.raises(ValueError, match=r"generator must be a numpy.random.Generator, got None"):
        Draws(net, Arm())(1, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.array([0.0, 1, 1, 1])}, "targets must be 1 or −1 for each of the 4 examples"),
        ({"targets": np.ones(3)}, "targets must be 1 or −1 for each of the 4 examples"),
        ({"inputs": np.full((4, 2), np.nan)}, "inputs has NaN or infinite entries"),
        ({"inputs": np.ones((4, 3))}, r"weights\[0\] must have 3 columns .* and one for the bias, got 3"),
        ({"inputs": [[1.0, 2.0]]}, "inputs must be a NumPy array of real numbers, got"),
        ({"weights": (np.ones((1, 3)),)}, "weights must be those of a hidden layer and the output at least, got 1"),
        ({"weights": (np.ones((2, 3)), np.ones((2, 3)))}, "the last weights must have one row, .* got 2"),
        ({"weights": (np.ones(3), np.ones((1, 3)))}, r"weights\[0\] must have 2 dimensions, none empty"),
        ({"weights": 3}, "weights must be a tuple of arrays"),
    ],
)
def test_wrong_networks_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(network(2), **change)  # type: ignore[arg-type]


def test_layers_of_too_many_units_have_no_exact_gradient_but_draws() -> None:
    net = StochasticBinary.initial([13], INPUTS, TARGETS)
    with pytest.raises(ValueError, match="for 12 units at most, got 13: give the draws of an unbiased estimator"):
        net.gradient()
    assert Arm()(net, 2, RNG)[0].shape == (2, 13, 3)
    with pytest.raises(ValueError, match=r"units\[1\] must be a whole number of at least 1, got 0"):
        StochasticBinary.initial([2, 0], INPUTS, TARGETS)
