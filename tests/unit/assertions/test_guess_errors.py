"""The bookkeeping of directions: what each is, what it weighs, and that none looks at the guesses it is tested on."""

import tracemalloc

import numpy as np
import pytest

from fganalysis.assertions.guess_errors import LEARNED, GuessErrors, Place, bytes_needed

RNG_SEED = 2
SHAPES = [(3, 4), (3, 2)]
N_BLOCKS, BLOCK_SIZE = 64, 5


def made(space: str = "activation") -> tuple[GuessErrors, list[np.ndarray], np.random.Generator]:
    rng = np.random.default_rng(RNG_SEED)
    gradients = [rng.standard_normal(shape) for shape in SHAPES]
    return GuessErrors(space, ("0", "2"), gradients, N_BLOCKS, precision=1e-15), gradients, rng


def look(errors: GuessErrors, sums_of_errors: np.ndarray, gradients: list[np.ndarray]) -> None:
    """Takes in a look of blocks of guesses whose errors add up to these, (block, number)."""
    whole = np.concatenate([gradient.ravel() for gradient in gradients])
    errors.start(BLOCK_SIZE)
    for block, sums in enumerate(sums_of_errors):
        errors.take(block, sums + BLOCK_SIZE * whole)
    errors.finish()


def places_of(errors: GuessErrors) -> list[Place]:
    return [errors.place(direction) for direction in range(len(errors.evidence.total))]


@pytest.mark.parametrize("space", ["activation", "weight"])
def test_every_direction_has_a_name_a_weight_and_its_component(space: str) -> None:
    errors, gradients, rng = made(space)
    places = places_of(errors)
    assert len(places) == len({place.name for place in places})
    with pytest.raises(ValueError, match="there is no direction"):
        errors.place(len(places))
    assert np.exp(errors.evidence.log_weights).sum() == pytest.approx(1)
    looks = rng.standard_normal((2, N_BLOCKS, 18)) + 0.3
    look(errors, looks[0], gradients)
    look(errors, looks[1], gradients)
    # S over its reach is the mean error's component along the direction, of unit length, in units of a power of two.
    unit = np.linalg.norm(np.concatenate([gradient.ravel() for gradient in gradients])) / errors.norm
    assert np.log2(unit) == pytest.approx(round(np.log2(unit)))
    mean = looks[1].sum(0) / (N_BLOCKS * BLOCK_SIZE) / unit
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
        errors, gradients, rng = made()
        looks = rng.standard_normal((2, N_BLOCKS, 18))
        look(errors, looks[0], gradients)
        look(errors, sign * looks[1], gradients)
        seen.append(errors.evidence.total[-len(LEARNED) :])
    np.testing.assert_allclose(seen[0], -seen[1])


def test_the_first_look_is_no_evidence() -> None:
    errors, gradients, rng = made()
    look(errors, rng.standard_normal((N_BLOCKS, 18)) + 100, gradients)
    assert errors.evidence.log() == pytest.approx(0)


def test_a_zero_of_the_gradient_is_no_direction_and_breaks_nothing() -> None:
    errors, _, rng = made()
    gradients = [np.zeros((3, 4)), np.ones((3, 2))]
    dead = GuessErrors("activation", ("0", "2"), gradients, N_BLOCKS, precision=1e-15)
    for _ in range(2):
        sums = rng.standard_normal((N_BLOCKS, 18))
        sums[:, :12] = 0
        look(dead, sums, gradients)
    assert np.isfinite(dead.evidence.log()) and dead.evidence.log() < np.log(100)
    assert errors.n_guesses == 0 and dead.n_guesses == 2 * N_BLOCKS * BLOCK_SIZE


def test_along_gradient_is_the_scale_of_the_mean_guess() -> None:
    errors, gradients, rng = made()
    whole = np.concatenate([gradient.ravel() for gradient in gradients])
    for _ in range(3):
        look(errors, BLOCK_SIZE * 0.25 * whole + rng.standard_normal((N_BLOCKS, 1)) * whole, gradients)
    scale, deviation = errors.along_gradient()
    assert scale == pytest.approx(1.25, abs=4 / np.sqrt(3 * N_BLOCKS) / BLOCK_SIZE)
    assert deviation == pytest.approx(1 / np.sqrt(BLOCK_SIZE), rel=0.4)


@pytest.mark.parametrize("exponent", [-900, -80, 80, 900])
def test_the_scale_of_the_gradient_changes_no_number(exponent: int) -> None:
    """Powers of two, so that not even a rounding error differs."""
    found = []
    for power in (0, exponent):
        own, gradients, rng = made()
        gradients = [np.ldexp(gradient, power) for gradient in gradients]
        own = GuessErrors("activation", ("0", "2"), gradients, N_BLOCKS, precision=1e-15)
        for _ in range(3):
            look(own, np.ldexp(rng.standard_normal((N_BLOCKS, 18)), power), gradients)
        found.append(
            (own.bound(0.01), own.along_gradient(), own.rounding(), own.evidence.per_direction(own.rounding()))
        )
    np.testing.assert_equal(found[0], found[1])


def run(space: str, gradients: list[np.ndarray], sums: np.ndarray) -> None:
    """Three looks, and everything that is asked of them."""
    errors = GuessErrors(space, ("0", "2"), gradients, N_BLOCKS, precision=1e-15)
    for _ in range(3):
        errors.start(BLOCK_SIZE)
        for block in range(N_BLOCKS):
            errors.take(block, sums[block % 4].copy())
        errors.finish()
        errors.evidence.least_bias(0.01)
        errors.bound(0.01)
        errors.place(len(errors.evidence.total) - 3)


@pytest.mark.parametrize("space", ["activation", "weight"])
def test_memory_is_what_is_told(space: str) -> None:
    """Within the bytes told, at their peak, and above three quarters of them."""
    shapes = [(50, 400), (50, 100)]
    rng = np.random.default_rng(RNG_SEED)
    gradients = [rng.standard_normal(shape) for shape in shapes]
    sums = rng.standard_normal((4, sum(gradient.size for gradient in gradients)))
    run(space, gradients, sums)  # What is imported on first use is not counted.
    tracemalloc.start()
    run(space, gradients, sums)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.75 < peak / bytes_needed(space, shapes, N_BLOCKS) <= 1
