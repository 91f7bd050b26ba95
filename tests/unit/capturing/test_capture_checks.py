"""A capture takes nothing on trust: a wrong network is refused by its cause, or measured as autograd has it."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
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
from fganalysis.capturing.snapshot import Snapshot

EXAMPLES = 16


def batch(inputs: int = 8, classes: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(EXAMPLES, inputs, generator=generator, dtype=torch.float64).to(dtype)
    return drawn, torch.randint(classes, (EXAMPLES,), generator=generator)


def mlp(*sizes: int, between: Callable[[], nn.Module] = nn.Tanh, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers: list[nn.Module] = []
        for below, above in pairwise(sizes):
            layers += [nn.Linear(below, above, dtype=dtype), between()]
    return nn.Sequential(*layers[:-1])


def autograd_norm(network: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    trained = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss_fn(network(x), y), trained)
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def norm(snapshot: Snapshot) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in snapshot.weight_gradients))


class Scaled(torch.autograd.Function):
    """tanh whose backward pass is its derivative times a number."""

    @staticmethod
    def forward(ctx, z, factor):  # type: ignore[no-untyped-def]
        result = torch.tanh(z)
        ctx.save_for_backward(result)
        ctx.factor = factor
        return result

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        (result,) = ctx.saved_tensors
        return g * (1 - result**2) * ctx.factor, None


class ScaledTanh(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, z: Tensor) -> Tensor:
        return Scaled.apply(z, self.factor)  # type: ignore[no-any-return, no-untyped-call]


class Forward(nn.Module):
    """Two Linear modules of a network and whatever forward pass a test makes of them."""

    def __init__(self, of: Callable[[Forward, Tensor], Tensor], hidden: int = 16, bias: bool = True):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.a, self.h = nn.Linear(8, hidden, bias=bias), nn.Linear(hidden, 4, bias=bias)
        self.of = of
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.of(self, x)


def straight_through(network: Forward, x: Tensor) -> Tensor:
    z = network.a(x)
    return network.h(z + (torch.sign(z) - z).detach())


def batch_mean(network: Forward, x: Tensor) -> Tensor:
    z = network.a(x)
    return network.h(torch.tanh(z - z.mean(0)))


def tied(network: Forward, x: Tensor) -> Tensor:
    return torch.tanh(network.a(x)) @ network.a.weight


def masked(network: Forward, x: Tensor) -> Tensor:
    return network.h(torch.tanh(F.linear(x, network.a.weight * (network.a.weight > 0), network.a.bias)))


def with_counter(network: Forward, x: Tensor) -> Tensor:
    return network.h(torch.tanh(network.a(x)) * (1 + 0.1 * network.calls))


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


def hooked() -> nn.Module:
    network = mlp(8, 16, 4)
    network[0].register_forward_hook(lambda module, arguments, output: 2 * output)
    return network


def weight_normed() -> nn.Module:
    network = mlp(8, 16, 4)
    nn.utils.parametrizations.weight_norm(network[0])
    return network


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


def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    z = F.normalize(outputs, dim=1)
    return F.cross_entropy(z @ z.T - 1e9 * torch.eye(len(z)), targets)


X, Y = batch()
BAD_LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], object], Tensor, str]] = {
    "contrastive": (contrastive, torch.arange(EXAMPLES).roll(1), "works on the batch of 16 but fails on"),
    "NaN targets": (F.mse_loss, torch.full((EXAMPLES, 4), float("nan")), "the loss is nan on this batch"),
    "shapes": (F.mse_loss, torch.randn(EXAMPLES, 3), r"loss_fn fails on outputs of shape \(16, 4\) and float32"),
    "integers": (lambda o, t: F.binary_cross_entropy(o[:, 0], t), Y % 2, "loss_fn fails on outputs"),
    "a number": (lambda o, t: 1.0, Y, "must return a tensor of one number, got 1.0"),
    "an argmax": (lambda o, t: o.argmax(1).float().mean(), Y, "the loss has no gradient"),
    "no gradient": (lambda o, t: o.sum() * 0, Y, "the gradient is zero at every tap"),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", BAD_LOSSES)
def test_a_refused_loss_is_refused_for_its_own_cause(name: str) -> None:
    loss_fn, targets, message = BAD_LOSSES[name]
    with pytest.raises(CannotMeasure, match=message) as caught:
        fga.capture(mlp(8, 16, 4), loss_fn, X, targets)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_outputs_with_a_column_against_targets_without_are_named() -> None:
    with pytest.warns(UserWarning), pytest.raises(CannotMeasure, match=r"give targets\.unsqueeze\(1\)"):
        fga.capture(mlp(8, 16, 1), F.mse_loss, X, torch.arange(EXAMPLES).float())


NOTHING = [None, 3, "text", 1.5, [], {}, object(), int, np.ones((4, 8))]


@pytest.mark.parametrize("place", ["network", "loss_fn", "inputs", "targets", "autodiff", "step"])
@pytest.mark.parametrize("value", NOTHING, ids=lambda value: type(value).__name__)
def test_every_argument_of_another_kind_is_one_sentence(place: str, value: object) -> None:
    arguments: dict[str, object] = {"network": mlp(8, 4), "loss_fn": F.cross_entropy, "inputs": X, "targets": Y}
    arguments |= {"autodiff": "reverse", "step": 0, place: value}
    if place == "step" and isinstance(value, int):
        assert fga.capture(**arguments).step == 3  # type: ignore[arg-type]
        return
    with pytest.raises(ValueError, match=f"^{place} must .*, got ") as caught:
        fga.capture(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


BAD_BATCHES = {
    "too few inputs": (X[:, :3], Y),
    "one dimension more": (X[None].expand(EXAMPLES, -1, -1), Y),
    "whole numbers": (X.long(), Y),
    "half precision": (X.half(), Y),
    "no dimension": (torch.tensor(1.0), Y),
    "meta": (X.to("meta"), Y.to("meta")),
    "sparse": (X.to_sparse(), Y),
    "NaN": (torch.full_like(X, float("nan")), Y),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_every_bad_batch_is_one_sentence_of_ours(name: str) -> None:
    x, y = BAD_BATCHES[name]
    with pytest.raises(CannotMeasure) as caught:
        fga.capture(mlp(8, 16, 4), F.cross_entropy, x, y)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_what_is_no_direction_and_what_is_wrapped_are_refused() -> None:
    snapshot = fga.capture(mlp(8, 16, 4), F.cross_entropy, *batch())
    for call in (snapshot.slopes, snapshot.weight_slopes):
        for wrong in (3, None, [torch.ones(1)], [torch.ones(2, 3, 3)] * 2, "text"):
            with pytest.raises(ValueError, match="directions must be a tensor"):
                call(wrong)  # type: ignore[arg-type]
    with pytest.raises(CannotMeasure, match=r"give the module inside, network\.module"):
        fga.capture(nn.DataParallel(mlp(8, 4)), F.cross_entropy, *batch())
    with pytest.raises(ValueError, match="step must be a whole number from 0 to"):
        fga.capture(mlp(8, 4), F.cross_entropy, *batch(), step=2**70)


def test_a_capture_imports_no_compiler() -> None:
    """It would take seconds of every process that captures a network."""
    code = (
        "import sys, torch, fganalysis as fga\n"
        "x = torch.randn(4, 3)\n"
        "fga.capture(torch.nn.Linear(3, 2), torch.nn.functional.mse_loss, x, torch.randn(4, 2))\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
