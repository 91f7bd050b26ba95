"""Networks at the edge of what is measured: each is captured as it is, or refused in one sentence with the way out."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fganalysis as fga
from tests.refusals import refusal

EXAMPLES, UNITS, HIDDEN, CLASSES = 8, 6, 5, 3
INPUTS = torch.randn(EXAMPLES, UNITS, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(EXAMPLES) % CLASSES


class Forward(nn.Module):
    """Two Linear modules and what a test makes of them, with other modules under names of their own."""

    def __init__(self, of: Callable[[Any, Tensor], Tensor], **others: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(UNITS, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.of = of
        for name, module in others.items():
            setattr(self, name, module)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.of(self, inputs)


def mlp(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(UNITS, HIDDEN), *(between or (nn.Tanh(),)), nn.Linear(HIDDEN, CLASSES))


# What a network may do to the output of a tap, and control flow on data: all of it works.


def changed_in_place(network: Any, inputs: Tensor) -> Tensor:
    hidden = network.first(inputs)
    hidden.add_(1)
    hidden.tanh_()
    return network.last(hidden)


def changed_in_place_where_used_twice(network: Any, inputs: Tensor) -> Tensor:
    hidden = network.first(inputs)
    doubled = 2 * hidden
    hidden.mul_(3)
    hidden[:, 0] = 0
    return network.last(torch.tanh(hidden + doubled))


def branching_on_the_batch(network: Any, inputs: Tensor) -> Tensor:
    hidden = network.first(inputs)
    hidden = torch.tanh(hidden) if bool(hidden.sum() > 0) else torch.sigmoid(hidden)
    return network.last(hidden)


def branching_on_each_example(network: Any, inputs: Tensor) -> Tensor:
    rows = [torch.tanh(row) if bool(row.sum() > 0) else torch.sigmoid(row) for row in network.first(inputs)]
    return network.last(torch.stack(rows))


def masked_by_data(network: Any, inputs: Tensor) -> Tensor:
    hidden = network.first(inputs)
    chosen = hidden.sum(1) > 0
    result = hidden.clone()
    result[chosen] = torch.tanh(hidden[chosen])
    return network.last(result)


class Quantised(nn.Module):
    """Whole numbers as weights, frozen, and a scale that is trained."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(HIDDEN, UNITS)
        self.scale = nn.Parameter(weight.abs().max() / 127)
        self.weight = nn.Parameter((weight / self.scale.detach()).round().to(torch.int8), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight.to(inputs.dtype) * self.scale)


def with_part(network: nn.Sequential, place: int, part: nn.Module) -> nn.Sequential:
    network[place] = part
    return network


def compiled_in_place() -> nn.Module:
    network = mlp()
    network[0].compile(backend="eager")
    return network


def with_complex_parameter(trained: bool) -> nn.Module:
    network = Forward(lambda n, x: n.last(torch.tanh(n.first(x)) * n.phases.abs()))
    phases = torch.randn(HIDDEN, dtype=torch.complex64)
    network.phases = nn.Parameter(phases, requires_grad=trained)
    return network


def weight_normed() -> nn.Module:
    network = mlp()
    for place in (0, 2):
        nn.utils.parametrizations.weight_norm(network[place])
    return network


WORKING: dict[str, Callable[[], nn.Module]] = {
    "changed in place": lambda: Forward(changed_in_place),
    "changed in place where it is used twice": lambda: Forward(changed_in_place_where_used_twice),
    "an activation function in place": lambda: mlp(nn.ReLU(inplace=True)),
    "control flow on the batch": lambda: Forward(branching_on_the_batch),
    "control flow on each example": lambda: Forward(branching_on_each_example),
    "a mask of data": lambda: Forward(masked_by_data),
    "compiled": lambda: torch.compile(mlp(), backend="eager"),
    "a compiled part": lambda: with_part(mlp(), 0, torch.compile(nn.Linear(UNITS, HIDDEN), backend="eager")),
    "a part compiled in place": compiled_in_place,
    "a scripted part without weights": lambda: mlp(torch.jit.script(nn.Tanh())),
    "a frozen complex parameter": lambda: with_complex_parameter(False),
    "whole numbers as frozen weights": lambda: nn.Sequential(Quantised(), nn.Tanh(), nn.Linear(HIDDEN, CLASSES)),
    "dropout in evaluation mode": lambda: mlp(nn.Dropout()).eval(),
    "weight_norm": weight_normed,
}


class InSinglePrecision(nn.Module):
    """A part that computes in half precision and returns single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(UNITS, HIDDEN, dtype=torch.bfloat16)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs.bfloat16()).float()


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.ones(HIDDEN // 2 + 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.fft.rfft(inputs) * self.scales


def in_spectrum() -> nn.Module:
    return Forward(lambda n, x: n.last(torch.fft.irfft(n.spectrum(n.first(x)), n=HIDDEN)), spectrum=Spectrum())


class Sequence(nn.Module):
    """A module that draws dropout by itself, on inputs cut into two positions."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.inner: nn.Module = nn.LSTM(3, 3, 2, dropout=0.5, batch_first=True)
        if kind == "attention":
            self.inner = nn.MultiheadAttention(3, 1, dropout=0.5, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        positions = inputs.unflatten(1, (2, 3))
        return self.inner(*[positions] * (3 if self.kind == "attention" else 1))[0][:, -1]


def dynamically_quantised(network: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)


def statically_quantised() -> nn.Module:
    quantisation = torch.ao.quantization
    network = nn.Sequential(quantisation.QuantStub(), *mlp(nn.ReLU()), quantisation.DeQuantStub()).eval()
    network.qconfig = quantisation.get_default_qconfig("x86")
    quantisation.prepare(network, inplace=True)
    network(INPUTS)
    return quantisation.convert(network)


def quantised_in_training() -> nn.Module:
    quantisation = torch.ao.quantization
    network = nn.Sequential(quantisation.QuantStub(), *mlp(nn.ReLU()), quantisation.DeQuantStub()).train()
    network.qconfig = quantisation.get_default_qat_qconfig("x86")
    return quantisation.prepare_qat(network)


def needed_after_change(network: Any, inputs: Tensor) -> Tensor:
    hidden = network.first(inputs)
    square = hidden * hidden
    hidden.add_(1)
    return network.last(square)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "changed after autograd saved it": (lambda: Forward(needed_after_change), "the backward pass of the loss fails"),
    "scripted": (lambda: torch.jit.script(mlp()), "the network is scripted"),
    "traced": (lambda: torch.jit.trace(mlp(), INPUTS), "the network is scripted"),
    "a scripted part": (lambda: with_part(mlp(), 0, torch.jit.script(nn.Linear(UNITS, HIDDEN))), "'0' is scripted"),
    "a complex parameter": (lambda: with_complex_parameter(True), "parameter 'phases' is complex"),
    "a complex output of a tap": (in_spectrum, "tap 'spectrum' has activations of complex64"),
    "dropout": (lambda: mlp(nn.Dropout()), "'1' is dropout in training mode"),
    "dropout of features": (lambda: mlp(nn.FeatureAlphaDropout()), "'1' is dropout in training mode"),
    "dropout in an LSTM": (lambda: Sequence("LSTM"), "differ from tap 'inner' on: the network draws noise"),
    "dropout in attention": (lambda: Sequence("attention"), "differ from tap 'inner' on: the network draws noise"),
    "half precision": (lambda: mlp().half(), "tap '0' has activations of float16"),
    "bfloat16": (lambda: mlp().bfloat16(), "tap '0' has activations of bfloat16"),
    "a part in bfloat16": (
        lambda: with_part(mlp(), 0, InSinglePrecision()),
        "tap '0.inner' has activations of bfloat16",
    ),
    "quantised": (lambda: dynamically_quantised(mlp()), "'0' has quantised weights"),
    "a quantised part": (lambda: nn.Sequential(mlp()[0], nn.Tanh(), dynamically_quantised(mlp())[2]), "'2' has quant"),
    "statically quantised": (statically_quantised, "'1' has quantised weights"),
    "quantised in training": (quantised_in_training, "the backward pass is not the derivative of the forward pass"),
}


@contextlib.contextmanager
def deprecations_ignored() -> Iterator[None]:
    """torch says of scripts and of quantisation that other packages do it now; networks of users still have them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def made(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]), deprecations_ignored():
        torch.manual_seed(0)
        return make()


def gradient(network: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """By autograd, as torch.func takes no control flow on data."""
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    loss = F.cross_entropy(network(inputs), targets)
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


@pytest.mark.parametrize("name", WORKING)
def test_what_works_has_the_gradient_of_autograd(name: str) -> None:
    network = made(WORKING[name])
    snapshot = fga.capture(network, F.cross_entropy, INPUTS, TARGETS)
    exact = gradient(snapshot.network, INPUTS, TARGETS)
    found: dict[str, Tensor] = {}
    for layer, columns in zip(snapshot.weights, snapshot.weight_gradients, strict=True):
        found |= layer.by_parameter(columns)
    assert set(found) == set(exact)
    for parameter, value in exact.items():
        torch.testing.assert_close(found[parameter], value, rtol=1e-4, atol=1e-6)
    for estimator in ("weight", "activity", "finite_difference"):
        assert float(fga.sample(snapshot, estimator, 32).mse.sel(space="weight", layer="all")) > 0


@pytest.mark.parametrize("autodiff", ["reverse", "forward"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_work_is_refused_in_one_sentence(name: str, autodiff: str) -> None:
    make, message = REFUSED[name]
    network = made(make)
    inputs = INPUTS.to(next((p.dtype for p in network.parameters() if p.is_floating_point()), INPUTS.dtype))
    inputs = INPUTS if name == "a part in bfloat16" else inputs
    with deprecations_ignored():
        said = refusal(lambda: fga.capture(network, F.cross_entropy, inputs, TARGETS, autodiff=autodiff))
    assert said is not None and message in said, said


def test_a_tap_that_is_called_on_some_examples_has_a_slope_of_the_batch_alone() -> None:
    def routed(network: Any, inputs: Tensor) -> Tensor:
        left = inputs[:, 0] > 0
        hidden = inputs.new_zeros(len(inputs), HIDDEN)
        hidden = hidden.index_put((left.nonzero()[:, 0],), network.first(inputs[left]))
        hidden = hidden.index_put(((~left).nonzero()[:, 0],), network.other(inputs[~left]))
        return network.last(torch.tanh(hidden))

    network = made(lambda: Forward(routed, other=nn.Linear(UNITS, HIDDEN)))
    snapshot = fga.capture(network, F.cross_entropy, INPUTS, TARGETS)
    said = refusal(lambda: fga.sample(snapshot, "activity", 32))
    assert said is not None and "tap 'other'" in said and "slope='batch'" in said
    by_batch = fga.estimators.ActivityPerturbation(slope="batch")
    assert fga.check_unbiased(by_batch, snapshot, tolerance=0.2, space="weight").outcome == "unbiased"


class Padded(nn.Module):
    """A bag of words, of which word 0 pads; a head that may be the embedding again."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4, padding_idx=0)
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.words.weight
        # As after a training in which nobody set the row of the padding word to zero.
        with torch.no_grad():
            self.words.weight[0] = torch.randn(4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(tokens).mean(1)))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_padding_word_that_occurs_keeps_its_row(dtype: torch.dtype, tied: bool) -> None:
    network = made(lambda: Padded(tied)).to(dtype)
    tokens = torch.tensor([[0, 0, 1], [2, 0, 0], [3, 4, 0], [0, 5, 6]])
    targets = torch.tensor([1, 2, 3, 0])
    for autodiff in ("reverse", "forward"):
        snapshot = fga.capture(network, F.cross_entropy, tokens, targets, autodiff=autodiff)
        exact = gradient(network, tokens, targets)["words.weight"]
        found = snapshot.weights[0].by_parameter(snapshot.weight_gradients[0])["words.weight"]
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)
        assert bool(exact[0].any()) == tied


class OffByATenth(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):  # type: ignore[no-untyped-def]
        return inputs.clone()

    @staticmethod
    def backward(ctx, upstream):  # type: ignore[no-untyped-def]
        return 1.1 * upstream


def narrow_mixer(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return fga.networks.mixer(width=64, seed=seed), images, torch.arange(16) % 10


def test_kinks_that_a_step_in_single_precision_cannot_resolve_are_no_wrong_backward_pass() -> None:
    """A normalisation of four units of which most are zero multiplies by thousands, and so do a step's kinks."""
    network, images, targets = narrow_mixer(seed=0)
    fga.capture(network, F.cross_entropy, images, targets)
    wrong = nn.Sequential(network.blocks[0], Function(OffByATenth.apply), *network.blocks[1:], Head(network.head))
    said = refusal(lambda: fga.capture(wrong, F.cross_entropy, images, targets))
    assert said is not None and "not the derivative of the forward pass" in said


class Attention(nn.Module):
    """Of two positions, with its softmax in single precision, which does not see the bias of the keys."""

    def __init__(self, upstream: Callable[[Tensor], Tensor] = lambda inputs: inputs) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, CLASSES)
        self.upstream = upstream

    def forward(self, inputs: Tensor) -> Tensor:
        positions = inputs.unflatten(1, (2, 3))
        query, key, value = self.query(positions), self.key(positions), self.value(positions)
        shares = (query @ key.mT).softmax(-1, dtype=torch.float32).to(inputs)
        return self.upstream(shares @ value).mean(1)


def test_a_softmax_in_single_precision_inside_of_double_is_no_wrong_backward_pass() -> None:
    fga.capture(made(Attention).double(), F.cross_entropy, INPUTS.double(), TARGETS)
    wrong = made(lambda: Attention(OffByATenth.apply)).double()
    said = refusal(lambda: fga.capture(wrong, F.cross_entropy, INPUTS.double(), TARGETS))
    assert said is not None and "not the derivative of the forward pass" in said


def test_a_gradient_that_is_rounding_is_refused_as_that() -> None:
    network, images, targets = narrow_mixer(seed=1)
    said = refusal(lambda: fga.capture(network, F.cross_entropy, images, targets))
    assert said is not None and "single precision does not resolve the gradient" in said and "network.double()" in said
    fga.capture(network.double(), F.cross_entropy, images.double(), targets)


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


class Head(nn.Module):
    """The mixer's, without the normalisation before it."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs.mean(1))


class WithItsOwnFunction(nn.Module):
    """A head that is a function made with the network, which no copy replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(UNITS, CLASSES)
        self.head = lambda hidden: hidden @ self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(inputs)))


def test_a_function_of_the_original_is_told_from_a_penalty_in_the_loss() -> None:
    network = made(WithItsOwnFunction)
    said = refusal(lambda: fga.capture(network, F.cross_entropy, INPUTS, TARGETS))
    assert said is not None and "a copy of the network still reads parameter 'first.weight'" in said
    plain = made(mlp)
    weight = plain.get_parameter("0.weight")

    def penalised(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) + weight.square().sum()

    said = refusal(lambda: fga.capture(plain, penalised, INPUTS, TARGETS))
    assert said is not None and "loss_fn reads parameter '0.weight' by itself" in said
