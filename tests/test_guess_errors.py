"""The bookkeeping of directions: what each is, what it weighs, and that none looks at the guesses it is tested on."""

import numpy as np
import pytest

from fganalysis.guess_errors import LEARNED, GuessErrors

RNG_SEED = 2
SHAPES = [(3, 4), (3, 2)]
N_BLOCKS, BLOCK_SIZE = 64, 5


def made(space: str = "activation") -> tuple[GuessErrors, list[np.ndarray], np.random.Generator]:
    rng = np.random.default_rng(RNG_SEED)
    gradients = [rng.standard_normal(shape) for shape in SHAPES]
    return GuessErrors(space, ("0", "2"), gradients, precision=1e-15), gradients, rng


@pytest.mark.parametrize("space", ["activation", "weight"])
def test_every_direction_has_a_name_a_weight_and_its_component(space: str) -> None:
    errors, gradients, rng = made(space)
    places = errors.places()
    assert len(places) == len(errors.evidence.total) == len({place.name for place in places})
    assert np.exp(errors.evidence.log_weights).sum() == pytest.approx(1)
    looks = rng.standard_normal((2, N_BLOCKS, 18)) + 0.3
    errors.add(looks[0], BLOCK_SIZE)
    errors.add(looks[1], BLOCK_SIZE)
    # S over its reach is the mean error's component along the direction, of unit length.
    mean = looks[1].sum(0) / (N_BLOCKS * BLOCK_SIZE)
    along = dict(zip([place.name for place in places], errors.evidence.total / errors.evidence.reach, strict=True))
    whole = np.concatenate([gradient.ravel() for gradient in gradients])
    assert along["along the gradient"] == pytest.approx(mean @ whole / np.linalg.norm(whole))
    row, column = ("example", "unit") if space == "activation" else ("unit", "input")
    assert along[f"in layer '2', {row} 1, {column} 0"] == pytest.approx(mean[12:].reshape(3, 2)[1, 0])
    share = gradients[1][:, 1]
    expected = mean[12:].reshape(3, 2)[:, 1] @ share / np.linalg.norm(share)
    assert along[f"along the gradient at {column} 1 of layer '2'"] == pytest.approx(expected)
    if space == "activation":
        share = np.concatenate([gradients[0][2], gradients[1][2]])
        of_example = np.concatenate([mean[:12].reshape(3, 4)[2], mean[12:].reshape(3, 2)[2]])
        expected = of_example @ share / np.linalg.norm(share)
        assert along["along the gradient of example 2"] == pytest.approx(expected)


def test_learned_directions_come_from_the_looks_before() -> None:
    """With the second look's errors negated, what the learned directions saw of it is negated: they did not look."""
    seen = []
    for sign in (1, -1):
        errors, _, rng = made()
        looks = rng.standard_normal((2, N_BLOCKS, 18))
        errors.add(looks[0], BLOCK_SIZE)
        errors.add(sign * looks[1], BLOCK_SIZE)
        seen.append(errors.evidence.total[-len(LEARNED) :])
    np.testing.assert_allclose(seen[0], -seen[1])


def test_the_first_look_is_no_evidence() -> None:
    errors, _, rng = made()
    errors.add(rng.standard_normal((N_BLOCKS, 18)) + 100, BLOCK_SIZE)
    assert errors.evidence.log() == pytest.approx(0)


def test_a_zero_of_the_gradient_is_no_direction_and_breaks_nothing() -> None:
    errors, _, rng = made()
    dead = GuessErrors("activation", ("0", "2"), [np.zeros((3, 4)), np.ones((3, 2))], precision=1e-15)
    for _ in range(2):
        sums = rng.standard_normal((N_BLOCKS, 18))
        sums[:, :12] = 0
        dead.add(sums, BLOCK_SIZE)
    assert np.isfinite(dead.evidence.log()) and dead.evidence.log() < np.log(100)
    assert errors.n_guesses == 0 and dead.n_guesses == 2 * N_BLOCKS * BLOCK_SIZE


def test_along_gradient_is_the_scale_of_the_mean_guess() -> None:
    errors, gradients, rng = made()
    whole = np.concatenate([gradient.ravel() for gradient in gradients])
    for _ in range(3):
        errors.add(BLOCK_SIZE * 0.25 * whole + rng.standard_normal((N_BLOCKS, 1)) * whole, BLOCK_SIZE)
    scale, deviation = errors.along_gradient()
    assert scale == pytest.approx(1.25, abs=4 / np.sqrt(3 * N_BLOCKS) / BLOCK_SIZE)
    assert deviation == pytest.approx(1 / np.sqrt(BLOCK_SIZE), rel=0.4)
