import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis import sampling, schema
from fganalysis.estimators import Estimator, label
from fganalysis.sampling import default_block_size
from tests import law_claims, laws

SNAPSHOT = laws.tiny_snapshot((4, 6, 5, 3), n_examples=4, activation=torch.nn.ReLU)


@pytest.mark.parametrize("estimator", law_claims.claiming("blocks"), ids=label)
def test_memory_and_workers_do_not_change_the_numbers(estimator: Estimator) -> None:
    laws.assert_memory_and_workers_change_nothing(estimator, SNAPSHOT)


@pytest.mark.parametrize("estimator", law_claims.claiming("extends"), ids=label)
def test_a_longer_run_begins_with_the_shorter_one(estimator: Estimator) -> None:
    laws.assert_longer_run_extends(estimator, SNAPSHOT)


def test_seeds_steps_and_estimators_have_streams_of_their_own() -> None:
    def scalars(seed: int = 0, step: int = 0, estimator: str = "activity") -> np.ndarray:
        snapshot = fga.capture(SNAPSHOT.network, SNAPSHOT.loss_fn, SNAPSHOT.inputs, SNAPSHOT.targets, step=step)
        return fga.sample(snapshot, estimator, n_guesses=8, seed=seed)["squared_norm"].values

    reference = scalars()
    np.testing.assert_array_equal(reference, scalars())
    for other in (scalars(seed=1), scalars(step=1), scalars(estimator="preconditioned")):
        assert not np.isclose(reference[1, 0], other[1, 0]).any()


def test_nothing_touches_the_global_generators() -> None:
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    threads = torch.get_num_threads()
    fga.sample(SNAPSHOT, "activity", n_guesses=64, workers=2)
    torch.testing.assert_close(torch.random.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert torch.get_num_threads() == threads


def test_reported_numbers_follow_from_the_raw_ones() -> None:
    dataset = fga.sample(SNAPSHOT, "activity", n_guesses=400)
    gradient = dataset["gradient_norm"]
    np.testing.assert_allclose(dataset["shrinkage"], dataset["inner_product"].mean("guess") / gradient**2)
    cosines = dataset["inner_product"] / np.sqrt(dataset["squared_norm"]) / gradient
    np.testing.assert_allclose(dataset["cosine"], cosines.mean("guess"))
    np.testing.assert_allclose(dataset["cosine_q50"], cosines.median("guess"))
    for name in ("mse", "squared_bias", "variance"):
        own = dataset[name].sel(layer=list(SNAPSHOT.layers)).sum("layer")
        np.testing.assert_allclose(own, dataset[name].sel(layer="all"), rtol=1e-9)
    schema.validate(dataset)
    assert int(dataset["group_size"].sum()) == dataset.sizes["guess"] == 400


def test_backpropagation_has_neither_bias_nor_variance() -> None:
    dataset = fga.sample(SNAPSHOT, "backpropagation", n_guesses=64)
    for name in ("bias", "variance", "directional_bias", "wang2025_bias", "wang2025_variance"):
        np.testing.assert_allclose(dataset[name].sel(layer=list(SNAPSHOT.layers)), 0.0, atol=1e-14)
    for name in ("cosine", "efficiency", "best_scale", "shrinkage", "descent_probability"):
        np.testing.assert_allclose(dataset[name], 1.0, rtol=1e-12)


def test_weight_guesses_say_nothing_of_activations() -> None:
    dataset = fga.sample(SNAPSHOT, "weight", n_guesses=64)
    for name in ("bias", "variance", "cosine", "descent_probability"):
        assert np.isnan(dataset[name].sel(space="activation")).all()
        assert np.isfinite(dataset[name].sel(space="weight")).all()


def test_bad_arguments_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="n_guesses must be a whole number of at least 2, got 1"):
        fga.sample(SNAPSHOT, "activity", n_guesses=1)
    with pytest.raises(ValueError, match="unknown estimator 'guesswork'; known ones: backpropagation, weight"):
        fga.sample(SNAPSHOT, "guesswork")
    with pytest.raises(ValueError, match="memory must be at least"):
        fga.sample(SNAPSHOT, "activity", memory=10)


@pytest.mark.parametrize(("numbers", "size"), [(1, 16), (2**17, 8), (2**20, 1), (2**24, 1), (50_000, 16)])
def test_blocks_fit_the_caches(numbers: int, size: int) -> None:
    assert default_block_size(numbers) == size


@pytest.mark.parametrize("n_guesses", [64, 1040, 1600, 4096])
def test_groups_are_equal_or_a_block_apart(n_guesses: int) -> None:
    sizes = fga.sample(laws.tiny_snapshot(), "activity", n_guesses=n_guesses)["group_size"].values
    assert sizes.sum() == n_guesses and np.ptp(sizes) <= 16 and len(sizes) <= sampling.MOST_GROUPS
    assert len(sizes) > min(n_guesses // 16, sampling.MOST_GROUPS) / 2
