"""The upstream Jacobian against its dense self, and its Krylov singular vectors against LAPACK."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fganalysis.capturing import upstream as jacobian
from fganalysis.capturing.upstream import UpstreamJacobian, krylov_size
from fganalysis.training.datasets import load


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_jacobian(
    next_unit: int = 7, unit: int = 5, n_examples: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64
) -> UpstreamJacobian:
    """Gaussian weights under a ReLU's mask, about half of it zero."""
    generator = seeded(seed)
    weight = torch.randn(next_unit, unit, generator=generator, dtype=dtype)
    return UpstreamJacobian(weight, (torch.rand(n_examples, unit, generator=generator) > 0.5).to(dtype))


def assert_equal(one: Tensor, other: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(one, other, atol=tolerance, rtol=0.0)


def rebuilt(triplets: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    left, values, right = triplets
    return (left * values[:, None, :]) @ right.mT


def projector(triplets: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return triplets[2] @ triplets[2].mT


# Products.


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**32))
def test_products_are_those_of_the_dense_matrices(next_unit: int, unit: int, n_examples: int, seed: int) -> None:
    random = random_jacobian(next_unit, unit, n_examples, seed)
    generator = seeded(seed + 1)
    vectors = torch.randn(2, n_examples, unit, generator=generator, dtype=torch.float64)
    noise = torch.randn(3, n_examples, next_unit, generator=generator, dtype=torch.float64)
    dense = random.dense()
    assert dense.shape == (n_examples, next_unit, unit)
    assert_equal(random.product(vectors), torch.einsum("boi,gbi->gbo", dense, vectors))
    assert_equal(random.transposed_product(noise), torch.einsum("boi,gbo->gbi", dense, noise))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"with the same unit, got \(3, 4\) and \(2, 5\)"):
        UpstreamJacobian(torch.ones(3, 4), torch.ones(2, 5))


# The exact decomposition.


@pytest.mark.parametrize(("next_unit", "unit"), [(7, 5), (5, 7), (6, 6)])
def test_rank_many_triplets_rebuild_the_matrices(next_unit: int, unit: int) -> None:
    random = random_jacobian(next_unit, unit)
    triplets = random.singular_vectors("rank")
    assert triplets[1].shape == (4, int(random.rank().max()))
    assert_equal(rebuilt(triplets), random.dense())


def test_rank_is_that_of_torch() -> None:
    random = random_jacobian(40, 60, n_examples=8)
    random.derivative[0] = 0.0
    assert random.rank().tolist() == torch.linalg.matrix_rank(random.dense()).tolist()
    assert random.rank()[0] == 0


def test_top_and_bottom_part_the_nonzero_singular_values() -> None:
    random = random_jacobian(7, 9, n_examples=6, seed=3)
    for example, rank in enumerate(random.rank().tolist()):
        one = UpstreamJacobian(random.weight, random.derivative[example : example + 1])
        values = torch.linalg.svdvals(one.dense())[0]
        k = rank // 2
        top, bottom = one.singular_vectors(k, exact=True), one.singular_vectors(rank - k, which="bottom")
        assert_equal(torch.cat([top[1][0], bottom[1][0]]), values[:rank])
        assert_equal(rebuilt(top) + rebuilt(bottom), one.dense())
        # Negative control: the smallest singular values of all would be zeros, which span dead units.
        assert rank == 7 or values[rank] < 1e-12


@pytest.mark.parametrize("which", ["top", "bottom"])
def test_surplus_columns_are_zero(which: Literal["top", "bottom"]) -> None:
    derivative = torch.tensor([[0.0] * 6, [0, 0, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0], [1.0] * 6], dtype=torch.float64)
    few = UpstreamJacobian(torch.randn(5, 6, generator=seeded(0), dtype=torch.float64), derivative)
    left, values, right = few.singular_vectors(3, which=which, exact=True)
    assert (values > 0).sum(1).tolist() == [0, 1, 2, 3]
    for columns in (left, right):
        assert_equal(columns.mT @ columns, torch.diag_embed((values > 0).double()))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = random_jacobian(90, 90, n_examples=5)
    whole = random.singular_vectors(3, exact=True), random.singular_vectors(3)
    monkeypatch.setattr(jacobian, "CHUNK_ELEMENTS", 2 * 90 * 90)
    for one, other in zip(whole, (random.singular_vectors(3, exact=True), random.singular_vectors(3)), strict=True):
        assert_equal(one[1], other[1])
        assert_equal(projector(one), projector(other), 1e-8)


@pytest.mark.parametrize("k", [0, -1, 6, "all"])
def test_k_out_of_range_is_refused(k: Any) -> None:
    with pytest.raises(ValueError, match=f"k must be 'rank' or from 1 to 5, the Jacobian's smaller side, got {k!r}"):
        random_jacobian().singular_vectors(k)


def test_unknown_end_of_the_spectrum_is_refused() -> None:
    middle: Any = "middle"
    with pytest.raises(ValueError, match="which must be 'top' or 'bottom', got 'middle'"):
        random_jacobian().singular_vectors(1, which=middle)


# The Krylov method. Its accuracy is measured on the spectrum that is hardest for it, that of a network at its start,
# whose leading singular values lie about one per cent apart at width 512, and on what training makes of it.


def trained_jacobians(width: int, n_steps: int) -> list[tuple[UpstreamJacobian, Tensor]]:
    """Upstream Jacobians and activation gradients of a 40-w-w-w-10 ReLU network on MNIST-1D, 128 examples."""
    data = load("mnist1d")
    generator = seeded(width)
    sizes = [40, width, width, width, 10]
    # kaiming-uniform with a = √5 is uniform between ±1/√fan-in.
    weights = [
        ((torch.rand(n_out, n_in, generator=generator) * 2 - 1) / n_in**0.5).requires_grad_()
        for n_in, n_out in itertools.pairwise(sizes)
    ]
    optimiser = torch.optim.AdamW(weights, lr=1e-3)

    def forward(inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        activations = [inputs @ weights[0].T]
        for weight in weights[1:]:
            activations.append(activations[-1].relu() @ weight.T)
        return activations[:-1], activations[-1]

    for _ in range(n_steps):
        rows = torch.randint(len(data.train_inputs), (128,), generator=generator)
        loss = torch.nn.functional.cross_entropy(forward(data.train_inputs[rows])[1], data.train_targets[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    hidden, outputs = forward(data.train_inputs[:128])
    gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(outputs, data.train_targets[:128]), hidden)
    return [
        (UpstreamJacobian(weight.detach(), (units.detach() > 0).float()), gradient)
        for weight, units, gradient in zip(weights[1:], hidden, gradients, strict=True)
    ]


def lost_energy_and_overlap_error(
    found: tuple[Tensor, Tensor, Tensor], values: Tensor, right: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """1 − Σσ̂²/Σσ² and the error of ‖V_kᵀg‖/‖g‖, per example."""
    k = found[1].shape[1]
    energy = 1 - (found[1] ** 2).sum(1) / (values[:, :k] ** 2).sum(1)
    unit = (gradient / gradient.norm(dim=1, keepdim=True))[:, :, None]
    overlaps = [(columns.mT @ unit).norm(dim=(1, 2)) for columns in (found[2], right[:, :, :k])]
    return energy, (overlaps[0] - overlaps[1]).abs()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "n_steps", "n_layers"), [(128, 0, 3), (128, 300, 3), (512, 0, 1)])
def test_krylov_agrees_with_lapack_for_every_example(width: int, n_steps: int, n_layers: int) -> None:
    for layer, (upstream, gradient) in enumerate(trained_jacobians(width, n_steps)[:n_layers]):
        _, values, right = torch.linalg.svd(upstream.dense(), full_matrices=False)
        for k in (1, 10, 25) if layer < 2 else (1, 10):
            energy, overlap = lost_energy_and_overlap_error(upstream.singular_vectors(k), values, right.mT, gradient)
            assert energy.abs().max() < 1e-3, (layer, k, float(energy.max()))
            assert overlap.max() < 0.01, (layer, k, float(overlap.max()))
            assert overlap.mean() < 1e-4, (layer, k, float(overlap.mean()))


def test_too_small_a_krylov_basis_is_caught() -> None:
    """Negative control: half the basis fails the bounds of the test above."""
    upstream, gradient = trained_jacobians(128, 0)[0]
    _, values, right = torch.linalg.svd(upstream.dense(), full_matrices=False)
    found = upstream._leading(10, krylov_size(10, 128, 128) // 2)
    energy, overlap = lost_energy_and_overlap_error(found, values, right.mT, gradient)
    assert energy.max() > 1e-3
    assert overlap.max() > 0.01


def special_jacobians(dtype: torch.dtype) -> dict[str, UpstreamJacobian]:
    """Cases built to break a Krylov method: invariant and exhausted subspaces, equal values, underflow, odd shapes."""
    generator = seeded(1)
    unit, n_examples = 150, 6
    weight = torch.randn(unit, unit, generator=generator, dtype=dtype)
    orthogonal = torch.linalg.qr(weight).Q
    masks = (torch.rand(n_examples, unit, generator=generator) > 0.5).to(dtype)
    masks[0] = 0
    masks[1] = 0
    masks[1, :5] = 1
    masks[2] = 0
    masks[2, 3] = 1
    ones = torch.ones_like(masks)
    equal = torch.ones(unit, dtype=dtype)
    equal[:3] = 2
    thin = torch.randn(unit, 6, generator=generator, dtype=dtype)
    return {
        "dead and nearly dead examples": UpstreamJacobian(weight, masks),
        "smooth derivative": UpstreamJacobian(weight, 1 - torch.tanh(masks + weight[:n_examples]) ** 2),
        "saturated units": UpstreamJacobian(weight, masks * 1e-20),
        "orthogonal weight": UpstreamJacobian(orthogonal, masks),
        "identity": UpstreamJacobian(torch.eye(unit, dtype=dtype), ones),
        "two distinct values": UpstreamJacobian(orthogonal * equal @ torch.linalg.qr(weight.T).Q, ones),
        "low rank": UpstreamJacobian(thin @ thin.T, masks),
        "zero weight": UpstreamJacobian(torch.zeros_like(weight), masks),
        "narrow next layer": UpstreamJacobian(weight[:80], masks),
        "wide next layer": UpstreamJacobian(weight[:, :80], masks[:, :80]),
        "much narrower next layer": UpstreamJacobian(weight[:60], masks),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", special_jacobians(torch.float32))
def test_krylov_on_special_matrices(name: str, dtype: torch.dtype) -> None:
    upstream = special_jacobians(dtype)[name]
    rounding = 100 * torch.finfo(dtype).eps
    for k in (1, 10):
        assert krylov_size(k, *upstream.weight.shape) < min(upstream.weight.shape)
        left, values, right = upstream.singular_vectors(k)
        best = upstream.singular_vectors(k, exact=True)[1]
        kept = (values > 0).to(dtype)
        assert torch.equal(kept, (best > 0).to(dtype))
        assert ((values**2).sum(1) >= (1 - 1e-3) * (best**2).sum(1)).all()
        assert (values[:, 1:] <= values[:, :-1]).all()
        assert (right[upstream.derivative[:, :, None].expand_as(right) == 0] == 0).all()
        for columns in (left, right):
            assert_equal(columns.mT @ columns, torch.diag_embed(kept), rounding)
        error = upstream.dense() @ right - left * values[:, None, :]
        assert (error.abs().amax((1, 2)) <= rounding * best[:, 0]).all()


@pytest.mark.parametrize("k", [25, 60])
def test_large_k_is_exact(k: int) -> None:
    random = random_jacobian(60, 70, dtype=torch.float32)
    for one, other in zip(random.singular_vectors(k), random.singular_vectors(k, exact=True), strict=True):
        assert torch.equal(one, other)


def test_a_result_depends_on_its_example_alone() -> None:
    random = random_jacobian(100, 100, n_examples=9)
    alone = UpstreamJacobian(random.weight, random.derivative[7:8])
    state = torch.get_rng_state()
    first = random.singular_vectors(4)
    torch.manual_seed(1)
    again = random.singular_vectors(4)
    torch.set_rng_state(state)
    random.singular_vectors(4)
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)
    assert_equal(projector(first)[7], projector(alone.singular_vectors(4))[0], 1e-8)


# Subspace iteration.


def test_many_iterations_reach_the_singular_triplets_of_a_gapped_spectrum() -> None:
    generator = seeded(3)
    left = torch.linalg.qr(torch.randn(40, 30, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64))[0]
    spectrum = torch.full((30,), 0.01, dtype=torch.float64)
    spectrum[:3] = torch.tensor([4.0, 3.0, 2.0])
    derivative = 0.5 + torch.rand(5, 30, generator=generator, dtype=torch.float64)
    gapped = UpstreamJacobian((left * spectrum) @ right.T, derivative)
    found, exact = gapped.singular_vectors(3, iterations=30), gapped.singular_vectors(3, exact=True)
    assert_equal(found[1], exact[1], 1e-10)
    assert_equal(projector(found), projector(exact), 1e-9)
    assert_equal(found[0] @ found[2].mT, exact[0] @ exact[2].mT, 1e-9)


@pytest.mark.parametrize("iterations", [0, 2])
@pytest.mark.parametrize(("next_unit", "unit", "k"), [(4, 30, 3), (40, 30, 4), (30, 30, 1)])
def test_iterated_vectors_are_orthonormal_and_within_the_row_space(
    next_unit: int, unit: int, k: int, iterations: int
) -> None:
    random = random_jacobian(next_unit, unit, 6)
    left, values, right = random.singular_vectors(k, iterations=iterations)
    eye = torch.eye(k, dtype=torch.float64).expand(6, k, k)
    assert_equal(right.mT @ right, eye)
    assert_equal(left.mT @ left, eye)
    assert_equal((random.dense() @ right).norm(dim=1), values)
    assert_equal(projector(random.singular_vectors("rank")) @ right, right)


def test_a_next_layer_of_few_units_needs_no_iteration() -> None:
    few = random_jacobian(5, 60, 8)
    found, exact = few.singular_vectors(5, iterations=2), few.singular_vectors(5, exact=True)
    assert_equal(found[1], exact[1])
    assert_equal(projector(found), projector(exact))


def test_examples_with_fewer_active_units_than_k_have_zero_columns_after_iterations() -> None:
    random = random_jacobian(20, 20, 3)
    random.derivative[0, 2:] = 0
    random.derivative[0, :2] = 1
    random.derivative[1] = 0
    left, values, right = random.singular_vectors(4, iterations=1)
    assert (values[0] > 0).tolist() == [True, True, False, False]
    assert not values[1].any() and not left[1].any() and not right[1].any()
    assert_equal(right[0].mT @ right[0], torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)))


@pytest.mark.parametrize(("width", "least"), [(128, 0.985), (512, 0.965)])
def test_two_iterations_hold_the_energy_that_the_docstring_says(width: int, least: float) -> None:
    """At initialisation, where neighbouring singular values are closest: .994 and .976 of the leading ten's energy."""
    generator = seeded(0)
    weight = (2 * torch.rand(width, width, generator=generator) - 1) / width**0.5
    random = UpstreamJacobian(weight, (torch.rand(16, width, generator=generator) > 0.5).float())
    energy = random.singular_vectors(10, iterations=2)[1].square().sum(1)
    best = random.singular_vectors(10, exact=True)[1].square().sum(1)
    assert (energy <= best * (1 + 1e-4)).all()
    assert (energy / best).mean() > least


@pytest.mark.parametrize(
    ("k", "options"),
    [(2, {"iterations": -1}), ("rank", {"iterations": 1}), (2, {"iterations": 1, "which": "bottom"}),
     (2, {"iterations": 1, "exact": True})],
)  # fmt: skip
def test_iterations_that_mean_nothing_are_refused(k: int | Literal["rank"], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="iterations must be at least 0 and go with the top k directions"):
        random_jacobian().singular_vectors(k, **options)
