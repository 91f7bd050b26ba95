import pytest
import torch

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators.guesses import ActivationEstimates, Estimates, WeightEstimates
from tests.laws import tiny_snapshot

N_GUESSES = 5


def some_estimates(kind: str, snapshot: Snapshot) -> Estimates:
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    if kind == "activation":
        return ActivationEstimates(tuple(normal(N_GUESSES, *tap.outputs.shape) for tap in snapshot.taps))
    directions = tuple(normal(N_GUESSES, *tap.weight.shape) for tap in snapshot.taps)
    return WeightEstimates(normal(N_GUESSES, len(snapshot.taps)), directions)


def dense_by_layer(estimates: Estimates, snapshot: Snapshot) -> list[list[torch.Tensor]]:
    """The naive reference: every guess of every layer written out as a matrix, per space."""
    spaces: list[list[torch.Tensor]] = [[], []]
    for index, tap in enumerate(snapshot.taps):
        if isinstance(estimates, ActivationEstimates):
            guess = estimates.guesses[index]
            spaces[0].append(guess)
            spaces[1].append(torch.stack([one.T @ tap.inputs for one in guess]))
        else:
            assert isinstance(estimates, WeightEstimates)
            pairs = zip(estimates.coefficients[:, index], estimates.directions[index], strict=True)
            spaces[1].append(torch.stack([coefficient * direction for coefficient, direction in pairs]))
    return spaces


@pytest.mark.parametrize("kind", ["activation", "weight"])
@pytest.mark.parametrize("n_examples", [2, 9])
@pytest.mark.parametrize("bias", [False, True])
def test_scalars_equal_those_of_dense_matrices(kind: str, n_examples: int, bias: bool) -> None:
    snapshot = tiny_snapshot((4, 5, 3), n_examples=n_examples, bias=bias)
    estimates = some_estimates(kind, snapshot)
    inner, norms = estimates.inner_products(snapshot)
    means = [estimates.first(2).total(), estimates.total()]
    grams = estimates.error_grams(snapshot, means)
    exact = (snapshot.gradients, snapshot.weight_gradients)
    for space, layers in enumerate(dense_by_layer(estimates, snapshot)):
        if not layers:
            assert torch.isnan(inner[space]).all() and torch.isnan(norms[space]).all()
            assert torch.isnan(grams[space]).all()
        for layer, guesses in enumerate(layers):
            gradient = exact[space][layer]
            torch.testing.assert_close(inner[space, layer], (guesses * gradient).sum((1, 2)))
            torch.testing.assert_close(norms[space, layer], guesses.square().sum((1, 2)))
            errors = torch.stack([guesses[:2].sum(0) - gradient, guesses.sum(0) - gradient]).flatten(1)
            torch.testing.assert_close(grams[space, layer], errors @ errors.T)


@pytest.mark.parametrize("kind", ["activation", "weight"])
def test_dense_and_mean_weight_gradients(kind: str) -> None:
    snapshot = tiny_snapshot((4, 5, 3), n_examples=3)
    estimates = some_estimates(kind, snapshot)
    activation, weight = estimates.dense(snapshot)
    assert (activation is None) == (kind == "weight")
    flat = torch.cat([gradient.flatten() for gradient in estimates.weight_gradients(snapshot)])
    torch.testing.assert_close(flat, weight.mean(0))
    assert weight.shape == (N_GUESSES, sum(tap.weight.numel() for tap in snapshot.taps))
    assert len(estimates) == N_GUESSES and len(estimates.first(2)) == 2
    sizes = [tap.outputs.numel() if kind == "activation" else tap.weight.numel() for tap in snapshot.taps]
    assert estimates.numbers_per_guess() == sum(sizes)


def test_a_wrong_kernel_would_be_seen() -> None:
    snapshot = tiny_snapshot((4, 5, 3), n_examples=3)
    estimates = some_estimates("activation", snapshot)
    _, norms = estimates.inner_products(snapshot)
    assert not torch.allclose(norms[0], norms[1], rtol=0.05)


def test_a_mean_much_shorter_than_the_gradient_is_known_from_its_error() -> None:
    """In single precision: of the mean c·g, c = 2⁻¹⁵, the Gram matrix gives ‖c g‖² = ‖error‖² + 2c‖g‖² − ‖g‖²."""
    network = fga.networks.mlp([40, 128, 128, 10], bias=False, seed=0)
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(16, 40, generator=generator), torch.randint(0, 10, (16,), generator=generator)
    snapshot = fga.capture(network, torch.nn.functional.cross_entropy, inputs, targets)
    share = 2.0**-15  # Of a float32 all digits are kept.
    means = tuple(share * gradient for gradient in snapshot.weight_gradients)
    estimates = WeightEstimates(torch.ones(1, len(means)), tuple(mean.unsqueeze(0) for mean in means))
    for gram, gradient in zip(estimates.error_grams(snapshot, [means])[1], snapshot.weight_gradients, strict=True):
        squared = gradient.double().square().sum()
        torch.testing.assert_close(gram[0, 0] + (2 * share - 1) * squared, share**2 * squared, rtol=1e-4, atol=0.0)
