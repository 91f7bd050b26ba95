"""The strategies draw what they say, and a property of one's own estimator takes five lines."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import fganalysis as fga
from fganalysis.assertions import strategies
from fganalysis.assertions.unbiased import assert_unbiased
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ESTIMATORS, Estimator
from fganalysis.estimators.noise import Noise


@given(snapshot=strategies.snapshots(), estimator=strategies.estimators(), generator=strategies.generators())
def test_every_estimator_drawn_guesses_on_every_snapshot_drawn(
    snapshot: Snapshot, estimator: Estimator, generator: torch.Generator
) -> None:
    estimates = estimator(snapshot, 2, generator)
    _, weights = estimates.dense(snapshot)
    assert weights.shape == (2, sum(tap.weight.numel() for tap in snapshot.taps))
    assert weights.dtype == torch.float64
    assert weights.isfinite().all()


@given(snapshot=strategies.snapshots(), seed=strategies.seeds())
@settings(max_examples=20)
def test_the_example_of_the_docstring_passes_for_a_right_estimator(snapshot: Snapshot, seed: int) -> None:
    estimator = fga.estimators.ActivityPerturbation()
    assert_unbiased(estimator, snapshot, alpha=1e-6, max_guesses=2**12, seed=seed, may_be_undecided=True)


def test_the_example_of_the_docstring_finds_where_a_wrong_estimator_is_wrong() -> None:
    """Shared noise with a batch slope is right on a batch of one example; hypothesis finds that two are too many."""
    wrong, falsified = fga.estimators.ActivityPerturbation(shared=True, slope="batch"), []

    @given(snapshot=strategies.snapshots(max_examples=2), seed=strategies.seeds())
    @settings(max_examples=50, database=None, derandomize=True, phases=[Phase.generate])
    def property_of_it(snapshot: Snapshot, seed: int) -> None:
        try:
            assert_unbiased(wrong, snapshot, alpha=1e-6, max_guesses=2**12, seed=seed, may_be_undecided=True)
        except AssertionError:
            falsified.append(snapshot.n_examples)
            raise

    with pytest.raises(AssertionError, match=r"activity.* is biased"):
        property_of_it()
    assert set(falsified) == {2}


@given(snapshot=strategies.snapshots(), estimator=strategies.estimators(), seed=strategies.seeds())
def test_guesses_scale_with_the_loss(snapshot: Snapshot, estimator: Estimator, seed: int) -> None:
    """A guess of a linear estimator scales with the loss; finite differences and trained heads do so to their order."""
    doubled = fga.capture(
        snapshot.network,
        lambda outputs, targets: 2 * snapshot.loss_fn(outputs, targets),
        snapshot.inputs,
        snapshot.targets,
    )
    once, twice = (estimator(s, 2, torch.Generator().manual_seed(seed)).dense(s)[1] for s in (snapshot, doubled))
    torch.testing.assert_close(twice, 2 * once, rtol=1e-4, atol=1e-5)


@given(network=strategies.networks(max_units=3, min_layers=1, max_layers=2), data=st.data())
def test_networks_and_batches_fit_and_are_within_bounds(network: torch.nn.Sequential, data: st.DataObject) -> None:
    linear = [module for module in network if isinstance(module, torch.nn.Linear)]
    assert 1 <= len(linear) <= 2
    assert all(max(module.in_features, module.out_features) <= 3 for module in linear)
    inputs, targets = data.draw(strategies.batches(linear[0].in_features, linear[-1].out_features, max_examples=3))
    assert 1 <= len(inputs) == len(targets) <= 3
    assert network(inputs).shape == targets.shape


@given(law=strategies.noise_laws(), generator=strategies.generators())
@settings(max_examples=10)
def test_noise_laws_have_the_moments_they_state(law: Noise, generator: torch.Generator) -> None:
    drawn = law.draw((20_000, 3), generator, torch.zeros(1, dtype=torch.float64))
    assert abs(float(drawn.square().mean()) - 1) < 0.05
    assert abs(float((drawn[:, 0] * drawn[:, 1]).square().mean()) - law.pair(3)) < 0.15


@given(data=st.data())
@settings(max_examples=20)
def test_keys_choose_the_estimators(data: st.DataObject) -> None:
    estimator = data.draw(strategies.estimators(["weight", "minibatch"]))
    assert type(estimator) in (ESTIMATORS["weight"], ESTIMATORS["minibatch"])


def test_keys_that_choose_none_are_refused() -> None:
    with pytest.raises(ValueError, match="keys has the unknown name 'guesswork'; known ones: backpropagation, weight"):
        strategies.estimators(["weight", "guesswork"])
    with pytest.raises(ValueError, match="keys must be a list of names, at least one"):
        strategies.estimators([])


def test_a_seed_drawn_is_a_generator_reproduced() -> None:
    drawn = []

    @given(generator=strategies.generators())
    @settings(max_examples=5, database=None, derandomize=True)
    def draw(generator: torch.Generator) -> None:
        drawn.append((generator.initial_seed(), float(torch.rand(1, generator=generator))))

    draw()
    for seed, number in drawn:
        assert float(torch.rand(1, generator=torch.Generator().manual_seed(seed))) == number
