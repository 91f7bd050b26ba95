"""Finite differences: exact moments on quadratic losses, the order of the error in ε, rounding, and what is refused."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fganalysis as fga
from fganalysis.capturing.capture import freeze
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import FiniteDifference
from fganalysis.testing import Enumeration, exact_moments, signs, three_points
from tests import laws
from tests.regression import regression_snapshot
from theory import finite_difference

SIXTH = {signs: 1.0, three_points: 9.0}


def skewed() -> Enumeration:
    """√2 with probability 1/3, −1/√2 with 2/3: mean 0, variance 1, third moment 1/√2."""
    return Enumeration((math.sqrt(2.0), -math.sqrt(0.5)), (1 / 3, 2 / 3), fourth_moment=1.5)


def loss_of_weights(snapshot: Snapshot) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The loss as a function of all weights in one vector, in the order of the guesses, and where they are now."""
    shapes = [tap.weight.shape for tap in snapshot.taps]

    def loss(flat: Tensor) -> Tensor:
        moved = {}
        parts = flat.split([shape.numel() for shape in shapes])
        for tap, part, shape in zip(snapshot.taps, parts, shapes, strict=True):
            weight = part.view(shape)
            moved[f"{tap.name}.weight"] = weight[:, : shape[1] - tap.has_bias]
            if tap.has_bias:
                moved[f"{tap.name}.bias"] = weight[:, -1]
        outputs = torch.func.functional_call(snapshot.network, moved, (snapshot.inputs,))
        return snapshot.loss_fn(outputs, snapshot.targets)

    return loss, torch.cat([tap.weight.flatten() for tap in snapshot.taps])


def hessian_of(snapshot: Snapshot) -> np.ndarray:
    loss, weights = loss_of_weights(snapshot)
    return np.asarray(torch.func.hessian(loss)(weights))


def third_of(snapshot: Snapshot) -> np.ndarray:
    loss, weights = loss_of_weights(snapshot)
    return np.asarray(torch.func.jacfwd(torch.func.hessian(loss))(weights))


def gradient_of(snapshot: Snapshot) -> np.ndarray:
    return laws.exact_gradient(snapshot)[1].numpy()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("law", [signs, three_points])
def test_moments_on_a_quadratic_loss_are_exact(law: Callable[[], Enumeration], central: bool, bias: bool) -> None:
    snapshot = regression_snapshot((2, 2), n_examples=3, bias=bias)
    exact = exact_moments(FiniteDifference(0.3, central, law()), snapshot, law)
    squares = (exact.weight_covariance.diagonal() + exact.weight_mean**2).numpy()
    fourth = law().fourth_moment

    def predicted(sixth: float, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
        gradient, hessian = gradient_of(snapshot), hessian_of(snapshot)
        return finite_difference.quadratic(gradient, hessian, epsilon, fourth, sixth, central=central)

    mean, second = predicted(SIXTH[law], 0.3)
    np.testing.assert_allclose(exact.weight_mean.numpy(), mean, rtol=0, atol=1e-10)
    np.testing.assert_allclose(squares, second, rtol=1e-10)
    if not central:
        for wrong in (predicted(SIXTH[law] + 0.1, 0.3)[1], predicted(SIXTH[law], 0.301)[1]):
            assert np.abs(squares / wrong - 1).max() > 1e-6


def bias_at(snapshot: Snapshot, epsilon: float, central: bool, law: Callable[[], Enumeration]) -> np.ndarray:
    exact = exact_moments(FiniteDifference(epsilon, central, law()), snapshot, law)
    return exact.weight_mean.numpy() - gradient_of(snapshot)


def order(error: Callable[[float], float], epsilons: tuple[float, float] = (4e-3, 1e-3)) -> float:
    """The slope of log error against log ε."""
    large, small = epsilons
    return math.log(error(large) / error(small)) / math.log(large / small)


@pytest.mark.parametrize(("central", "expected"), [(False, 1), (True, 2)])
def test_order_of_the_bias_under_a_skewed_law(central: bool, expected: int) -> None:
    snapshot = regression_snapshot((1, 2, 1), bias=True)
    found = order(lambda epsilon: float(np.linalg.norm(bias_at(snapshot, epsilon, central, skewed))))
    assert abs(found - expected) < 0.02


@pytest.mark.parametrize("law", [signs, three_points])
def test_under_a_symmetric_law_both_differences_have_one_mean_with_a_bias_of_second_order(
    law: Callable[[], Enumeration],
) -> None:
    snapshot = regression_snapshot((1, 2, 1))
    one_sided, central = (bias_at(snapshot, 0.1, central, law) for central in (False, True))
    np.testing.assert_allclose(one_sided, central, rtol=0, atol=1e-13)
    assert abs(order(lambda epsilon: float(np.linalg.norm(bias_at(snapshot, epsilon, False, law)))) - 2) < 0.02
    assert abs(order(lambda epsilon: float(np.linalg.norm(bias_at(snapshot, epsilon, True, law)))) - 2) < 0.02
    leading = finite_difference.leading_bias(third_of(snapshot), 1e-2, law().fourth_moment)
    np.testing.assert_allclose(bias_at(snapshot, 1e-2, True, law), leading, rtol=0, atol=1e-3 * np.abs(leading).max())
    wrong = finite_difference.leading_bias(third_of(snapshot), 1e-2, law().fourth_moment + 0.1)
    assert np.abs(bias_at(snapshot, 1e-2, True, law) - wrong).max() > 1e-3 * np.abs(leading).max()


@pytest.mark.parametrize(("central", "expected"), [(False, 1), (True, 2)])
def test_order_of_the_error_against_the_forward_gradient_guess(central: bool, expected: int) -> None:
    """√E‖Ĝ − (z·G) z‖² over every z: first order one-sided, second order central, for a symmetric law too."""
    snapshot = regression_snapshot((1, 2, 1))
    gradient = torch.from_numpy(gradient_of(snapshot))

    def error(epsilon: float) -> float:
        law = three_points()
        found = FiniteDifference(epsilon, central, law)(snapshot, 3**4, torch.Generator())
        z = torch.cat([direction.flatten(1) for direction in found.directions], dim=1)
        limit = (z @ gradient)[:, None] * z
        squares = (found.dense(snapshot)[1] - limit).square().sum(1)
        return float(law.weights(3**4, 4) @ squares) ** 0.5

    assert abs(order(error) - expected) < 0.02


def test_the_bias_of_a_cubic_loss_is_its_leading_term() -> None:
    def cubed(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) ** 3).mean()

    snapshot = regression_snapshot((2, 2), n_examples=3, loss_fn=cubed)
    third, hessian = third_of(snapshot), hessian_of(snapshot)
    for law in (signs, three_points):
        leading = finite_difference.leading_bias(third, 0.5, law().fourth_moment)
        np.testing.assert_allclose(bias_at(snapshot, 0.5, False, law), leading, rtol=1e-10, atol=1e-12)
    # The skewed law's first-order term, with the third-order one taken off by a second ε.
    halves = 4 * bias_at(snapshot, 0.25, False, skewed) - bias_at(snapshot, 0.5, False, skewed)
    np.testing.assert_allclose(
        halves, finite_difference.skewed_bias(hessian, 0.5, 1 / math.sqrt(2)), rtol=1e-10, atol=1e-12
    )


@given(seed=st.integers(0, 1000), n_weights=st.integers(1, 3))
@settings(max_examples=15)
def test_truncation_of_the_slope_by_enumeration(seed: int, n_weights: int) -> None:
    rng = np.random.default_rng(seed)
    hessian = rng.normal(size=(n_weights, n_weights))
    hessian = hessian + hessian.T
    third = rng.normal(size=(n_weights,) * 3)
    third = sum((third.transpose(axes) for axes in itertools.permutations(range(3))), np.zeros_like(third))
    # Four Gauss–Hermite points have the moments of N(0, 1) up to the seventh.
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    z = np.array(list(itertools.product(nodes, repeat=n_weights)))
    p = np.array(list(itertools.product(weights / weights.sum(), repeat=n_weights))).prod(1)
    curvature = np.einsum("ni,ij,nj->n", z, hessian, z)
    cubic = np.einsum("ni,nj,nk,ijk->n", z, z, z, third)
    found = finite_difference.one_sided_truncation(hessian, 3.0), finite_difference.central_truncation(third)
    np.testing.assert_allclose(found, [np.sqrt(p @ curvature**2) / 2, np.sqrt(p @ cubic**2) / 6], rtol=1e-10)


@pytest.mark.parametrize("central", [False, True])
def test_best_epsilon_is_the_bottom_of_the_u(central: bool) -> None:
    grid = np.geomspace(1e-6, 1, 2001)
    errors = finite_difference.slope_error(grid, 3.0, 1e-7, central=central)
    best = finite_difference.best_epsilon(3.0, 1e-7, central=central)
    assert abs(math.log(grid[errors.argmin()] / best)) < 0.01
    assert errors.argmin() not in (0, len(grid) - 1)


@pytest.mark.parametrize("central", [False, True])
def test_the_measured_u_of_a_network_in_single_precision(central: bool) -> None:
    """Slope errors from ε = 1e-4 to 1e-1 within a factor of 1.5 of the model, all constants of which are computed."""
    network = fga.networks.mlp([4, 6, 3], seed=0, activation=nn.Tanh)
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(8, 4, generator=generator), torch.arange(8) % 3
    single = fga.capture(network, nn.functional.cross_entropy, inputs, targets)
    double = fga.capture(copy.deepcopy(network).double(), nn.functional.cross_entropy, inputs.double(), targets)
    loss, weights = loss_of_weights(double)
    truncation = (
        finite_difference.central_truncation(third_of(double))
        if central
        else finite_difference.one_sided_truncation(hessian_of(double), 3.0)
    )
    loss_in_single, weights_in_single = loss_of_weights(single)
    steps = 0.01 * torch.randn(400, len(weights), generator=generator)
    moved = torch.func.vmap(loss_in_single)(weights_in_single + steps).double()
    rounding = float((moved - torch.func.vmap(loss)(weights + steps.double())).square().mean().sqrt())
    assert 1e-8 < rounding < 1e-6

    def measured(epsilon: float) -> float:
        found = FiniteDifference(epsilon, central)(single, 2000, torch.Generator().manual_seed(2))
        z = torch.cat([direction.flatten(1) for direction in found.directions], dim=1).double()
        slopes = found.coefficients[:, 0].double()
        return float((slopes - z @ laws.exact_gradient(double)[1]).square().mean().sqrt())

    for epsilon in (1e-4, 1e-3, 1e-2, 1e-1):
        model = float(finite_difference.slope_error(epsilon, truncation, rounding, central=central))
        assert 1 / 1.5 < measured(epsilon) / model < 1.5, (epsilon, measured(epsilon), model)


def assert_differences_of_real_losses(snapshot: Snapshot, central: bool) -> None:
    """Each guess's slope from losses of copies of the network whose weights were moved by hand."""
    found = FiniteDifference(0.05, central)(snapshot, 4, torch.Generator().manual_seed(0))
    for guess in range(4):

        def loss_at(step: float, guess: int = guess) -> Tensor:
            network = copy.deepcopy(snapshot.network)
            parameters = dict(network.named_parameters())
            with torch.no_grad():
                for tap, direction in zip(snapshot.taps, found.directions, strict=True):
                    for name, part in tap.by_parameter(direction[guess]).items():
                        parameters[name].add_(part, alpha=step)
                return snapshot.loss_fn(network(snapshot.inputs), snapshot.targets)

        far = loss_at(-0.05) if central else loss_at(0.0)
        slope = (loss_at(0.05) - far) / (0.1 if central else 0.05)
        torch.testing.assert_close(found.coefficients[guess], slope.expand(len(snapshot.taps)))


@pytest.mark.parametrize("central", [False, True])
def test_a_guess_is_the_difference_of_real_losses_and_leaves_the_weights_alone(central: bool) -> None:
    snapshot = laws.tiny_snapshot((3, 4, 2), bias=True, activation=nn.ReLU)
    before = {name: value.clone() for name, value in snapshot.network.state_dict().items()}
    assert_differences_of_real_losses(snapshot, central)
    for name, value in snapshot.network.state_dict().items():
        assert torch.equal(value, before[name])


class Padded(nn.Module):
    """Writes into an array of its own making."""

    def forward(self, hidden: Tensor) -> Tensor:
        wide = torch.zeros(len(hidden), hidden.shape[1], dtype=hidden.dtype)
        wide[:, :3] = torch.tanh(hidden[:, :3])
        return wide


class Masked(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        out = hidden.clone()
        out[hidden < 0] = 0.1 * hidden[hidden < 0]
        return out


class Branching(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(hidden) if hidden.square().mean().item() < 100 else hidden


class Counting(nn.Module):
    """Counts in a buffer, and would explode with the count if that were kept."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, hidden: Tensor) -> Tensor:
        self.count += 1
        return torch.tanh(hidden) * torch.where(self.count > 50, 1e6, 1.0)


def by_numbers(outputs: Tensor, targets: Tensor) -> Tensor:
    """The squared error, of a branch that no batch of losses can take."""
    error = (outputs - targets).square().mean()
    return error if error.item() >= 0 else -error


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize(
    ("between", "loss_fn"),
    [(module, nn.functional.mse_loss) for module in (Padded, Masked, Branching, Counting)] + [(nn.Tanh, by_numbers)],
)
def test_a_forward_pass_or_loss_that_no_batch_can_take_is_evaluated_guess_by_guess(
    between: Callable[[], nn.Module], loss_fn: Callable[[Tensor, Tensor], Tensor], central: bool
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), between(), nn.Linear(4, 2)).double()
    inputs, targets = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    snapshot = fga.capture(network, loss_fn, inputs, targets)
    before = {name: value.clone() for name, value in snapshot.network.state_dict().items()}
    for _ in range(5):  # What a buffer keeps would be over its limit by then.
        assert_differences_of_real_losses(snapshot, central)
    for name, value in snapshot.network.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_batch_that_gives_other_losses_is_not_used() -> None:
    """A pass that tells a batch of networks from one, as code that looks at its surroundings may."""

    class Otherwise(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return torch.tanh(hidden) * (2 if torch._C._functorch.is_batchedtensor(hidden) else 1)

    network = nn.Sequential(nn.Linear(3, 4), Otherwise(), nn.Linear(4, 2)).double()
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_differences_of_real_losses(fga.capture(network, nn.functional.mse_loss, inputs, inputs[:, :2]), True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [-83, 83])
def test_refusals_and_guesses_do_not_depend_on_the_scale_of_the_loss(exponent: int, dtype: torch.dtype) -> None:
    plain = single_precision(dtype=dtype)
    factor = 2.0**exponent
    scaled = single_precision(lambda o, t: factor * nn.functional.mse_loss(o, t), dtype)
    guesses = [FiniteDifference()(snapshot, 4, torch.Generator().manual_seed(0)) for snapshot in (plain, scaled)]
    assert torch.equal(guesses[1].coefficients, factor * guesses[0].coefficients)
    tiny = 3e-9 if dtype == torch.float32 else 3e-18
    for epsilon in (tiny, 1e-30, 1e200 if dtype == torch.float64 else 1e30):
        for central in (False, True):
            messages = []
            for snapshot in (plain, scaled):
                with pytest.raises(ValueError, match=r"^epsilon=") as caught:
                    FiniteDifference(epsilon, central)(snapshot, 1, torch.Generator().manual_seed(0))
                messages.append(str(caught.value))
            assert messages[0] == messages[1]


def test_frozen_weights_are_not_moved() -> None:
    """As in fine-tuning of a few: what is frozen has no columns in a guess, and its loss is that of frozen weights."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    network[0].requires_grad_(False)
    network[2].weight.requires_grad_(False)
    network[4].bias.requires_grad_(False)
    inputs, targets = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    snapshot = fga.capture(network, nn.functional.mse_loss, inputs, targets)
    assert_differences_of_real_losses(snapshot, True)
    for estimator in (FiniteDifference(), fga.estimators.WeightPerturbation(), fga.estimators.MultiTangent(k=2)):
        guess = estimator(snapshot, 2, torch.Generator().manual_seed(0))
        assert guess.numbers_per_guess() == 4 + 8
        assert fga.check_unbiased(estimator, snapshot, tolerance=0.5).outcome == "unbiased"


def test_threads_do_not_see_each_others_weights() -> None:
    snapshot = laws.tiny_snapshot((3, 8, 2))
    one, two = (
        fga.sample(snapshot, "finite_difference", n_guesses=256, block_size=4, workers=workers) for workers in (1, 2)
    )
    np.testing.assert_array_equal(one.inner_product, two.inner_product)


def test_named_laws_hold() -> None:
    snapshot = laws.tiny_snapshot((3, 4, 3, 2), n_examples=3, bias=True)
    forward = laws.tiny_snapshot((3, 4, 3, 2), 3, bias=True, autodiff="forward")
    for estimator in (FiniteDifference(), FiniteDifference(central=False)):
        laws.assert_seeded(estimator, snapshot)
        laws.assert_modes_agree(estimator, snapshot, forward)
        laws.assert_equivariant_under_loss_scaling(estimator, snapshot)


@pytest.mark.parametrize("epsilon", [0.0, -1e-3, float("inf"), float("nan")])
def test_an_epsilon_that_is_no_step_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon must be a finite number above 0"):
        FiniteDifference(epsilon)


def single_precision(
    loss_fn: Callable[[Tensor, Tensor], Tensor] = nn.functional.mse_loss, dtype: torch.dtype = torch.float32
) -> Snapshot:
    generator = torch.Generator().manual_seed(0)
    network = fga.networks.mlp([3, 4, 2], seed=0, bias=False, dtype=dtype)
    inputs, targets = torch.randn(4, 3, generator=generator), torch.randn(4, 2, generator=generator)
    return fga.capture(network, loss_fn, inputs.to(dtype), targets.to(dtype))


@pytest.mark.parametrize("central", [False, True])
def test_an_epsilon_that_underflows_is_refused_in_one_sentence(central: bool) -> None:
    for epsilon, message in ((1e-30, "underflows: no weight changes"), (3e-9, "is too small: the losses differ by")):
        with pytest.raises(ValueError, match=message) as caught:
            FiniteDifference(epsilon, central)(single_precision(), 1, torch.Generator().manual_seed(0))
        assert "\n" not in str(caught.value) and "float32" in str(caught.value)


@pytest.mark.parametrize("central", [False, True])
def test_an_epsilon_that_overflows_is_refused_and_ends_a_run(central: bool, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot, estimator = single_precision(), FiniteDifference(1e30, central)
    message = "epsilon=1e+30 is too large: a loss at moved weights is not finite"
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        estimator(snapshot, 2, torch.Generator().manual_seed(0))
    data = fga.datasets.Dataset(snapshot.inputs, snapshot.targets, snapshot.inputs, snapshot.targets)
    run = fga.train(snapshot.network, data, estimator, loss_fn=snapshot.loss_fn, epochs=1)
    assert run.log.sizes["step"] == 1 and message in "".join(capsys.readouterr())
    for trained, before in zip(run.network.parameters(), snapshot.network.parameters(), strict=True):
        assert torch.equal(trained, before)


@pytest.mark.parametrize("central", [False, True])
def test_a_seed_and_a_slope_are_the_guess(central: bool) -> None:
    """The directions are all that is drawn, so that they are had again from the generator's state, bit for bit."""
    snapshot, estimator = laws.tiny_snapshot((3, 4, 2), bias=True), FiniteDifference(1e-3, central)
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    found = estimator(snapshot, 3, generator)
    again = torch.Generator()
    again.set_state(state)
    for direction, z in zip(found.directions, estimator.draw(snapshot, 3, again), strict=True):
        assert torch.equal(direction, z)
    assert torch.equal(generator.get_state(), again.get_state())


def test_a_loss_that_is_flat_has_slopes_of_zero() -> None:
    def flat(outputs: Tensor, targets: Tensor) -> Tensor:
        return (0 * outputs).mean()

    snapshot = single_precision(nn.functional.cross_entropy)
    snapshot = freeze(snapshot.network, flat, snapshot.inputs, snapshot.targets, autodiff="reverse", step=0)
    for epsilon in (1e-6, 1e-3):
        found = FiniteDifference(epsilon)(snapshot, 3, torch.Generator().manual_seed(0))
        assert not found.coefficients.any()
