"""The mean cosine of a whole batch: exact cases, the one-example formula, and Monte Carlo in plain NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import integrate

from tests.enumerated import Array
from theory import batch_cosine, cosine
from theory.batch_cosine import Blocks, activation_cosines, mean_cosine, separate_weight_perturbation
from theory.factors import Dense
from theory.linear_guess import Layers
from theory.quadrature import log_trapezoid
from theory.spectrum import spectrum


def random_blocks(n_blocks: int, n_modes: int, others: float, seed: int = 0) -> Blocks:
    rng = np.random.default_rng(seed)
    shape = (n_blocks, n_modes)
    return Blocks(np.exp(rng.normal(size=shape)), rng.uniform(size=shape), np.ones(shape), np.full(n_blocks, others))


@pytest.mark.parametrize("others", [0.0, 1e-6, 0.5, 100.0])
@pytest.mark.parametrize("n_modes", [1, 2, 4, 30])
def test_one_block_by_the_double_integral_is_the_single_one(n_modes: int, others: float) -> None:
    """`mean_cosine` takes the single integral for one block: the double one has to give the same, to 1e-9."""
    blocks = random_blocks(1, n_modes, others)
    slopes = blocks.others + np.sum(blocks.components * blocks.eigenvalues, axis=1)
    traces = blocks.eigenvalues.sum(1)
    values = batch_cosine._integrand(blocks, slopes, traces, batch_cosine.REACHES[-1])
    found = 2 / np.sqrt(np.pi) * log_trapezoid(values, batch_cosine.BATCH_LOG_STEP)
    expected = cosine.gaussian(blocks.eigenvalues, blocks.components, 1.0, blocks.others)[0]
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("ratio", [1.0, 0.3, 0.01])
def test_two_blocks_of_one_mode_are_an_integral_over_the_angle(ratio: float) -> None:
    """t_b = a_b z_b and y_b = z_b: the cosine Σa²z²/√(Σa²z⁴) depends on the angle of z alone."""
    squares = np.array([1.0, ratio**2])

    def exact(angle: float) -> float:
        z = np.array([np.cos(angle), np.sin(angle)])
        return float(squares @ z**2 / np.sqrt(squares @ z**4))

    edges = [0.0, *(np.pi / 2 - np.logspace(-6, 0, 13)[::-1]), np.pi / 2]
    total = sum(integrate.quad(exact, *edge, epsabs=0, epsrel=1e-11)[0] for edge in itertools.pairwise(edges))
    blocks = Blocks(np.ones((2, 1)), squares[:, None], np.ones((2, 1)), np.zeros(2))
    expected = total / (np.pi / 2) / np.sqrt(squares.sum())
    assert mean_cosine(blocks, float(squares.sum())) == pytest.approx(expected, rel=1e-9)


def test_blocks_without_slope_or_direction_do_not_count() -> None:
    blocks = random_blocks(3, 4, 0.2)
    idle = np.zeros((2, 4))
    padded = Blocks(
        np.concatenate([blocks.eigenvalues, idle, np.ones((1, 4))]),
        np.concatenate([blocks.components, np.ones((2, 4)), np.zeros((1, 4))]),
        np.concatenate([blocks.counts, idle, np.ones((1, 4))]),
        np.concatenate([blocks.others, [0.3, 0.0, 0.0]]),
    )
    assert mean_cosine(padded, 9.0) == pytest.approx(mean_cosine(blocks, 9.0), rel=1e-13)
    assert np.isnan(mean_cosine(padded, 0.0))
    assert np.isnan(mean_cosine(Blocks(idle, idle, idle, np.zeros(2)), 1.0))


def test_counts_stand_for_equal_modes() -> None:
    blocks = random_blocks(3, 2, 0.2)
    written = Blocks(
        np.repeat(blocks.eigenvalues, 5, axis=1),
        np.repeat(blocks.components / 5, 5, axis=1),
        np.ones((3, 10)),
        blocks.others,
    )
    counted = Blocks(blocks.eigenvalues, blocks.components, 5 * blocks.counts, blocks.others)
    assert mean_cosine(counted, 9.0) == pytest.approx(mean_cosine(written, 9.0), rel=1e-11)


def problem() -> tuple[list[Array], list[Array]]:
    """Gradients and dense A of two layers with three examples; one example of layer 0 has no direction."""
    rng = np.random.default_rng(3)
    matrices = [rng.normal(size=(3, 4, 3)), rng.normal(size=(3, 2, 2))]
    matrices[0][1] = 0.0
    return [rng.normal(size=(3, 4)), 0.5 * rng.normal(size=(3, 2))], matrices


def sampled_cosines(layers: Layers, n: int = 400_000) -> list[Array]:
    gradients, matrices = problem()
    rng = np.random.default_rng(4)
    directions = [np.einsum("bun,pbn->pbu", a, rng.normal(size=(n, 3, a.shape[2]))) for a in matrices]
    slopes = [np.sum(y * g, axis=2) for y, g in zip(directions, gradients, strict=True)]
    if layers == "joint":
        slopes = [slopes[0] + slopes[1]] * 2
    guesses = [(t[:, :, None] * y).reshape(n, -1) for t, y in zip(slopes, directions, strict=True)]
    truths = [gradient.ravel() for gradient in gradients]
    guesses.append(np.concatenate(guesses, axis=1))
    truths.append(np.concatenate(truths))
    return [
        guess @ truth / (np.linalg.norm(guess, axis=1) * np.linalg.norm(truth))
        for guess, truth in zip(guesses, truths, strict=True)
    ]


@pytest.mark.parametrize("layers", ["joint", "separate"])
def test_a_batch_against_monte_carlo(layers: Layers) -> None:
    """Each layer and all together within 4.5 standard errors; errors of about 1 % are seen."""
    gradients, matrices = problem()
    spectra = [spectrum(Dense(a), g) for a, g in zip(matrices, gradients, strict=True)]
    squares = [float(np.sum(g**2)) for g in gradients]
    found = activation_cosines(spectra, squares, layers=layers)
    wrong = activation_cosines(spectra, squares, layers="separate" if layers == "joint" else "joint")
    for value, other, cosines in zip(found, wrong, sampled_cosines(layers), strict=True):
        error = cosines.std() / np.sqrt(len(cosines))
        assert abs(cosines.mean() - value) < 4.5 * error
        assert abs(cosines.mean() - other) > 6 * error  # the control: the other switch is not mistaken for this one


def test_many_equal_blocks_in_many_dimensions() -> None:
    """Where ‖y‖² hardly varies from n, cos = Σt²/√(n Σt² B) = χ_B/√(n B), up to errors of the order of 1/n."""
    n, n_blocks = 2000, 40
    ones = np.ones((n_blocks, 1))
    blocks = Blocks(ones, ones, n * ones, np.zeros(n_blocks))
    chi = cosine.gamma_step(n_blocks / 2) * np.sqrt(2 / (n * n_blocks))
    assert mean_cosine(blocks, float(n_blocks)) == pytest.approx(float(chi), rel=2e-3)


def test_separate_weight_perturbation_against_monte_carlo() -> None:
    rng = np.random.default_rng(5)
    gradients = [rng.normal(size=3), 2 * rng.normal(size=2)]
    squares = [float(g @ g) for g in gradients]
    found = separate_weight_perturbation(squares, [3, 2])
    directions = [rng.normal(size=(400_000, len(g))) for g in gradients]
    guesses = [(v @ g)[:, None] * v for v, g in zip(directions, gradients, strict=True)]
    whole, truth = np.concatenate(guesses, axis=1), np.concatenate(gradients)
    cosines = whole @ truth / (np.linalg.norm(whole, axis=1) * np.linalg.norm(truth))
    assert abs(cosines.mean() - found[2]) < 4.5 * cosines.std() / np.sqrt(len(cosines))
    np.testing.assert_allclose(found[:2], cosine.isotropic([3, 2]), rtol=1e-13)
    assert abs(found[2] - float(cosine.isotropic(5))) > 0.02


def test_what_does_not_fit_is_refused() -> None:
    ones = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"others \(block,\), got the shapes \(2, 3\), \(2, 3\), \(2, 3\) and \(3,\)"):
        Blocks(ones, ones, ones, np.ones(3))
