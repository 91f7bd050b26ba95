"""Facts that follow from the definitions and that the papers do not state, and the papers' own numbers.

The facts are those of docs/mathematics.md#facts-that-follow.

Facts 1–3 are exact: by enumeration on tiny networks, and for Σ on the seed paper's network in double precision.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivityPerturbation,
    Estimator,
    OrthogonalUpstream,
    PreconditionedUpstream,
    Upstream,
    label,
)
from fganalysis.testing import ExactMoments, exact_moments, signs, three_points
from fganalysis.training.datasets import Dataset
from tests import laws

SWITCHES = [
    {"shared": shared, "slope": slope, "layers": layers}
    for shared, slope, layers in itertools.product((False, True), ("example", "batch"), ("joint", "separate"))
]
INDEPENDENT = [switches for switches in SWITCHES if not switches["shared"]]
# With one draw and one slope for the whole batch the mean of example b is A_b Σ_b' A_b'ᵀ g_b', for every estimator.
KEEPS_EXAMPLES_APART = [switches for switches in SWITCHES if not (switches["shared"] and switches["slope"] == "batch")]


def assert_close(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal to 1e-10."""
    torch.testing.assert_close(one, other, rtol=0.0, atol=1e-10)


def relu(sizes: tuple[int, ...], n_examples: int, seed: int) -> Snapshot:
    return laws.tiny_snapshot(sizes, n_examples, seed=seed, activation=torch.nn.ReLU)


# A square next layer; one unit of two is dead in one of two examples, and one of three in one.
SQUARE = [relu((2, 2, 2), n_examples=2, seed=4), relu((2, 3, 3), n_examples=1, seed=4)]


def seed_network(
    seed: int, inputs: torch.Tensor, targets: torch.Tensor, width: int = 128, dtype: torch.dtype = torch.float32
) -> Snapshot:
    """The seed paper's MLP at PyTorch's default initialisation, on one batch."""
    network = fga.networks.mlp([40, width, width, width, 10], bias=False, seed=seed, dtype=dtype)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs.to(dtype), targets)


def gaussian_batch(seed: int, n_examples: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n_examples, 40, generator=generator)
    return inputs, torch.randint(0, 10, (n_examples,), generator=generator)


def assert_same_moments(one: ExactMoments, other: ExactMoments) -> None:
    """Means and covariances, across examples and layers too, in both spaces."""
    for name in ("activation_mean", "activation_covariance", "weight_mean", "weight_covariance"):
        assert_close(getattr(one, name), getattr(other, name))


@dataclass(frozen=True)
class Axes:
    """The j-th guess's noise is the j-th unit vector: it lays the columns of A_l,b bare, one a guess."""

    def draw(
        self, shape: tuple[int, ...], generator: torch.Generator, like: torch.Tensor, vector_dims: int = 1
    ) -> torch.Tensor:
        n_guesses, units = shape[0], shape[-1]
        axes = torch.eye(n_guesses, units, dtype=like.dtype, device=like.device)
        return axes.view(n_guesses, *(1,) * (len(shape) - 2), units).expand(shape).clone()

    def fourth(self, n: int) -> float:
        return float(n)

    def pair(self, n: int) -> float:
        return 0.0


def covariances(estimator: Any, snapshot: Snapshot) -> list[torch.Tensor]:
    """Σ_l,b = A Aᵀ of every tap but the last, (example, unit, unit), from guesses alone.

    With one column at a time a guess is ĝ = (A_j·g) A_j, so A_j A_jᵀ = ĝĝᵀ/(ĝ·g): nothing is read of a
    column across g.
    """
    one = replace(estimator, noise=Axes(), layers="separate")
    n_columns = max(tap.units for tap in snapshot.taps)
    guesses = one(snapshot, n_columns, torch.Generator()).guesses
    found = []
    for guess, gradient in list(zip(guesses, snapshot.gradients, strict=True))[:-1]:
        along = torch.einsum("jbu,bu->jb", guess, gradient)
        scaled = guess / torch.where(along > 0, along, 1.0).sqrt().unsqueeze(-1)
        found.append(torch.einsum("jbu,jbv->buv", scaled, scaled))
    return found


def masks(snapshot: Snapshot) -> list[torch.Tensor]:
    """M_l,b of every tap but the last, (example, unit, unit)."""
    return [torch.diag_embed((jacobian.derivative != 0).to(jacobian.derivative)) for jacobian in snapshot.upstream]


WIDE = seed_network(0, *gaussian_batch(1, 8), dtype=torch.float64)


def test_the_tiny_networks_have_dead_and_live_units() -> None:
    alive = [sorted((snapshot.upstream[0].derivative != 0).sum(1).tolist()) for snapshot in SQUARE]
    assert alive == [[1, 2], [2]]


@pytest.mark.parametrize("switches", KEEPS_EXAMPLES_APART, ids=str)
@pytest.mark.parametrize("snapshot", [*SQUARE, relu((2, 3, 2), 1, 1), relu((2, 2, 4), 1, 2)])
def test_fact_1_orthogonal_upstream_of_full_rank_is_exactly_unbiased(
    snapshot: Snapshot, switches: dict[str, Any]
) -> None:
    laws.assert_exactly_unbiased(OrthogonalUpstream(k="rank", **switches), snapshot)


def test_fact_1_is_lost_with_one_draw_and_one_slope_for_the_batch() -> None:
    for estimator in (OrthogonalUpstream(k="rank"), ActivityPerturbation()):
        with pytest.raises(AssertionError):
            laws.assert_exactly_unbiased(replace(estimator, shared=True, slope="batch"), SQUARE[0])


def test_fact_1_is_lost_by_truncation() -> None:
    with pytest.raises(AssertionError):
        laws.assert_exactly_unbiased(OrthogonalUpstream(k=1), SQUARE[1])


def test_fact_1_on_the_seed_papers_network() -> None:
    predicted = fga.predict(WIDE, OrthogonalUpstream(k="rank"))
    assert float(predicted["relative_bias"].max()) < 1e-10
    assert float(fga.predict(WIDE, OrthogonalUpstream(k=10))["relative_bias"].sel(layer="0").min()) > 0.5


@pytest.mark.parametrize("snapshot", SQUARE)
@pytest.mark.parametrize("switches", INDEPENDENT, ids=str)
def test_fact_2_orthogonal_upstream_of_full_rank_is_masked_perturbation(
    snapshot: Snapshot, switches: dict[str, Any]
) -> None:
    """Gaussian noise has A ε ~ N(0, Σ), and three points have its moments as far as a covariance asks for them."""
    masked = ActivityPerturbation(active_only=True, **switches)
    orthogonal = OrthogonalUpstream(k="rank", **switches)
    assert_same_moments(
        exact_moments(orthogonal, snapshot, three_points), exact_moments(masked, snapshot, three_points)
    )


def test_fact_2_on_the_seed_papers_network() -> None:
    """Layers with 128 units above; ten units above the third leave ten directions."""
    found, expected = covariances(OrthogonalUpstream(k="rank"), WIDE), masks(WIDE)
    for layer in (0, 1):
        assert_close(found[layer], expected[layer])
    assert torch.linalg.matrix_rank(found[2]).tolist() == [10] * 8
    ours, masked = (
        fga.predict(WIDE, one) for one in (OrthogonalUpstream(k="rank"), ActivityPerturbation(active_only=True))
    )
    for name in ("variance", "mse", "efficiency", "descent_probability", "cosine"):
        for tap in ("0", "2"):
            np.testing.assert_allclose(ours[name].sel(layer=tap), masked[name].sel(layer=tap), rtol=1e-9)


def test_fact_2_needs_gaussian_noise() -> None:
    """Of the noise Σ says all only when every rotation leaves its law alone: signs in another basis are no signs."""
    ours, masked = (
        exact_moments(one, SQUARE[1], signs)
        for one in (OrthogonalUpstream(k="rank"), ActivityPerturbation(active_only=True))
    )
    with pytest.raises(AssertionError):
        assert_same_moments(ours, masked)


def test_fact_2_needs_a_draw_for_every_example() -> None:
    """Shared noise is turned by a rotation of each example's own, so that examples are correlated otherwise."""
    ours, masked = (
        exact_moments(one, SQUARE[0], three_points)
        for one in (OrthogonalUpstream(k="rank", shared=True), ActivityPerturbation(active_only=True, shared=True))
    )
    assert_close(ours.weight_mean, masked.weight_mean)
    with pytest.raises(AssertionError):
        assert_same_moments(ours, masked)


@pytest.mark.parametrize("snapshot", SQUARE)
@pytest.mark.parametrize("switches", INDEPENDENT, ids=str)
def test_fact_3_preconditioned_upstream_is_activity_perturbation_of_the_live_units(
    snapshot: Snapshot, switches: dict[str, Any]
) -> None:
    masked, preconditioned = (
        exact_moments(one, snapshot, three_points)
        for one in (ActivityPerturbation(active_only=True, **switches), PreconditionedUpstream(**switches))
    )
    assert_same_moments(preconditioned, masked)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_preconditioned_upstream_is_orthogonal_upstream_of_full_rank(switches: dict[str, Any]) -> None:
    for snapshot in SQUARE:
        one, other = (
            exact_moments(estimator, snapshot, signs)
            for estimator in (PreconditionedUpstream(**switches), OrthogonalUpstream(k="rank", **switches))
        )
        assert_same_moments(one, other)


@pytest.mark.parametrize("sigma", [1e-5, 1.0])
def test_fact_3_on_the_seed_papers_network(sigma: float) -> None:
    estimator = PreconditionedUpstream(sigma=sigma)
    for covariance, mask in list(zip(covariances(estimator, WIDE), masks(WIDE), strict=True))[:2]:
        assert_close(covariance, mask)
    ours, masked = fga.predict(WIDE, estimator), fga.predict(WIDE, ActivityPerturbation(active_only=True))
    for layer in ("0", "2"):
        for name in ("variance", "wang2025_covariance_norm"):
            np.testing.assert_allclose(ours[name].sel(layer=layer), masked[name].sel(layer=layer), rtol=1e-9)


def test_what_the_covariances_are_read_from_sees_other_directions() -> None:
    """Negative controls of the reading itself: known Σ come back, and they differ from each other."""
    (jacobian, *_), (found, *_) = WIDE.upstream, covariances(Upstream(), WIDE)
    dense = jacobian.dense()
    assert_close(found, dense.mT @ dense)
    (truncated, *_), (mask, *_) = covariances(OrthogonalUpstream(k=10), WIDE), masks(WIDE)
    assert torch.linalg.matrix_rank(truncated).tolist() == [10] * 8
    with pytest.raises(AssertionError):
        assert_close(truncated, mask)


# A layer of fan-in n at default initialisation has weights of variance 1/(3n) and half of its inputs alive, so a
# backward step leaves 1/6 of the squared gradient: T is 1 + 6 + 36 + 216 times the first layer's own.
EXPECTED = np.array([259.0, 43.0, 7.0])
QUOTED = np.array([290.0, 47.0, 7.5])


def joint_over_separate(snapshot: Snapshot, **switches: Any) -> NDArray[np.float64]:
    """Theoretical variance with one pass for all layers over that with a pass a layer, (space, layer 1…3)."""
    joint, separate = (
        fga.predict(snapshot, ActivityPerturbation(layers=layers, **switches))["variance"].to_numpy()[:, :3]
        for layers in ("joint", "separate")
    )
    return joint / separate


@pytest.fixture(scope="module")
def mnist1d() -> Dataset:
    return fga.datasets.load("mnist1d")


@pytest.mark.parametrize("kind", ["gaussian", "mnist1d"])
def test_fact_4_the_other_layers_noise_dominates_a_joint_pass(kind: str, mnist1d: Dataset) -> None:
    """About 259/43/7 in the mean over initial weights; 290/47/7.5 is within what one draw of them scatters by."""
    ratios = []
    for seed in range(6):
        rows = torch.randperm(4000, generator=torch.Generator().manual_seed(seed))[:64]
        batch = (mnist1d.train_inputs[rows], mnist1d.train_targets[rows])
        snapshot = seed_network(seed, *(batch if kind == "mnist1d" else gaussian_batch(seed, 64)))
        ratios.append(joint_over_separate(snapshot))
    mean, spread = np.mean(ratios, axis=0), np.std(ratios, axis=0, ddof=1)
    np.testing.assert_allclose(mean, np.broadcast_to(EXPECTED, (2, 3)), rtol=0.12)
    assert np.all(np.abs(QUOTED - mean) < 3 * spread)


def test_fact_4_holds_for_every_batch_size_slope_and_target() -> None:
    for n_examples, slope in itertools.product((8, 64, 256), ("example", "batch")):
        inputs, targets = gaussian_batch(3, n_examples)
        for chosen in (targets, torch.zeros_like(targets)):
            ratio = joint_over_separate(seed_network(2, inputs, chosen), slope=slope)
            np.testing.assert_allclose(ratio, np.broadcast_to(EXPECTED, (2, 3)), rtol=0.35)


def test_the_printed_covariance_norm() -> None:
    """√(d − k)/d = .08487 at d = 128, k = 10, wherever the network stands; the paper prints .085."""
    for which in ("top", "bottom"):
        found = fga.predict(WIDE, OrthogonalUpstream(k=10, which=which))["wang2025_covariance_norm"]
        np.testing.assert_allclose(found.sel(layer=["0", "2", "4"]), np.sqrt(118) / 128, rtol=1e-10)
        assert round(float(found.sel(layer="0")), 5) == 0.08487
        assert np.isnan(found.sel(layer="all"))


def trained_snapshot(data: Dataset, width: int, epochs: int, n_examples: int) -> Snapshot:
    """Trained by backpropagation as in the paper; each example's gradient carries 1/512, like in its batch of 512."""
    network = fga.networks.mlp([40, width, width, width, 10], bias=False, seed=0)
    run = fga.train(network, data, epochs=epochs, log_every=10**6)

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets) * (n_examples / 512)

    return fga.capture(run.network, loss, data.train_inputs[:n_examples], data.train_targets[:n_examples])


def first_layer(snapshot: Snapshot, estimator: Estimator) -> dict[str, float]:
    predicted = fga.predict(snapshot, estimator).sel(layer="0")
    return {name: float(predicted[f"wang2025_{name}"]) for name in ("variance", "bias", "covariance_norm")}


# Layer and epoch are unsaid in table 2: the first layer after 110 epochs of backpropagation is where W̃ᵀ's variance is
# the printed one, and the rest follows. Table 5 is of the first layer after 300 epochs, each row of its own training;
# after 60 epochs of backpropagation the three rows stand as printed.
TABLE_2: dict[str, tuple[Estimator, float, float, float]] = {
    "upstream": (Upstream(), 1.50e-4, 2.75e-4, 0.084),
    "bottom": (OrthogonalUpstream(k=10, which="bottom"), 1.30e-5, 2.83e-4, 0.085),
    "orthogonal": (OrthogonalUpstream(k=10), 1.03e-5, 2.86e-5, 0.085),
}
TABLE_5: dict[str, tuple[Estimator, float, float]] = {
    "orthogonal": (OrthogonalUpstream(k=10), 6.33e-6, 3.63e-5),
    # As the paper computes W̃^P, null directions kept: where the next layer is as wide, plain activity perturbation.
    "preconditioned": (ActivityPerturbation(), 1.75e-4, 0.0),
    "upstream": (Upstream(), 7.04e-5, 1.68e-4),
}


def within(factor: float, found: float, printed: float) -> bool:
    return printed / factor < found < printed * factor


def test_table_2_has_the_printed_orders_of_magnitude(mnist1d: Dataset) -> None:
    """Every number within a factor of 4, the two of W̃ᵀ and W̃⊥ that the claim rests on within 2."""
    snapshot = trained_snapshot(mnist1d, width=128, epochs=110, n_examples=512)
    found = {name: first_layer(snapshot, estimator) for name, (estimator, *_) in TABLE_2.items()}
    for name, (_, variance, bias, norm) in TABLE_2.items():
        assert within(4, found[name]["variance"], variance), (name, found[name])
        assert within(4, found[name]["bias"], bias), (name, found[name])
        assert found[name]["covariance_norm"] == pytest.approx(norm, abs=0.002), (name, found[name])
    for name in ("upstream", "orthogonal"):
        assert within(2, found[name]["variance"], TABLE_2[name][1]), (name, found[name])
    assert found["upstream"]["variance"] > 5 * found["orthogonal"]["variance"]
    assert found["bottom"]["bias"] > 5 * found["orthogonal"]["bias"]


def test_table_5_has_the_printed_orders_of_magnitude(mnist1d: Dataset) -> None:
    """Variances within a factor of 2; biases within 6, as on 64 examples of 512 fewer errors cancel in their mean."""
    snapshot = trained_snapshot(mnist1d, width=256, epochs=60, n_examples=64)
    found = {name: first_layer(snapshot, estimator) for name, (estimator, *_) in TABLE_5.items()}
    for name, (_, variance, bias) in TABLE_5.items():
        assert within(2, found[name]["variance"], variance), (name, found[name])
        assert within(6, found[name]["bias"], bias) if bias else found[name]["bias"] < 1e-12, (name, found[name])
    # d/k = 25.6 of the slope's variance, nothing else.
    assert found["preconditioned"]["variance"] / found["orthogonal"]["variance"] == pytest.approx(25.6, rel=0.1)
    # Without the null directions, about half of the units, half of that variance is left: not what is printed.
    dropped = first_layer(snapshot, PreconditionedUpstream())["variance"]
    assert 0.3 < dropped / found["preconditioned"]["variance"] < 0.7 and not within(
        2, dropped, TABLE_5["preconditioned"][1]
    )


@pytest.mark.parametrize("estimator", [estimator for estimator, *_ in TABLE_2.values()], ids=label)
def test_the_measured_metrics_are_the_predicted_ones(estimator: Estimator) -> None:
    """|difference| at most 4.5 standard errors at 512 guesses: 2 % of a variance on 32 examples."""
    snapshot = seed_network(1, *gaussian_batch(2, 32))
    measured, predicted = fga.sample(snapshot, estimator, n_guesses=512), fga.predict(snapshot, estimator)
    z = (measured["wang2025_variance"] - predicted["wang2025_variance"]) / measured["wang2025_variance_se"]
    assert float(np.abs(z).max()) < 4.5
    z = (measured["wang2025_bias"] - predicted["wang2025_bias"]) / measured["wang2025_bias_se"]
    assert float(np.abs(z).max()) < 4.5
