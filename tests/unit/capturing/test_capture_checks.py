"""A capture takes nothing on trust: a wrong network is refused by its cause, or measured as autograd has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import fganalysis as fga
from fganalysis.capturing.capture import checked_for_training
from fganalysis.capturing.errors import CannotMeasure
from tests.unit.capturing.small_networks import (
    EXAMPLES,
    Forward,
    ScaledTanh,
    batch,
    hooked,
    masked,
    mlp,
    straight_through,
    tied,
    with_counter,
)

REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "straight-through": (lambda: Forward(straight_through), "not the derivative of the forward pass"),
    "detached trunk": (lambda: Forward(lambda n, x: n.h(torch.tanh(n.a(x)).detach())), "no gradient reaches it"),
    "functional dropout": (lambda: Forward(lambda n, x: n.h(F.dropout(n.a(x), 0.5))), "two forward passes .* differ"),
    "numpy noise": (lambda: Forward(lambda n, x: n.h(n.a(x) + np.random.default_rng().normal())), "passes .* differ"),
    "a state": (lambda: Forward(with_counter), "two forward passes .* differ"),
    "RReLU": (lambda: mlp(8, 16, 4, between=nn.RReLU), "two forward passes .* differ"),
    "tied by hand": (lambda: Forward(tied), r"the gradient of 'a\.weight' has norm"),
    "masked by a hook": (lambda: hooked(), r"the gradient of '0\.weight' has norm"),
    "called by hand": (lambda: Forward(masked), ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_refused_by_its_cause(name: str) -> None:
    make, message = REFUSED[name]
    network = make()
    x, y = batch() if name != "tied by hand" else (batch()[0], batch()[0])
    loss_fn = F.mse_loss if name == "tied by hand" else F.cross_entropy
    if not message:  # Weights that no module reads are a layer of their own.
        snapshot = fga.capture(network, loss_fn, x, y)
        assert snapshot.untapped_parameters == ("a.weight", "a.bias") and snapshot.layers[-1] == "untapped"
        return
    for call in (
        lambda: fga.capture(network, loss_fn, x, y),
        lambda: checked_for_training(network, loss_fn, x, y, autodiff="reverse"),
    ):
        with pytest.raises(CannotMeasure, match=message) as caught:
            call()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["functional dropout", "tied by hand", "masked by a hook", "RReLU"])
def test_training_in_forward_mode_checks_the_same_without_a_backward_pass(name: str) -> None:
    network = REFUSED[name][0]()
    x, y = batch() if name != "tied by hand" else (batch()[0], batch()[0])
    loss_fn = F.mse_loss if name == "tied by hand" else F.cross_entropy
    with pytest.raises(CannotMeasure):
        checked_for_training(network, loss_fn, x, y, autodiff="forward")
    assert checked_for_training(mlp(8, 16, 4), F.cross_entropy, *batch(), autodiff="forward").exact_gradients is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("loss_scale", [1e-22, 1.0, 1e20])
@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 2.0])
def test_a_backward_pass_that_is_off_by_a_tenth_is_caught(factor: float, loss_scale: float, dtype: torch.dtype) -> None:
    x, y = batch(dtype=dtype)

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss_scale * F.cross_entropy(outputs, targets)

    with pytest.raises(CannotMeasure, match=r"most at '0\.(weight|bias)'"):
        fga.capture(mlp(8, 16, 16, 4, between=lambda: ScaledTanh(factor), dtype=dtype), loss_fn, x, y)
    fga.capture(mlp(8, 16, 16, 4, between=lambda: ScaledTanh(1.0), dtype=dtype), loss_fn, x, y)


SMOOTH_AND_KINKED = [nn.ReLU, nn.Tanh, nn.GELU, nn.Hardtanh, nn.Sigmoid, nn.SiLU]


@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    between=st.sampled_from(SMOOTH_AND_KINKED),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    input_scale=st.sampled_from([1e-2, 1.0, 100.0]),
    loss=st.sampled_from(["cross_entropy", "squares", "distance"]),
    n_examples=st.integers(1, 32),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=150, deadline=None)
def test_no_ordinary_network_is_refused(
    sizes: list[int],
    between: type[nn.Module],
    dtype: torch.dtype,
    input_scale: float,
    loss: str,
    n_examples: int,
    seed: int,
) -> None:
    """A false alarm of the difference of losses would refuse what can be measured."""
    generator = torch.Generator().manual_seed(seed)
    network = mlp(*sizes, between=between, dtype=dtype)
    for parameter in network.parameters():
        bound = parameter.shape[-1] ** -0.5
        drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float64) * 2 * bound - bound
        parameter.data = drawn.to(dtype)
    x = (torch.randn(n_examples, sizes[0], generator=generator, dtype=torch.float64) * input_scale).to(dtype)
    y = torch.randint(sizes[-1], (n_examples,), generator=generator)
    hot = F.one_hot(y, sizes[-1]).to(dtype)
    losses: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = {
        "cross_entropy": (F.cross_entropy, y),
        "squares": (F.mse_loss, hot),
        "distance": (F.l1_loss, hot),
    }
    loss_fn, targets = losses[loss]
    try:
        fga.capture(network, loss_fn, x, targets)
    except CannotMeasure as error:
        assert "the gradient is zero at every tap" in str(error)  # Of dead units, or of the softmax of one number.


class Counted(torch.autograd.Function):
    """The identity, which counts its passes."""

    passes: ClassVar[dict[str, int]] = {"forward": 0, "backward": 0}

    @staticmethod
    def forward(ctx, z):  # type: ignore[no-untyped-def]
        Counted.passes["forward"] += 1
        return z.clone()

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        Counted.passes["backward"] += 1
        return g


def test_the_checks_cost_two_forward_and_two_backward_passes() -> None:
    network = Forward(lambda n, x: Counted.apply(n.h(torch.relu(n.a(x)))))  # type: ignore[no-untyped-call]
    Counted.passes.update(forward=0, backward=0)
    fga.capture(network, F.cross_entropy, *batch())
    # One of each is the capture itself: it records the taps and takes the exact gradient.
    assert Counted.passes == {"forward": 3, "backward": 3}
    Counted.passes.update(forward=0, backward=0)
    data = fga.datasets.Dataset(*batch(), *batch())
    fga.train(network, data, "activity", epochs=10, batch_size=EXAMPLES, log_every=1000)
    # Ten steps of one forward and one backward pass, checked once; what is asked of the data and the log's evaluations
    # at the first and the last step are forward passes alone.
    assert Counted.passes["backward"] == 10 + 3
    assert Counted.passes["forward"] <= 10 + 3 + 6
