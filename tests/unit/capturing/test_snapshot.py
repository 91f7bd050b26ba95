import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fganalysis as fga
from fganalysis.capturing.capture import freeze
from fganalysis.capturing.tap import Loss
from tests.laws import tiny_snapshot

cross_entropy = nn.functional.cross_entropy


def batch(n_examples: int = 4, inputs: int = 3, classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n_examples, inputs, generator=generator), torch.arange(n_examples) % classes


@given(seed=st.integers(0, 1000), bias=st.booleans(), activation=st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU]))
@settings(max_examples=15, deadline=None)
def test_gradients_are_those_of_autograd(seed: int, bias: bool, activation: type[nn.Module]) -> None:
    snapshot = tiny_snapshot((4, 5, 3, 2), n_examples=3, seed=seed, bias=bias, activation=activation)
    parameters = list(snapshot.network.parameters())
    loss = cross_entropy(snapshot.network(snapshot.inputs), snapshot.targets)
    expected = iter(torch.autograd.grad(loss, parameters))
    for gradient in snapshot.weight_gradients:
        wanted = next(expected)
        if bias:
            wanted = torch.cat([wanted, next(expected).unsqueeze(1)], dim=1)
        torch.testing.assert_close(gradient, wanted)
        assert gradient.is_contiguous(), "every product with it would copy it"


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, lambda: nn.ReLU(inplace=True)])
def test_backpropagation_is_the_product_with_the_upstream_jacobians(activation) -> None:  # type: ignore[no-untyped-def]
    inputs, targets = batch()
    network = nn.Sequential(nn.Linear(3, 5), activation(), nn.Linear(5, 4), activation(), nn.Linear(4, 2))
    snapshot = fga.capture(network, cross_entropy, inputs, targets)
    for index, jacobian in enumerate(snapshot.upstream):
        product = jacobian.transposed_product(snapshot.gradients[index + 1][None])[0]
        torch.testing.assert_close(product, snapshot.gradients[index])


def test_kernel_root_gives_the_kernel_on_both_sides_of_its_choice() -> None:
    for n_examples in (2, 3, 7):
        for tap in tiny_snapshot((4, 3, 2), n_examples=n_examples).taps:
            torch.testing.assert_close(tap.kernel_root.T @ tap.kernel_root, tap.kernel)


def test_a_snapshot_does_not_follow_the_network() -> None:
    inputs, targets = batch()
    network = fga.networks.mlp([3, 4, 2], seed=0)
    snapshot = fga.capture(network, cross_entropy, inputs, targets)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert float(snapshot.gradients[0].norm()) > 0


@given(seed=st.integers(0, 1000), bias=st.booleans(), layers=st.sampled_from(["joint", "separate"]))
@settings(max_examples=10, deadline=None)
def test_forward_mode_slopes_equal_inner_products(seed: int, bias: bool, layers: str) -> None:
    forward = tiny_snapshot((4, 5, 3, 2), 3, seed, bias, nn.ReLU, autodiff="forward")
    reverse = tiny_snapshot((4, 5, 3, 2), 3, seed, bias, nn.ReLU)
    generator = torch.Generator().manual_seed(seed)
    activations = [torch.randn(6, *t.outputs.shape, generator=generator, dtype=torch.float64) for t in reverse.taps]
    weights = [torch.randn(6, *t.weight.shape, generator=generator, dtype=torch.float64) for t in reverse.taps]
    torch.testing.assert_close(forward.slopes(activations, layers), reverse.slopes(activations, layers))
    torch.testing.assert_close(forward.weight_slopes(weights, layers), reverse.weight_slopes(weights, layers))


@pytest.mark.parametrize("estimator", ["weight", "low_rank"])
def test_weights_without_forward_mode_are_refused_in_one_sentence(estimator: str) -> None:
    """Guesses at the activations need none; torch has no rule for the tangent of a normalised weight."""
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))
    inputs, targets = torch.randn(4, 3), torch.randint(2, (4,))
    snapshot = fga.capture(network, cross_entropy, inputs, targets, autodiff="forward")
    fga.sample(snapshot, "activity", 2)
    with pytest.raises(ValueError, match="no rule for an operation on the weights"):
        fga.sample(snapshot, estimator, 2)


def test_forward_mode_agrees_in_single_precision() -> None:
    inputs, targets = batch(16)
    network = fga.networks.mlp([3, 32, 32, 2], seed=0)
    forward = fga.capture(network, cross_entropy, inputs, targets, autodiff="forward")
    reverse = fga.capture(network, cross_entropy, inputs, targets)
    directions = [torch.randn(4, *t.outputs.shape, generator=torch.Generator().manual_seed(1)) for t in reverse.taps]
    torch.testing.assert_close(forward.slopes(directions), reverse.slopes(directions), rtol=1e-4, atol=1e-6)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.first(x))
        return self.last(hidden + torch.relu(self.second(hidden)))


def with_nan() -> nn.Module:
    network = nn.Linear(3, 2)
    with torch.no_grad():
        network.weight[0, 0] = float("nan")
    return network


BAD = [
    (nn.Sequential(nn.ReLU()), cross_entropy, 4, "no tap"),
    (nn.Linear(3, 2), lambda o, t: cross_entropy(o, t, reduction="none"), 4, "must return one number"),
    (nn.Linear(3, 2), cross_entropy, 0, "the batch is empty"),
    (with_nan(), cross_entropy, 4, "NaN or infinite activations"),
    (nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2)), cross_entropy, 4, "dropout in training mode"),
]


@pytest.mark.parametrize(("network", "loss_fn", "n_examples", "message"), BAD, ids=[case[-1] for case in BAD])
def test_bad_input_is_refused_in_one_sentence(network, loss_fn, n_examples, message) -> None:  # type: ignore[no-untyped-def]
    inputs, targets = batch(n_examples)
    with pytest.raises(ValueError, match=message) as caught:
        fga.capture(network, loss_fn, inputs, targets)
    assert "\n" not in str(caught.value)


def test_batch_norm_in_evaluation_mode_is_elementwise() -> None:
    inputs, targets = batch()
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    network[1].requires_grad_(False)  # Trained, it is a tap of its own.
    snapshot = fga.capture(network, cross_entropy, inputs, targets)
    product = snapshot.upstream[0].transposed_product(snapshot.gradients[1][None])[0]
    torch.testing.assert_close(product, snapshot.gradients[0])


@pytest.mark.parametrize("between", [nn.Softmax(dim=1), nn.LayerNorm(4)])
def test_the_upstream_jacobian_goes_through_what_mixes_units(between: nn.Module) -> None:
    inputs, targets = batch()
    network = nn.Sequential(nn.Linear(3, 4), between, nn.Linear(4, 2))
    for autodiff in ("reverse", "forward"):
        snapshot = fga.capture(network, cross_entropy, inputs, targets, autodiff=autodiff)
        jacobian = snapshot.jacobians[0]
        assert jacobian is not None
        pulled = jacobian.transposed_product(snapshot.gradients[1][None])[0]
        torch.testing.assert_close(pulled, snapshot.gradients[0])
    with pytest.raises(ValueError, match="no chain of Linear modules"):
        _ = snapshot.upstream


def test_where_a_branch_goes_around_a_tap_its_jacobian_is_that_to_the_next_tap_alone() -> None:
    snapshot = fga.capture(Residual(), cross_entropy, *batch())
    assert [tap.following for tap in snapshot.taps] == [1, 2, None]
    jacobian = snapshot.jacobians[0]
    assert jacobian is not None
    pulled = jacobian.transposed_product(snapshot.gradients[1][None])[0]
    assert not torch.allclose(pulled, snapshot.gradients[0])  # The branch is not in it.
    assert fga.sample(snapshot, "upstream", n_guesses=8).sizes["layer"] == 4


def test_mismatched_batch_and_unknown_mode_are_refused() -> None:
    inputs, targets = batch()
    with pytest.raises(ValueError, match="4 examples but targets 3"):
        fga.capture(nn.Linear(3, 2), cross_entropy, inputs, targets[:3])
    with pytest.raises(ValueError, match="autodiff must be"):
        fga.capture(nn.Linear(3, 2), cross_entropy, inputs, targets, autodiff="sideways")
    two_positions = fga.capture(nn.Linear(3, 2), lambda o, t: o.mean(), inputs[:, None].expand(-1, 2, -1), targets)
    assert two_positions.taps[0].outputs.shape == (8, 2)


def one_hot_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - nn.functional.one_hot(targets, outputs.shape[1])).square().mean()


def picked(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -outputs.log_softmax(1).gather(1, targets[:, None]).mean()


@pytest.mark.parametrize("loss_fn", [nn.functional.cross_entropy, one_hot_error, picked])
@pytest.mark.parametrize("bad", [3, 11, -1])
def test_class_indices_beyond_the_outputs_are_refused_in_one_sentence(loss_fn: Loss, bad: int) -> None:
    network, inputs = fga.networks.mlp([4, 5, 3]), torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 2, bad, 1])
    sentence = f"^targets must be class indices from 0 to 2, got {bad}$"
    with pytest.raises(ValueError, match=sentence):
        fga.capture(network, loss_fn, inputs, targets)
    with pytest.raises(ValueError, match=sentence):
        freeze(network, loss_fn, inputs, targets, autodiff="reverse", step=0)
    with pytest.raises(ValueError, match=sentence):
        fga.estimate_gradient(network, loss_fn, inputs, targets, "activity", torch.Generator())


def test_integer_targets_that_the_loss_accepts_are_no_classes() -> None:
    network, inputs = fga.networks.mlp([4, 5, 1]), torch.ones(3, 4)

    def distance(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs[:, 0] - targets).abs().mean()

    snapshot = fga.capture(network, distance, inputs, torch.tensor([7, -2, 5]))
    assert float(snapshot.loss) > 1

    def broken(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise IndexError("of its own")

    for targets in ([0, 0, 0], [0, 0, 9], [0.5, 9.0, 0.0]):
        with pytest.raises(ValueError, match="loss_fn fails on outputs of shape") as caught:
            fga.capture(network, broken, inputs, torch.tensor(targets))
        assert "of its own" in str(caught.value.__cause__)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_refused_by_name(dtype: torch.dtype) -> None:
    inputs, targets = batch()
    network = fga.networks.mlp([3, 4, 2], seed=0, dtype=dtype)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"tap '0' has activations of {kind}, and only float32 and float64"):
        fga.capture(network, cross_entropy, inputs.to(dtype), targets)
