"""What a capture keeps and measures of networks that are no plain chain, or are used in unusual ways."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fganalysis as fga
from fganalysis.capturing.capture import checked_for_training
from fganalysis.capturing.errors import CannotMeasure
from tests.unit.capturing.small_networks import (
    Forward,
    autograd_norm,
    batch,
    batch_mean,
    mlp,
    norm,
    weight_normed,
)


def test_frozen_parameters_are_constants() -> None:
    """The weights of a LoRA-like network are frozen, its adapters' variance is that of the adapters alone."""
    x, y = batch()
    network = Forward(lambda n, x: n.h(torch.tanh(n.a(x))))
    network.a.weight.requires_grad_(False)
    network.h.bias.requires_grad_(False)
    snapshot = fga.capture(network, F.cross_entropy, x, y)
    assert [tap.parameter_names for tap in snapshot.taps] == [("a.bias",), ("h.weight",)]
    assert [tuple(g.shape) for g in snapshot.weight_gradients] == [(16, 1), (4, 16)]
    assert norm(snapshot) == pytest.approx(autograd_norm(network, F.cross_entropy, x, y), rel=1e-5)
    squared = float(snapshot.loss.new_tensor(norm(snapshot)) ** 2)
    n_weights = sum(p.numel() for p in network.parameters() if p.requires_grad)
    measured = fga.sample(snapshot, "weight", 2048).sel(space="weight", layer="all")
    predicted = float(fga.predict(snapshot, "weight")["variance"].sel(space="weight", layer="all"))
    assert predicted == pytest.approx((n_weights + 1) * squared, rel=1e-4)
    assert float(measured["variance_low"]) < predicted < float(measured["variance_high"])
    everything = fga.sample(snapshot, "finite_difference", 64)
    assert bool(np.isfinite(everything["variance"].sel(space="weight")).all())
    network.requires_grad_(False)
    with pytest.raises(CannotMeasure, match="no tap"):
        fga.capture(network, F.cross_entropy, x, y)


@pytest.mark.parametrize("between", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("autodiff", ["reverse", "forward"])
def test_a_frozen_layer_in_the_middle_is_part_of_the_upstream_jacobian(between: type[nn.Module], autodiff: str) -> None:
    x, y = batch()
    network = mlp(8, 16, 16, 4, between=between)
    network[2].requires_grad_(False)
    snapshot = fga.capture(network, F.cross_entropy, x, y, autodiff=autodiff)  # type: ignore[arg-type]
    assert snapshot.layers == ("0", "4")
    jacobian = snapshot.jacobians[0]
    assert jacobian is not None and jacobian.kernel is None
    pulled = jacobian.transposed_product(snapshot.gradients[1][None])[0]
    torch.testing.assert_close(pulled, snapshot.gradients[0])
    assert norm(snapshot) == pytest.approx(autograd_norm(network, F.cross_entropy, x, y), rel=1e-5)


@pytest.mark.parametrize("kind", ["batch mean", "BatchNorm"])
def test_examples_that_interact_have_a_slope_of_the_batch_alone(kind: str) -> None:
    x, y = batch()
    network = (
        Forward(batch_mean)
        if kind == "batch mean"
        else nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4))
    )
    snapshot = fga.capture(network.double(), F.cross_entropy, x.double(), y)
    named = "tap 'a' and the outputs" if kind == "batch mean" else "'1' is BatchNorm in training mode"
    for estimator in ("activity", "upstream", "minibatch", fga.estimators.WeightPerturbation(shared=False)):
        with pytest.raises(ValueError, match=named):
            fga.sample(snapshot, estimator, 64)
    by_batch = fga.estimators.ActivityPerturbation(slope="batch")
    assert fga.check_unbiased(by_batch, snapshot, tolerance=0.2).outcome == "unbiased"
    assert fga.check_unbiased("weight", snapshot, tolerance=0.2).outcome == "unbiased"


def test_examples_that_interact_are_refused_in_training_in_forward_mode() -> None:
    with pytest.raises(CannotMeasure, match="examples interact"):
        checked_for_training(Forward(batch_mean), F.cross_entropy, *batch(), autodiff="forward")


def test_a_weight_that_is_computed_from_others_is_a_parameter_of_its_module() -> None:
    x, y = batch()
    network = weight_normed()
    snapshot = fga.capture(network, F.cross_entropy, x, y)
    assert snapshot.layers == ("0", "2")
    assert norm(snapshot) == pytest.approx(autograd_norm(network, F.cross_entropy, x, y), rel=1e-5)


def test_a_penalty_in_the_loss_is_refused_whichever_network_it_reads() -> None:
    x, y = batch()
    network = mlp(8, 16, 4)

    def penalised(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) + 0.1 * network[0].weight.square().sum()

    with pytest.raises(CannotMeasure, match=r"loss_fn reads parameter '0\.weight' by itself"):
        fga.capture(network, penalised, x, y)
    for autodiff in ("reverse", "forward"):
        with pytest.raises(CannotMeasure):
            checked_for_training(network, penalised, x, y, autodiff=autodiff)  # type: ignore[arg-type]


def test_a_shared_weight_counts_once() -> None:
    x, y = batch(classes=8)
    network = mlp(8, 8, 8)
    network[2].weight = network[0].weight
    snapshot = fga.capture(network, F.cross_entropy, x, y)
    assert snapshot.layers == ("0",) and [tap.name for tap in snapshot.taps] == ["0", "2"]
    assert snapshot.weights[0].parameter_names == ("0.weight", "0.bias", "2.bias")
    assert norm(snapshot) == pytest.approx(autograd_norm(network, F.cross_entropy, x, y), rel=1e-5)


def test_a_snapshot_keeps_its_batch() -> None:
    x, y = batch()
    snapshot = fga.capture(mlp(8, 16, 4), F.cross_entropy, x, y)
    before = fga.sample(snapshot, "finite_difference", 64), fga.predict(snapshot, "activity")
    x.fill_(7.0)
    y.zero_()
    after = fga.sample(snapshot, "finite_difference", 64), fga.predict(snapshot, "activity")
    assert before[0].equals(after[0]) and before[1].equals(after[1])


def test_autocast_and_inference_mode_around_a_capture_change_nothing() -> None:
    x, y = batch()
    network = mlp(8, 16, 4)
    exact = fga.capture(network, F.cross_entropy, x, y).gradients
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = fga.capture(network, F.cross_entropy, x, y).gradients
    with torch.inference_mode():
        inferred = fga.capture(network, F.cross_entropy, x.clone(), y).gradients
    for own, other, third in zip(exact, cast, inferred, strict=True):
        assert torch.equal(own, other) and torch.equal(own, third)


class OnlyBackward(torch.autograd.Function):
    """tanh with a backward pass and without forward mode."""

    @staticmethod
    def forward(ctx, z):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(z)
        return torch.tanh(z)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return g * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)


def test_reverse_mode_needs_no_forward_mode() -> None:
    x, y = batch()
    network = Forward(lambda n, x: n.h(OnlyBackward.apply(n.a(x))))  # type: ignore[no-any-return, no-untyped-call]
    snapshot = fga.capture(network, F.cross_entropy, x, y)
    assert norm(snapshot) == pytest.approx(autograd_norm(network, F.cross_entropy, x, y), rel=1e-5)
    with pytest.raises(CannotMeasure, match="use autodiff='reverse'"):
        fga.capture(network, F.cross_entropy, x, y, autodiff="forward")


def test_fused_attention_is_written_out_for_forward_mode() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.h = nn.Linear(8, 72), nn.Linear(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).view(-1, 3, 1, 3, 8).unbind(1)
            return self.h(F.scaled_dot_product_attention(q, k, v).flatten(1))  # type: ignore[no-any-return]

    x, y = batch()
    network = Attention()
    forward, reverse = (fga.capture(network, F.cross_entropy, x, y, autodiff=mode) for mode in ("forward", "reverse"))
    drawn = [torch.randn(3, *tap.outputs.shape, generator=torch.Generator().manual_seed(0)) for tap in forward.taps]
    torch.testing.assert_close(forward.slopes(drawn), reverse.slopes(drawn), rtol=1e-4, atol=1e-6)


def test_forward_mode_from_two_threads_gives_what_one_gives() -> None:
    snapshot = fga.capture(mlp(8, 16, 4), F.cross_entropy, *batch(), autodiff="forward")
    alone = [fga.sample(snapshot, "activity", 96, seed=seed) for seed in range(4)]
    together: dict[int, object] = {}
    threads = [
        threading.Thread(target=lambda s=seed: together.update({s: fga.sample(snapshot, "activity", 96, seed=s)}))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(expected.equals(together[seed]) for seed, expected in enumerate(alone))


def test_a_compiled_network_is_the_network_that_was_compiled() -> None:
    x, y = batch()
    network = mlp(8, 16, 4)
    compiled = torch.compile(network, backend="eager")
    snapshot = fga.capture(compiled, F.cross_entropy, x, y)
    assert snapshot.layers == ("0", "2")
    assert norm(snapshot) == pytest.approx(autograd_norm(network, F.cross_entropy, x, y), rel=1e-5)


def test_a_checkpointed_block_and_a_keyword_call_are_measured() -> None:
    from torch.utils.checkpoint import checkpoint

    x, y = batch()
    plain = Forward(lambda n, x: n.h(torch.tanh(n.a(x))))
    exact = fga.capture(plain, F.cross_entropy, x, y)
    again = Forward(lambda n, x: n.h(checkpoint(lambda z: torch.tanh(n.a(z)), x, use_reentrant=False)))
    keyword = Forward(lambda n, x: n.h(input=torch.tanh(n.a(input=x))))
    for network in (again, keyword):
        snapshot = fga.capture(network, F.cross_entropy, x, y)
        for own, other in zip(exact.gradients, snapshot.gradients, strict=True):
            torch.testing.assert_close(own, other)
        torch.testing.assert_close(snapshot.upstream[0].derivative, exact.upstream[0].derivative)
