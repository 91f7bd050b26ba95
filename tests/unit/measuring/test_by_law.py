"""sample(…, by_law=True): what it may be asked for, what its result says, and its moments beside the closed forms.

tests/statistics/test_by_law.py compares the whole law with that of the estimators' guesses.
"""

import json
import re
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.estimators import (
    ESTIMATORS,
    Averaged,
    FiniteDifference,
    MultiTangent,
    Subsampled,
    WeightPerturbation,
    from_function,
    label,
)
from fganalysis.estimators.guesses import WeightEstimates
from fganalysis.estimators.noise import GAUSSIAN, ON_SPHERE, RADEMACHER, Gaussian
from fganalysis.estimators.tangents_of_weights import Tangents
from fganalysis.measuring.blocks import Seeds
from fganalysis.measuring.by_law import BYTES_PER_TRIPLE, block_size, groups_of, law_of, raw_numbers
from fganalysis.measuring.drawn_lengths import Exact, Sum, gram_of_errors, guesses, numbers_held
from fganalysis.metrics import Metric, mean_of_groups, withdraw_metric
from fganalysis.results import schema, store
from tests import laws

SNAPSHOT = laws.tiny_snapshot((4, 6, 5, 3), n_examples=4)
COVERED = [
    WeightPerturbation(),
    WeightPerturbation(layers="separate"),
    WeightPerturbation(ON_SPHERE),
    WeightPerturbation(ON_SPHERE, layers="separate"),
    MultiTangent(4),
    MultiTangent(4, noise=ON_SPHERE, layers="separate"),
    MultiTangent(4, "orthogonal"),
    MultiTangent(4, "orthogonal", layers="separate"),
    MultiTangent(4, "orthogonal", ON_SPHERE),
    MultiTangent(4, "orthogonal", ON_SPHERE, "separate"),
    Averaged(WeightPerturbation(), 3),
    Averaged(MultiTangent(4, "orthogonal"), 3),
    FiniteDifference(),
]
covered = pytest.mark.parametrize("estimator", COVERED, ids=label)


def test_moments_agree_with_the_closed_forms() -> None:
    tree = fga.diagnose(SNAPSHOT, COVERED, n_guesses=50_000, seed=1, by_law=True, subspace=False)
    scores = fga.z_scores(tree).sel(space="weight")
    n_compared = 0
    for name, z in scores.data_vars.items():
        if "space" in tree["measured"][name].dims:
            known = z.values[np.isfinite(z.values)]
            n_compared += known.size
            assert np.abs(known).max(initial=0) <= 4, (name, z)
            assert not np.isinf(z.values).any(), (name, z)
    assert n_compared > 200


@covered
def test_a_longer_run_begins_with_the_shorter_one(estimator: Any) -> None:
    short, long = (fga.sample(SNAPSHOT, estimator, n, by_law=True) for n in (70, 9000))
    for name in ("inner_product", "squared_norm"):
        np.testing.assert_array_equal(short[name], long[name].isel(guess=slice(70)))


@covered
def test_memory_and_workers_do_not_change_the_numbers(estimator: Any) -> None:
    kept = 2 * 2 * 4 * 8 * 9000
    one, several = (
        fga.sample(SNAPSHOT, estimator, 9000, by_law=True, workers=workers, memory=memory)
        for workers, memory in ((1, kept + 2**24), (4, 2**30))
    )
    xr.testing.assert_identical(one, several)


def test_seeds_and_estimators_have_streams_of_their_own_and_share_none_with_direct_guesses() -> None:
    def scalars(seed: int, estimator: Any) -> np.ndarray:
        return fga.sample(SNAPSHOT, estimator, 16, seed, by_law=True)["squared_norm"].sel(space="weight").values

    np.testing.assert_array_equal(scalars(0, "weight"), scalars(0, "weight"))
    assert not np.isclose(scalars(0, "weight"), scalars(1, "weight")).any()
    assert not np.isclose(scalars(0, "weight"), scalars(0, "finite_difference")).any()
    seeds = Seeds.of(0, SNAPSHOT, "weight")
    assert seeds.named("by law").name != seeds.name


def test_nothing_touches_the_global_generators() -> None:
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    fga.sample(SNAPSHOT, "weight", n_guesses=64, by_law=True)
    torch.testing.assert_close(torch.random.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


def test_a_result_has_the_variables_of_direct_guesses_and_says_how_it_was_made(tmp_path: Path) -> None:
    direct, by_law = (fga.sample(SNAPSHOT, "weight", 4096, by_law=flag) for flag in (False, True))
    assert set(by_law.data_vars) == set(direct.data_vars)
    assert dict(by_law.sizes) == dict(direct.sizes)
    assert "by_law" not in direct.attrs
    assert set(by_law.attrs) - set(direct.attrs) == {schema.BY_LAW, schema.METRICS_LEFT_OUT}
    assert by_law.attrs["by_law"] == 1
    assert json.loads(by_law.attrs["metrics_left_out"]) == []
    for name in ("bias", "variance", "inner_product", "gram"):
        assert np.isnan(by_law[name].sel(space="activation")).all()
        assert np.isfinite(by_law[name].sel(space="weight")).all()
    assert np.isnan(by_law["wang2025_bias"]).all()
    store.write(by_law, tmp_path / "by_law.nc")
    read = store.read(tmp_path / "by_law.nc").to_dataset()
    xr.testing.assert_equal(read, by_law)
    assert read.attrs["by_law"] == 1


def test_central_differences_are_marked_as_a_limit() -> None:
    assert "epsilon to 0" in fga.sample(SNAPSHOT, "finite_difference", 64, by_law=True).attrs["limit"]
    assert "limit" not in fga.sample(SNAPSHOT, "weight", 64, by_law=True).attrs


class OnlyAName(WeightPerturbation):
    pass


class Longer(WeightPerturbation):
    def __call__(self, snapshot: Any, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        found = super().__call__(snapshot, n_guesses, generator)
        return WeightEstimates(2 * found.coefficients, found.directions)


class OtherGaussian(Gaussian):
    """A law with the moments of its parent, and who knows what draw."""


def any_function(network: Any, loss_fn: Any, inputs: Any, targets: Any, generator: Any) -> dict[str, Any]:
    return {}


REFUSED = [
    *(cls() for key, cls in ESTIMATORS.items() if key not in ("weight", "multi_tangent", "finite_difference")),
    WeightPerturbation(shared=False),
    WeightPerturbation(RADEMACHER),
    WeightPerturbation(OtherGaussian()),
    MultiTangent(2, noise=RADEMACHER),
    FiniteDifference(central=False),
    Averaged("activity", 2),
    Averaged(Longer(), 2),
    Subsampled("weight", 2),
    Longer(),
    from_function(any_function),
]


@pytest.mark.parametrize("estimator", REFUSED, ids=label)
def test_estimators_without_such_a_law_are_refused_by_name(estimator: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(label(estimator)) + r" cannot be sampled by law.*by_law=False$"):
        fga.sample(SNAPSHOT, estimator, 64, by_law=True)


def test_a_subclass_with_another_call_does_not_keep_the_law() -> None:
    assert law_of(OnlyAName()) == law_of(WeightPerturbation())
    with pytest.raises(ValueError, match="not declared"):
        law_of(Longer())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by_law": "yes"}, "by_law must be True or False"),
        ({"by_law": True, "block_size": 4}, "block_size"),
        ({"by_law": True, "memory": 1000}, r"memory must be at least \d+ MiB"),
        ({"by_law": True, "estimator": MultiTangent(50, "orthogonal", layers="separate")}, "at most the dimension, 15"),
        ({"by_law": True, "estimator": Averaged(MultiTangent(70, "orthogonal"), 2)}, "at most the dimension, 69"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fga.sample(SNAPSHOT, **({"estimator": "weight", "n_guesses": 64} | arguments))


def test_diagnose_says_which_estimators_have_no_law() -> None:
    tree = fga.diagnose(SNAPSHOT, ["weight", "activity"], n_guesses=64, by_law=True)
    assert set(json.loads(tree["measured"].attrs["not_measured"])) == {"activity"}
    by_estimator = tree["measured"]["variance"].sel(space="weight")
    assert np.isfinite(by_estimator.sel(estimator="weight")).all()
    assert np.isnan(by_estimator.sel(estimator="activity")).all()
    assert tree["measured"].attrs["by_law"] == 1
    assert len(fga.summary(tree))
    with pytest.raises(ValueError, match="by_law must be True or False"):
        fga.diagnose(SNAPSHOT, "weight", by_law=1)  # type: ignore[arg-type]


@pytest.fixture
def metric_at_weights() -> Iterator[None]:
    error = schema.Variable("largest entry of a guess", schema.GRADIENT_UNITS)

    def keep(snapshot: Any, found: Any) -> tuple[torch.Tensor, ...]:
        if not isinstance(found, WeightEstimates):
            return ()
        return tuple(d.abs().flatten(1).max(1).values.double().sum() for d in found.directions)

    def estimates(snapshot: Any, groups: Any) -> dict[str, Any]:
        layers = np.stack([*groups.averages(), np.full(len(groups.sizes), np.nan)])
        return {"largest_entry": mean_of_groups(np.stack([np.full_like(layers, np.nan), layers]), groups.sizes)}

    fga.register_metric(Metric("largest", {"largest_entry": error}, keep, estimates))
    yield
    withdraw_metric("largest")


@pytest.mark.usefixtures("metric_at_weights")
def test_metrics_that_take_the_guesses_are_absent_and_named() -> None:
    assert np.isfinite(fga.sample(SNAPSHOT, "weight", 64)["largest_entry"].sel(space="weight")).any()
    by_law = fga.sample(SNAPSHOT, "weight", 64, by_law=True)
    assert "largest_entry" not in by_law
    assert json.loads(by_law.attrs["metrics_left_out"]) == ["largest_entry"]
    tree = fga.diagnose(SNAPSHOT, ["weight", "multi_tangent"], n_guesses=64, by_law=True)
    assert "largest_entry" not in tree["measured"]
    assert json.loads(tree["measured"].attrs["metrics_left_out"]) == ["largest_entry"]
    with pytest.raises(ValueError, match="largest_entry"):
        fga.summary(tree, ["largest_entry"])


@pytest.mark.parametrize("factor", [1e-22, 1e22])
@covered
def test_the_scale_of_the_loss_changes_no_relative_number(estimator: Any, factor: float) -> None:
    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return factor * torch.nn.functional.cross_entropy(outputs, targets)

    scaled = fga.capture(SNAPSHOT.network, loss, SNAPSHOT.inputs, SNAPSHOT.targets)
    one, other = (fga.sample(snapshot, estimator, 512, by_law=True) for snapshot in (SNAPSHOT, scaled))
    for name in ("relative_bias", "shrinkage", "cosine", "efficiency", "best_scale", "descent_probability"):
        for suffix in ("", "_low", "_high"):
            np.testing.assert_allclose(other[name + suffix], one[name + suffix], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(other["variance"], factor**2 * one["variance"], rtol=1e-9)


def raw(law: Tangents, sizes: list[int], squares: list[float], n_guesses: int, **more: Any) -> Any:
    seeds = Seeds(0, 0, "test", torch.device("cpu"))
    squared = np.array([[np.nan] * (len(sizes) + 1), [*squares, sum(squares)]])
    return raw_numbers(law, np.array(sizes), squared, n_guesses, seeds, **more)


LAWS = [
    Tangents(GAUSSIAN, "joint"),
    Tangents(ON_SPHERE, "separate"),
    Tangents(GAUSSIAN, "joint", 3),
    Tangents(GAUSSIAN, "joint", 3, "orthogonal", n_averaged=2),
    Tangents(GAUSSIAN, "separate", 1, "orthogonal"),
    Tangents(ON_SPHERE, "joint", 3, "orthogonal"),
    Tangents(GAUSSIAN, "joint", 6, "orthogonal"),
    Tangents(ON_SPHERE, "joint", 6, "orthogonal"),
]


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("squares", [[1.0, 2.0, 3.0], [0.0, 2.0, 3.0], [1.0, 0.0, 0.0], [1e-44, 1.0, 1e-30]])
def test_layers_of_few_weights_and_without_a_gradient(law: Tangents, squares: list[float]) -> None:
    found = raw(law, [1, 2, 3], squares, 500)
    p, q, gram = found.inner_product[1], found.squared_norm[1], found.gram[1]
    assert np.isfinite(p).all() and np.isfinite(q).all() and np.isfinite(gram).all()
    assert (p[:-1][np.array(squares) == 0] == 0).all()
    # No guess is shorter than its component along the gradient.
    assert (p**2 <= q * np.array([*squares, sum(squares)])[:, None] * (1 + 1e-12) + 1e-300).all()
    np.testing.assert_allclose(q[0] * squares[0], p[0] ** 2, atol=1e-300)  # A single weight has nothing across.
    assert (np.linalg.eigvalsh(gram) >= -1e-12 * max(gram.max(), 1e-3)).all()
    rank = np.linalg.matrix_rank(gram[1], tol=1e-9 * max(gram[1].max(), 1e-300))
    assert rank <= 2


@pytest.mark.parametrize("noise", [GAUSSIAN, ON_SPHERE], ids=str)
@pytest.mark.parametrize("layers", ["joint", "separate"])
def test_as_many_tangents_as_weights_project_on_the_gradient_itself(noise: Any, layers: Any) -> None:
    sizes = [3, 3] if layers == "separate" else [1, 2, 3]
    squares = [1.0, 2.0, 3.0][: len(sizes)]
    found = raw(Tangents(noise, layers, sum(sizes) if layers == "joint" else 3, "orthogonal"), sizes, squares, 200)
    np.testing.assert_allclose(found.inner_product[1, :-1], np.repeat(np.array(squares)[:, None], 200, 1), rtol=1e-9)
    np.testing.assert_allclose(found.gram[1], 0.0, atol=1e-9)


@pytest.mark.parametrize("n_weights", [10**9, 10**12])
def test_layers_of_very_many_weights(n_weights: int) -> None:
    """E‖Ĝ‖² = (P + 2)‖G‖² and E‖m_a − G‖² = (P + 1)‖G‖²/n for groups of n guesses, over all layers."""
    found = raw(Tangents(GAUSSIAN, "joint"), [n_weights // 4] * 4, [0.1, 0.2, 0.3, 0.4], 40_000)
    squares = found.squared_norm[1, -1] / (n_weights + 2)
    assert abs(squares.mean() - 1) < 4 * squares.std() / 200
    own = np.einsum("aa->a", found.gram[1, -1]) * 625 / (n_weights + 1)
    assert abs(own.mean() - 1) < 4 * own.std() / 8
    others = found.gram[1, -1][~np.eye(64, dtype=bool)] * 625 / (n_weights + 1)
    # Directions of so many dimensions are nearly at right angles, but their slopes are of both signs.
    assert np.abs(others).max() < 0.01


def test_the_gram_matrix_is_that_of_the_guesses_lengths() -> None:
    """One guess a group: its error has the length of the guess less the gradient."""
    exact, generator = Exact(np.array([5, 2, 1]), np.array([1.0, 2.0, 0.5])), np.random.default_rng(0)
    vectors = guesses(Tangents(GAUSSIAN, "joint"), exact, 6, generator)
    total = Sum(3, 6)
    total.add(vectors)
    gram = gram_of_errors(total, np.ones(6), exact, generator)
    p = vectors.along * exact.norms[:, None]
    expected = vectors.squared_norms - 2 * p + exact.norms[:, None] ** 2
    np.testing.assert_allclose(np.einsum("laa->la", gram), expected)


@pytest.mark.parametrize(
    ("n_guesses", "groups"), [(2, 1), (31, 1), (32, 2), (64, 4), (1000, 32), (1024, 64), (10**6, 64)]
)
def test_groups_are_a_power_of_two(n_guesses: int, groups: int) -> None:
    assert groups_of(n_guesses) == groups


@pytest.mark.parametrize("n_layers", [1, 4, 100, 10_000])
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_blocks_begin_with_the_first_group(law: Tangents, n_layers: int) -> None:
    assert block_size(law, n_layers) % groups_of(10**6) == 0


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_memory_holds_what_it_says(law: Tangents) -> None:
    """The peak of what NumPy allocates, beside the numbers that the result keeps."""
    n_guesses = 20_000
    kept = 2 * 2 * 4 * 8 * n_guesses
    tracemalloc.start()
    raw(law, [100, 200, 300], [1.0, 2.0, 3.0], n_guesses, workers=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    in_flight = numbers_held(law, 3, block_size(law, 3)) * BYTES_PER_TRIPLE
    assert peak < kept + 2 * in_flight + 2**21  # Group numbers, and one block that waits for its turn.


def test_the_cost_of_a_guess_does_not_grow_with_the_network() -> None:
    """`python -m studies.throughput --by-law` times it to a few percent; here a machine may be busy."""

    def seconds(n_weights: int) -> float:
        start = time.process_time()
        raw(Tangents(GAUSSIAN, "joint"), [n_weights // 4] * 4, [1.0] * 4, 20_000, workers=1)
        return time.process_time() - start

    times = np.array([[seconds(n_weights) for n_weights in (10**4, 10**6, 10**8)] for _ in range(5)]).min(0)
    assert times.max() < 2 * times.min()
    assert times.max() / 20_000 < 25e-6  # Measured at about 0.5 µs on one core.
