"""Exact moments by enumeration: the laws that stand in, the enumeration itself, and what it refuses."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ActivityPerturbation, Backpropagation, Estimator, WeightPerturbation
from fganalysis.estimators.guesses import ActivationEstimates, Estimates, WeightEstimates
from fganalysis.estimators.noise import GAUSSIAN, Noise
from fganalysis.testing import Enumeration, exact_moments, signs, three_points
from tests import laws
from tests.regression import regression_snapshot

LAWS = {"signs": signs, "three points": three_points}
TINY = laws.tiny_snapshot((2, 2, 2), n_examples=1)
LIKE = torch.zeros((), dtype=torch.float64)


def all_points(law: Enumeration, n_coordinates: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every point of the product space, (point, coordinate), and its probability."""
    n_points = len(law.values) ** n_coordinates
    return law.draw((n_points, n_coordinates), torch.Generator(), LIKE), law.weights(n_points, n_coordinates)


@pytest.mark.parametrize("make", LAWS.values(), ids=LAWS)
def test_a_law_has_the_moments_that_it_states(make: Callable[[], Enumeration]) -> None:
    law = make()
    values, probabilities = np.array(law.values), np.array(law.probabilities)
    moments = [float(probabilities @ values**power) for power in range(6)]
    np.testing.assert_allclose(moments, [1, 0, 1, 0, law.fourth(3), 0], atol=1e-15)
    assert law.pair(3) == 1.0
    assert isinstance(law, Noise)


def test_three_points_are_normal_up_to_the_fifth_moment() -> None:
    assert three_points().fourth(1) == GAUSSIAN.fourth(1) == 3.0
    values, probabilities = np.array(three_points().values), np.array(three_points().probabilities)
    assert float(probabilities @ values**6) == pytest.approx(9.0)  # 15 for a normal: the sixth is another.


@pytest.mark.parametrize("make", LAWS.values(), ids=LAWS)
def test_every_point_comes_once_with_its_probability(make: Callable[[], Enumeration]) -> None:
    law = make()
    points, weights = all_points(law, 3)
    found = {tuple(point): weight for point, weight in zip(points.tolist(), weights.tolist(), strict=True)}
    expected = {
        tuple(law.values[i] for i in index): np.prod([law.probabilities[i] for i in index])
        for index in itertools.product(range(len(law.values)), repeat=3)
    }
    assert found.keys() == expected.keys() and len(points) == len(expected)
    for point, weight in expected.items():
        assert found[point] == pytest.approx(weight)
    assert float(weights.sum()) == pytest.approx(1.0)


def test_later_draws_are_the_later_coordinates_of_the_same_points() -> None:
    law = three_points()
    first = law.draw((81, 1, 1), torch.Generator(), LIKE)
    second = law.draw((81, 3), torch.Generator(), LIKE)
    assert law.drawn == 4
    together, _ = all_points(three_points(), 4)
    torch.testing.assert_close(torch.cat([first.flatten(1), second], dim=1), together)


def test_a_draw_can_begin_at_any_point() -> None:
    together, weights = all_points(signs(), 5)
    law = signs()
    law.first = 7
    torch.testing.assert_close(law.draw((6, 5), torch.Generator(), LIKE), together[7:13])
    torch.testing.assert_close(law.weights(6, 5), weights[7:13])


@pytest.mark.parametrize("make", LAWS.values(), ids=LAWS)
def test_moments_are_those_of_a_guess_written_out(make: Callable[[], Enumeration]) -> None:
    """ĝ = (ε·g) ε on one example, every ε in turn, in NumPy."""
    moments = exact_moments(ActivityPerturbation(), TINY, make)
    gradient, _ = laws.exact_gradient(TINY)
    noise, weights = (array.numpy() for array in all_points(make(), 4))
    guesses = (noise @ gradient.numpy())[:, None] * noise
    mean = weights @ guesses
    covariance = (guesses * weights[:, None]).T @ guesses - np.outer(mean, mean)
    assert moments.activation_mean is not None and moments.activation_covariance is not None
    np.testing.assert_allclose(moments.activation_mean, mean, atol=1e-14)
    np.testing.assert_allclose(moments.activation_covariance, covariance, atol=1e-14)
    assert moments.n_points == len(noise)
    # One example: each tap's weight guess is the outer product with its input.
    to_weights = block_diag(*(np.kron(np.eye(tap.units), tap.inputs.numpy().T) for tap in TINY.taps))
    np.testing.assert_allclose(moments.weight_mean, to_weights @ mean, atol=1e-14)
    np.testing.assert_allclose(moments.weight_covariance, to_weights @ covariance @ to_weights.T, atol=1e-14)


def test_parts_of_an_enumeration_add_up() -> None:
    """More than one part of 4096 points, the last one not full, against all at once."""
    snapshot = laws.tiny_snapshot((1, 2, 2), n_examples=2)
    moments = exact_moments(ActivityPerturbation(), snapshot, three_points)
    assert moments.n_points == 3**8 == 4096 + 2465
    law = three_points()
    with torch.no_grad():
        guesses, _ = ActivityPerturbation(noise=law)(snapshot, 3**8, torch.Generator()).dense(snapshot)
    assert guesses is not None
    torch.testing.assert_close(moments.activation_mean, law.weights(3**8, 8) @ guesses, rtol=0, atol=1e-13)


def test_weight_guesses_have_no_activation_moments() -> None:
    moments = exact_moments("weight", laws.tiny_snapshot((1, 1, 2), n_examples=2), signs)
    assert moments.activation_mean is None and moments.activation_covariance is None
    assert moments.weight_mean.shape == (3,) and moments.weight_covariance.shape == (3, 3)


def test_an_enumeration_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^activity: the enumeration has 3\^4 points, above max_points=80"):
        exact_moments(ActivityPerturbation(), TINY, max_points=80)
    assert exact_moments(ActivityPerturbation(), TINY, max_points=81).n_points == 81
    with pytest.raises(ValueError, match=r"the enumeration has 3\^8000 points, above max_points=2097152"):
        exact_moments(WeightPerturbation(), laws.tiny_snapshot((40, 160, 10), n_examples=1))


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown estimator 'nonsense'"):
        exact_moments("nonsense", TINY)


def test_a_guess_without_noise_is_its_own_mean() -> None:
    moments = exact_moments(Backpropagation(), TINY)
    activation, weight = laws.exact_gradient(TINY)
    torch.testing.assert_close(moments.activation_mean, activation)
    torch.testing.assert_close(moments.weight_mean, weight)
    assert float(moments.weight_covariance.abs().max()) < 1e-15
    assert moments.n_points == 1


@dataclass(frozen=True)
class DrawsInSecret:
    """Random, without a field that says so."""

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
        estimates = ActivityPerturbation()(snapshot, n_guesses, generator)
        assert isinstance(estimates, ActivationEstimates)
        return estimates


def test_noise_that_cannot_be_injected_is_refused() -> None:
    with pytest.raises(ValueError, match="DrawsInSecret draws noise but has no `noise` field to inject a law into"):
        exact_moments(DrawsInSecret(), TINY)


def rarely_random(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
    """The gradient over p with p = .03: two calls are alike nearly always."""
    hits = (torch.rand(n_guesses, 1, generator=generator, dtype=torch.float64) < 0.03).double() / 0.03
    gradients = snapshot.weight_gradients
    return WeightEstimates(hits.expand(-1, len(gradients)), tuple(g.expand(n_guesses, *g.shape) for g in gradients))


def drawn_elsewhere(snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
    return rarely_random(snapshot, n_guesses, torch.default_generator)


@dataclass(frozen=True)
class Injectable:
    """Activity perturbation with noise of whatever shape ``draw`` gives it."""

    draw: Callable[[Noise, int, torch.Size, torch.Generator], torch.Tensor]
    noise: Any = GAUSSIAN

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        directions = [self.draw(self.noise, n_guesses, tap.outputs.shape, generator) for tap in snapshot.taps]
        slopes = snapshot.slopes(directions).squeeze(1)
        return ActivationEstimates(tuple(slopes.unsqueeze(-1) * direction for direction in directions))


def with_dropout(noise: Noise, n: int, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    keep = torch.rand(n, 1, 1, generator=generator, dtype=torch.float64) < 0.5
    return noise.draw((n, *shape), generator, LIKE) * keep * 2


def example_first(noise: Noise, n: int, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    return noise.draw((shape[0], n, shape[1]), generator, LIKE).transpose(0, 1)


def once_for_all(noise: Noise, n: int, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    return noise.draw((1, *shape), generator, LIKE).expand(n, -1, -1)


def more_for_many(noise: Noise, n: int, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    return noise.draw((n, *shape, min(n, 2)), generator, LIKE)[..., 0]


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (rarely_random, "rarely_random draws noise but has no `noise` field to inject"),
        (drawn_elsewhere, "drawn_elsewhere draws noise but has no `noise` field to inject"),
        (Injectable(with_dropout), r"Injectable\(.*\) draws from the generator itself, which no law from its `noise`"),
        (Injectable(example_first), r"noise of shape \(2, 1, 1\) was drawn for 1 guesses: they must come first"),
        (Injectable(once_for_all), r"noise of shape \(1, 2, 1\) was drawn for 16 guesses: they must come first"),
        (Injectable(more_for_many), r"Injectable\(.*\) drew 4 numbers a guess in one call and 8 in another"),
    ],
)
def test_an_enumeration_that_would_not_be_exact_is_refused(estimator: Estimator, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        exact_moments(estimator, regression_snapshot((1, 1, 1), n_examples=2), signs)


def test_what_is_no_estimator_or_law_is_refused() -> None:
    class Plain:
        noise = GAUSSIAN

        def __call__(self, *arguments: Any) -> None: ...

    wrong: dict[str, tuple[Any, Any]] = {
        r"Injectable\(.*\) must be a dataclass with a noise law in its `noise` field": (
            Injectable(with_dropout, 0.1),
            signs,
        ),
        "Plain must be a dataclass with a noise law": (Plain(), signs),
        "law must be a function that makes an Enumeration, such as signs": (ActivityPerturbation(), signs()),
        "law must be a function that makes an Enumeration, such": (ActivityPerturbation(), fga.noise.Rademacher),
    }
    for message, (estimator, law) in wrong.items():
        with pytest.raises(ValueError, match=message):
            exact_moments(estimator, TINY, law)
    with pytest.raises(ValueError, match="must be a key or an instance, got the class ActivityPerturbation"):
        exact_moments(ActivityPerturbation, TINY, signs)


def test_what_is_asserted_in_test_suites_is_found_here() -> None:
    assert fga.testing.check_unbiased is fga.check_unbiased
    for name in fga.testing.__all__:
        assert callable(getattr(fga.testing, name)), name
    with pytest.raises(AttributeError, match=r"module 'fganalysis.testing' has no attribute 'nonsense'"):
        getattr(fga.testing, "non" + "sense")


@pytest.mark.slow
def test_hypothesis_is_imported_when_strategies_are_asked_for() -> None:
    program = (
        "import sys, warnings; warnings.simplefilter('ignore'); import fganalysis.testing as t; "
        "before = 'hypothesis' in sys.modules; t.strategies; print(before, 'hypothesis' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
