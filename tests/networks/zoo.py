"""Tiny networks of every kind, in float64 and evaluation mode, with a loss, inputs and targets.

`ZOO` maps a name to a function that makes the case anew: a test may hook, train or change what it gets. A new entry is
tested by being in the table. Each has about a hundred parameters and few outputs a module, so that dense Jacobians and,
for many, exact enumeration are cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from fganalysis.training.networks import gpt, mixer, mlp, resnet

EXAMPLES = 3
CLASSES = 3


@dataclass(frozen=True)
class Case:
    """A network, its loss and a batch: tensors, a tuple of them, or a dict.

    ``parts`` gives each example's part of the loss, (example,), written down for the case and not derived from
    ``loss_fn``: their sum is the loss.
    """

    network: nn.Module
    loss_fn: Callable[[Any, Any], torch.Tensor]
    inputs: Any
    targets: Any
    parts: Callable[[Any, Any], torch.Tensor]


def build(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network with weights that depend on the seed alone, none at a special value such as a scale of 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make().double()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(parameter + 0.3 * torch.randn_like(parameter))
            for name, buffer in network.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.copy_(torch.rand_like(buffer) + 0.5)
    return network.eval()


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(below: int, *shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def class_parts(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logarithms = outputs.log_softmax(-1)
    return -logarithms[torch.arange(len(targets)), targets] / len(targets)


def token_parts(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    chosen = outputs.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return -chosen.sum(1) / targets.numel()


def token_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def _classifier(make: Callable[[], nn.Module], inputs: Any) -> Case:
    """Cross-entropy, a class an example."""
    return Case(build(make), functional.cross_entropy, inputs, torch.tensor([0, 2, 1]), class_parts)


def _language(make: Callable[[], nn.Module], vocabulary: int = 5, length: int = 3) -> Case:
    """Cross-entropy, a token a position. As many positions as examples: shapes alone do not tell which is which."""
    tokens, following = whole(vocabulary, EXAMPLES, length), whole(vocabulary, EXAMPLES, length, seed=3)
    return Case(build(make), token_loss, tokens, following, token_parts)


class Function(nn.Module):
    """A function without weights as a module, to stand in a Sequential."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Any) -> Any:
        return self.function(inputs)


def _mlp() -> Case:
    return _classifier(lambda: mlp([4, 3, 4, CLASSES], activation=nn.Tanh), normal(EXAMPLES, 4))


def _mlp_relu() -> Case:
    return _classifier(lambda: mlp([4, 5, 4, CLASSES], bias=False), normal(EXAMPLES, 4))


def _squared_error() -> Case:
    """The mean over examples and units of squared errors."""
    return Case(
        build(lambda: mlp([4, 3, 2], activation=nn.GELU)),
        functional.mse_loss,
        normal(EXAMPLES, 4),
        normal(EXAMPLES, 2, seed=2),
        lambda outputs, targets: (outputs - targets).square().sum(1) / targets.numel(),
    )


def _conv() -> Case:
    return _classifier(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 2), nn.Flatten(), nn.Linear(2, CLASSES)
        ),
        normal(EXAMPLES, 1, 6, 6),
    )


def _conv_batch_norm() -> Case:
    return _classifier(
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(),
            nn.Linear(8, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, CLASSES),
        ),
        normal(EXAMPLES, 1, 4, 4),
    )  # fmt: skip


def _conv1d() -> Case:
    """Groups, a stride, dilation and padding that wraps around."""
    return _classifier(
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2, groups=2, padding_mode="circular"), nn.Tanh(),
            nn.Conv1d(4, 2, 2, groups=2, bias=False), nn.Flatten(), nn.Linear(4, CLASSES),
        ),
        normal(EXAMPLES, 2, 6),
    )  # fmt: skip


def _conv3d() -> Case:
    return _classifier(
        lambda: nn.Sequential(
            nn.Conv3d(1, 2, (1, 2, 3), padding=(0, 1, 1), stride=(1, 2, 2), padding_mode="replicate"), nn.Tanh(),
            nn.Flatten(), nn.Linear(8, CLASSES),
        ),
        normal(EXAMPLES, 1, 1, 2, 3),
    )  # fmt: skip


def _conv_same() -> Case:
    """Padding by the word "same", and the mean over positions."""
    return _classifier(
        lambda: nn.Sequential(
            nn.Conv1d(1, 2, 3, padding="same", dilation=2),
            nn.SiLU(),
            Function(lambda x: x.mean(2)),
            nn.Linear(2, CLASSES),
        ),
        normal(EXAMPLES, 1, 5),
    )


def _transposed_conv() -> Case:
    return _classifier(
        lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 4, 2, stride=2, padding=1, output_padding=1, groups=2), nn.Tanh(),
            nn.ConvTranspose2d(4, 1, 2, dilation=2), nn.Flatten(), nn.Linear(25, CLASSES),
        ),
        normal(EXAMPLES, 2, 2, 2),
    )  # fmt: skip


def _resnet() -> Case:
    return _classifier(
        lambda: resnet(widths=(2, 3), blocks=(1, 1), inputs=(1, 4, 4), classes=CLASSES), normal(EXAMPLES, 1, 4, 4)
    )


def _mixer() -> Case:
    return _classifier(
        lambda: mixer(inputs=(1, 4, 4), classes=CLASSES, patches=2, width=6, groups=2, blocks=2),
        normal(EXAMPLES, 1, 4, 4),
    )


def _gpt(tied: bool) -> Case:
    return _language(lambda: gpt(vocabulary=5, positions=4, width=4, heads=2, blocks=1, tied=tied))


class Recurrent(nn.Module):
    """A recurrent network whose last output is read by a linear layer."""

    def __init__(self, kind: type[nn.RNNBase], batch_first: bool) -> None:
        super().__init__()
        self.recurrent = kind(2, 2, batch_first=batch_first)
        self.read = nn.Linear(2, CLASSES)
        self.last = (slice(None), -1) if batch_first else (-1,)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.read(self.recurrent(inputs)[0][self.last])


def _recurrent(kind: type[nn.RNNBase], batch_first: bool) -> Case:
    shape = (EXAMPLES, 3, 2) if batch_first else (3, EXAMPLES, 2)
    return _classifier(lambda: Recurrent(kind, batch_first), normal(*shape))


class AttentionBlock(nn.Module):
    """Self-attention around which the input is carried, then the mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.read = nn.Linear(4, CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        normed = self.norm(inputs)
        return self.read((inputs + self.attention(normed, normed, normed)[0]).mean(1))


def _attention() -> Case:
    return _classifier(AttentionBlock, normal(EXAMPLES, 3, 4))


def _words() -> Case:
    """A bag of words: the mean of embeddings, some words several times.

    No `padding_idx`: autograd calls the gradient of its row zero, finite differences and forward mode do not.
    """
    return _classifier(
        lambda: nn.Sequential(nn.Embedding(6, 3), Function(lambda x: x.mean(1)), nn.Linear(3, CLASSES)),
        torch.tensor([[1, 2, 2, 0], [5, 0, 0, 0], [3, 1, 4, 5]]),
    )


class Product(nn.Module):
    """A bilinear layer of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Bilinear(2, 3, 4)
        self.read = nn.Linear(4, CLASSES)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.read(torch.tanh(self.product(left, right)))


def _tuple_inputs() -> Case:
    return _classifier(Product, (normal(EXAMPLES, 2), normal(EXAMPLES, 3, seed=4)))


def _dict_inputs() -> Case:
    return _classifier(Product, {"right": normal(EXAMPLES, 3, seed=4), "left": normal(EXAMPLES, 2)})


def _group_norm() -> Case:
    return _classifier(
        lambda: nn.Sequential(nn.Conv1d(1, 4, 2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(12, CLASSES)),
        normal(EXAMPLES, 1, 4),
    )


def _rms_norm() -> Case:
    return _classifier(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4), nn.Tanh(), nn.Linear(4, CLASSES)), normal(EXAMPLES, 3)
    )


def _layer_norm() -> Case:
    """Normalised over the last two of three dimensions."""
    return _classifier(
        lambda: nn.Sequential(
            nn.Linear(3, 2),
            nn.LayerNorm((2, 2)),
            nn.Tanh(),
            nn.Flatten(),
            nn.LayerNorm(4, bias=False),
            nn.Linear(4, CLASSES),
        ),
        normal(EXAMPLES, 2, 3),
    )


class Adapted(nn.Module):
    """A frozen linear layer with a trained one of low rank beside it (LoRA)."""

    def __init__(self, fan_in: int, fan_out: int, rank: int) -> None:
        super().__init__()
        self.frozen = nn.Linear(fan_in, fan_out).requires_grad_(False)
        self.down = nn.Linear(fan_in, rank, bias=False)
        self.up = nn.Linear(rank, fan_out, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.frozen(inputs) + self.up(self.down(inputs))


def _adapters() -> Case:
    return _classifier(lambda: nn.Sequential(Adapted(4, 5, 1), nn.ReLU(), Adapted(5, CLASSES, 2)), normal(EXAMPLES, 4))


class VisionTransformer(nn.Module):
    """Patches, a class token and positional parameters of no module, and one attention written by products."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 4, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.positions = nn.Parameter(torch.randn(1, 5, 4))
        self.norm = nn.LayerNorm(4)
        self.attend = nn.Linear(4, 12)
        self.project = nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(images), -1, -1), patches], 1) + self.positions
        query, key, value = self.attend(self.norm(x)).chunk(3, -1)
        x = x + self.project((query @ key.transpose(1, 2) / 2).softmax(-1) @ value)
        return self.head(x[:, 0])


def _vit() -> Case:
    return _classifier(VisionTransformer, normal(EXAMPLES, 1, 4, 4))


class Scale(nn.Module):
    """Somebody's own module: a scale and a shift a unit, and one exponent of all."""

    def __init__(self, n_units: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(n_units))
        self.sharpness = nn.Parameter(torch.tensor(0.5))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.tanh(self.sharpness * inputs)


def _own_parameters() -> Case:
    return _classifier(lambda: nn.Sequential(nn.Linear(3, 4), Scale(4), nn.Linear(4, CLASSES)), normal(EXAMPLES, 3))


class Twice(nn.Module):
    """A linear layer called twice, on its own output, and an embedding-like one called on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.read = nn.Linear(3, CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.read(torch.tanh(self.inner(torch.tanh(self.inner(inputs)))))


def _called_twice() -> Case:
    return _classifier(Twice, normal(EXAMPLES, 3))


def _tagger() -> nn.Module:
    return nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))


WEIGHTS = (0.5, 2.0, 1.0, 0.25)
SMOOTHING = 0.2
IGNORED = -100


def _weighted_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    weight = outputs.new_tensor(WEIGHTS)
    return functional.cross_entropy(
        outputs.flatten(0, 1), targets.flatten(), weight, ignore_index=IGNORED, label_smoothing=SMOOTHING
    )


def _weighted_parts(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Tokens count by the weight of their class; the smoothed part of a token's loss weights every class."""
    weight = outputs.new_tensor(WEIGHTS)
    counted = (targets != IGNORED).to(outputs.dtype)
    known = targets.clamp(min=0)
    negative = -outputs.log_softmax(-1) * weight
    chosen = negative.gather(-1, known.unsqueeze(-1)).squeeze(-1)
    losses = (1 - SMOOTHING) * chosen + SMOOTHING / len(WEIGHTS) * negative.sum(-1)
    return (losses * counted).sum(1) / (weight[known] * counted).sum()


def _weighted_tokens() -> Case:
    """Label smoothing, class weights and ignored tokens: examples have different shares in the mean."""
    targets = whole(4, EXAMPLES, 3)
    targets[0, 1:] = IGNORED
    targets[2, 0] = IGNORED
    return Case(build(_tagger), _weighted_loss, whole(5, EXAMPLES, 3), targets, _weighted_parts)


def _ignored_tokens() -> Case:
    """Tokens that the loss ignores; one example has none that counts."""
    targets = whole(4, EXAMPLES, 3)
    targets[1] = IGNORED
    targets[2, 0] = IGNORED
    return Case(
        build(_tagger),
        token_loss,
        whole(5, EXAMPLES, 3),
        targets,
        lambda outputs, given: (
            functional.cross_entropy(outputs.transpose(1, 2), given, reduction="none").sum(1) / (given != IGNORED).sum()
        ),
    )


class PositionsFirst(nn.Module):
    """Takes (example, position, unit) and works on (position, example, unit), a norm and attention among positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 4)
        self.attention = nn.MultiheadAttention(4, 1)
        self.read = nn.Linear(4, CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inner = torch.tanh(self.first(inputs.transpose(0, 1)))
        mixed = self.attention(inner, inner, inner, need_weights=False)[0]
        return self.read(mixed).mean(0)


def _positions_first() -> Case:
    return _classifier(PositionsFirst, normal(EXAMPLES, 3, 2))


class Windows(nn.Module):
    """Takes (example, window, unit) and works on rows (example·window, unit), or (window·example, unit)."""

    def __init__(self, windows_first: bool) -> None:
        super().__init__()
        self.windows_first = windows_first
        self.first = nn.Linear(2, 3)
        self.read = nn.Linear(3, CLASSES)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        n_examples, n_windows, _ = inputs.shape
        if self.windows_first:
            rows = torch.tanh(self.first(inputs.transpose(0, 1).flatten(0, 1)))
            return self.read(rows).unflatten(0, (n_windows, n_examples)).mean(0)
        rows = torch.tanh(self.first(inputs.flatten(0, 1)))
        return self.read(rows).unflatten(0, (n_examples, n_windows)).mean(1)


def _windows(windows_first: bool) -> Case:
    return _classifier(lambda: Windows(windows_first), normal(EXAMPLES, 2, 2))


@dataclass
class Output:
    """What some packages' models give instead of a tensor."""

    logits: torch.Tensor
    hidden: torch.Tensor


class WithOutputObject(nn.Module):
    """An MLP that gives an `Output`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.read = nn.Linear(3, CLASSES)

    def forward(self, inputs: torch.Tensor) -> Output:
        hidden = torch.tanh(self.first(inputs))
        return Output(self.read(hidden), hidden)


def _output_object() -> Case:
    return Case(
        build(WithOutputObject),
        lambda outputs, targets: functional.cross_entropy(outputs.logits, targets),
        normal(EXAMPLES, 4),
        torch.tensor([0, 2, 1]),
        lambda outputs, targets: class_parts(outputs.logits, targets),
    )


class TwoHeads(nn.Module):
    """Two outputs, for a tuple of targets; a branch that one of them does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 3)
        self.classes = nn.Linear(3, CLASSES)
        self.numbers = nn.Linear(3, 2)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shared = torch.tanh(self.trunk(inputs))
        return self.classes(shared), self.numbers(shared)


def _tuple_targets() -> Case:
    return Case(
        build(TwoHeads),
        lambda outputs, targets: (
            functional.cross_entropy(outputs[0], targets[0]) + functional.mse_loss(outputs[1], targets[1])
        ),
        normal(EXAMPLES, 4),
        (torch.tensor([0, 2, 1]), normal(EXAMPLES, 2, seed=5)),
        lambda outputs, targets: (
            class_parts(outputs[0], targets[0]) + (outputs[1] - targets[1]).square().sum(1) / targets[1].numel()
        ),
    )


ZOO: dict[str, Callable[[], Case]] = {
    "mlp": _mlp,
    "mlp_relu": _mlp_relu,
    "squared_error": _squared_error,
    "conv": _conv,
    "conv_batch_norm": _conv_batch_norm,
    "conv1d": _conv1d,
    "conv3d": _conv3d,
    "conv_same": _conv_same,
    "transposed_conv": _transposed_conv,
    "resnet": _resnet,
    "mixer": _mixer,
    "gpt": lambda: _gpt(tied=False),
    "gpt_tied": lambda: _gpt(tied=True),
    "lstm": lambda: _recurrent(nn.LSTM, batch_first=False),
    "lstm_batch_first": lambda: _recurrent(nn.LSTM, batch_first=True),
    "gru": lambda: _recurrent(nn.GRU, batch_first=False),
    "gru_batch_first": lambda: _recurrent(nn.GRU, batch_first=True),
    "attention": _attention,
    "words": _words,
    "tuple_inputs": _tuple_inputs,
    "dict_inputs": _dict_inputs,
    "group_norm": _group_norm,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "adapters": _adapters,
    "vit": _vit,
    "own_parameters": _own_parameters,
    "called_twice": _called_twice,
    "weighted_tokens": _weighted_tokens,
    "ignored_tokens": _ignored_tokens,
    "positions_first": _positions_first,
    "windows": lambda: _windows(windows_first=False),
    "windows_first": lambda: _windows(windows_first=True),
    "output_object": _output_object,
    "tuple_targets": _tuple_targets,
}
