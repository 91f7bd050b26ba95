import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fganalysis as fga
from fganalysis.estimators import Estimator, label
from fganalysis.estimators.guesses import ActivationEstimates, WeightEstimates
from fganalysis.measuring import blocks, drawing
from fganalysis.measuring.direct import default_block_size
from fganalysis.results import schema
from tests import law_claims, laws

SNAPSHOT = laws.tiny_snapshot((4, 6, 5, 3), n_examples=4, activation=torch.nn.ReLU)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", law_claims.claiming("blocks"), ids=label)
def test_memory_and_workers_do_not_change_the_numbers(estimator: Estimator) -> None:
    laws.assert_memory_and_workers_change_nothing(estimator, SNAPSHOT)


@pytest.mark.slow
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
    assert sizes.sum() == n_guesses and np.ptp(sizes) <= 16 and len(sizes) <= blocks.MOST_GROUPS
    assert len(sizes) > min(n_guesses // 16, blocks.MOST_GROUPS) / 2


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    n_examples=st.integers(1, 5),
    n_guesses=st.integers(2, 300),
    block_size=st.one_of(st.none(), st.integers(1, 20)),
    key=st.sampled_from(["activity", "weight"]),
)
def test_the_memory_that_a_refusal_asks_for_is_enough(
    sizes: list[int], n_examples: int, n_guesses: int, block_size: int | None, key: str
) -> None:
    network = fga.networks.mlp([*sizes, 3], bias=False, seed=0)
    inputs = torch.randn(n_examples, sizes[0], generator=torch.Generator().manual_seed(0))
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.arange(n_examples) % 3)
    with pytest.raises(ValueError, match="memory must be at least") as refusal:
        fga.sample(snapshot, key, n_guesses, memory=1, block_size=block_size)
    named = re.search(r"at least (\d+) MiB \((\d+) bytes\)", str(refusal.value))
    assert named and int(named[1]) * 2**20 == int(named[2])
    fga.sample(snapshot, key, n_guesses, memory=int(named[2]), block_size=block_size)


GROWTH = """
import resource, torch
import fganalysis as fga
network = fga.networks.mlp([64, 256, 256, 10], bias=False, seed=0)
generator = torch.Generator().manual_seed(1)
batch = torch.randn(64, 64, generator=generator), torch.randint(0, 10, (64,), generator=generator)
snapshot = fga.capture(network, torch.nn.functional.cross_entropy, *batch)
for n_guesses in (1024, 4096):
    fga.sample(snapshot, "activity", n_guesses, memory=2**26, workers=8)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured as Linux counts it")
def test_memory_does_not_grow_with_the_number_of_guesses() -> None:
    """In a process of its own. Arrays that each block left in its thread's memory added 80 MiB and more."""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", GROWTH], cwd=root, capture_output=True, text=True)
    few, many = map(int, done.stdout.split())
    assert many - few < 60 * 1024, f"{(many - few) / 1024:.0f} MiB more"


def everything(dataset: object) -> list[np.ndarray]:
    return [array.values for array in dataset.values()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", ["activity", "weight", "upstream", "local_loss", "finite_difference"])
@pytest.mark.parametrize("workers", [1, 3])
def test_autocast_and_the_default_data_type_change_nothing(key: str, workers: int) -> None:
    network = fga.networks.mlp([6, 12, 11, 10], seed=0)
    inputs = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))

    def sampled() -> list[np.ndarray]:
        snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.arange(7))
        return everything(fga.sample(snapshot, key, 64, workers=workers))

    def in_autocast() -> list[np.ndarray]:
        snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.arange(7))
        with torch.autocast("cpu"):
            return everything(fga.sample(snapshot, key, 64, workers=workers))

    reference = sampled()
    found = [in_autocast()]
    torch.set_default_dtype(torch.float64)
    try:
        found.append(sampled())
    finally:
        torch.set_default_dtype(torch.float32)
    for arrays in found:
        for ours, expected in zip(arrays, reference, strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_forward_mode_is_sampled_by_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hooks and dual levels are shared by threads."""
    asked: list[int] = []
    original = drawing.in_order

    def counted(run, n_blocks, workers, apart):  # type: ignore[no-untyped-def]
        asked.append(workers)
        return original(run, n_blocks, workers, apart)

    monkeypatch.setattr(drawing, "in_order", counted)
    for autodiff, most in (("forward", 1), ("reverse", 3)):
        snapshot = laws.tiny_snapshot(autodiff=autodiff)  # type: ignore[arg-type]
        fga.sample(snapshot, "activity", 64, workers=3)
        assert asked.pop() == most


class WithConvolution(torch.nn.Module):
    """A convolution, which is no Linear module, before one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = torch.nn.Conv1d(1, 2, 3), torch.nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(inputs.unsqueeze(1)).flatten(1))


def test_parameters_in_no_layer_are_named() -> None:
    torch.manual_seed(0)
    network, inputs = WithConvolution(), torch.randn(5, 6)
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.arange(5) % 3)
    unseen = json.loads(fga.sample(snapshot, "weight", 16).attrs[schema.NOT_LOOKED_AT])
    assert unseen == list(snapshot.untapped_parameters)
    assert json.loads(fga.sample(SNAPSHOT, "weight", 16).attrs[schema.NOT_LOOKED_AT]) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_guess_that_is_no_number_is_refused_wherever_it_comes(value: float, workers: int) -> None:
    def activities(snapshot: fga.Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        guesses = tuple(torch.ones(n_guesses, *tap.outputs.shape, dtype=torch.float64) for tap in snapshot.taps)
        if n_guesses > 1:
            guesses[1][-1, 2, 3] = value
        return ActivationEstimates(guesses)

    def weights(snapshot: fga.Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        coefficients = torch.ones(n_guesses, len(snapshot.taps), dtype=torch.float64)
        coefficients[-1, -1] = value
        directions = (torch.ones(n_guesses, *tap.weight.shape, dtype=torch.float64) for tap in snapshot.taps)
        return WeightEstimates(coefficients, tuple(directions))

    for estimator in (activities, weights):
        with pytest.raises(ValueError, match=r"made a guess that is NaN, infinite or too long to square \(seed 7\)$"):
            fga.sample(SNAPSHOT, estimator, 64, seed=7, workers=workers)


def test_a_gradient_that_nothing_can_be_compared_with_is_refused() -> None:
    inputs, network = SNAPSHOT.inputs, SNAPSHOT.network
    with pytest.raises(ValueError, match="gradient is zero"):
        fga.sample(fga.capture(network, torch.nn.functional.mse_loss, inputs, network(inputs).detach()), "activity", 64)

    def infinite_slope(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).abs().sqrt().mean()

    targets = network(inputs).detach() + torch.arange(3)
    with pytest.raises(ValueError, match="gradient"):
        fga.sample(fga.capture(network, infinite_slope, inputs, targets), "activity", 64)
