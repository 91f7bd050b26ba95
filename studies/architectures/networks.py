"""The networks of `studies.architectures`: five architectures in three sizes, with their data and their losses.

The base size of every architecture is small enough for thousands of guesses. "wide" doubles its widths, "deep" its
hidden layers, convolutions or blocks. Images are the digits of scikit-learn, 8 × 8 pixels. Two convolutions of 5 × 5
take 16 × 16 at least, so the conv nets see the digits within a frame of zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

import fganalysis as fga
from fganalysis.capturing.tap import Loss
from fganalysis.training.datasets import Dataset
from studies.kit import kept_data

CLASSES = 10
SIDE = 8  # Pixels of a digit.
FRAME = 4  # Rows and columns of zeros on each side of a conv net's image.
POSITIONS = 8  # Of a sequence of bytes.
VOCABULARY = 256
# An old version of docs/mathematics.md, never edited: with another text the numbers of every GPT would be others.
DEFAULT_TEXT = Path(__file__).with_name("mathematics_frozen.txt")
# The mixer divides by the deviations of groups that hardly differ. At initialisation single precision shows too little
# of so curved a loss: the check of the gradient at capture refuses a deep mixer.
PRECISIONS = {"mixer": torch.float64}
SIZES = {"base": (1, 1), "wide": (2, 1), "deep": (1, 2)}  # Factors of width and of depth.


@dataclass(frozen=True)
class Architecture:
    """``make`` builds the network from a factor of its widths, a factor of its depth, and the seed of its weights."""

    make: Callable[[int, int, int], torch.nn.Module]
    described: str
    data: str


def _mlp(wider: int, deeper: int, seed: int) -> torch.nn.Module:
    return fga.networks.mlp([SIDE**2, *[32 * wider] * (2 * deeper), CLASSES], seed=seed)


def _conv(wider: int, deeper: int, seed: int) -> torch.nn.Module:
    image, channels = (1, SIDE + 2 * FRAME, SIDE + 2 * FRAME), [6 * wider] * deeper
    return fga.networks.conv(image, CLASSES, seed=seed, channels=channels, hidden=32 * wider)


def _resnet(wider: int, deeper: int, seed: int) -> torch.nn.Module:
    return fga.networks.resnet((3 * wider, 6 * wider), (deeper, deeper), (1, SIDE, SIDE), CLASSES, seed=seed)


def _mixer(wider: int, deeper: int, seed: int) -> torch.nn.Module:
    width, groups, blocks = 16 * wider, 2 * wider, 2 * deeper
    return fga.networks.mixer((1, SIDE, SIDE), CLASSES, 2, width, groups, blocks, seed)


def _gpt(wider: int, deeper: int, seed: int) -> torch.nn.Module:
    return fga.networks.gpt(VOCABULARY, POSITIONS, 8 * wider, heads=2, blocks=deeper, seed=seed)


ARCHITECTURES = {
    "MLP": Architecture(_mlp, "two hidden layers of 32 units, ReLU, with biases", "flat digits"),
    "conv net": Architecture(
        _conv, "one 5×5 convolution of 6 channels, ReLU, 2×2 max-pooling, a hidden layer of 32 units", "framed digits"
    ),
    "ResNet": Architecture(
        _resnet, "ResNet-18's plan with two stages of 3 and 6 channels and a residual block each", "digits"
    ),
    "mixer": Architecture(_mixer, "2 blocks of 16 units in 2 groups, on 4 tokens of 4×4 pixels", "digits"),
    "GPT": Architecture(
        _gpt,
        f"one block of 8 units and 2 heads on {POSITIONS} positions, the head tied to the embedding of 256 tokens",
        "text",
    ),
}


def network(architecture: str, size: str, seed: int) -> torch.nn.Module:
    """The network before training, in training mode."""
    return ARCHITECTURES[architecture].make(*SIZES[size], seed)


def loss_of(architecture: str) -> Loss:
    """The mean cross-entropy of the examples' classes, or of the next tokens."""
    return next_tokens_loss if ARCHITECTURES[architecture].data == "text" else torch.nn.functional.cross_entropy


def next_tokens_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the positions of all examples."""
    return torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


@cache
def data_of(architecture: str, text: Path) -> Dataset:
    """What the network is trained with."""
    kind = ARCHITECTURES[architecture].data
    if kind == "text":
        return fga.datasets.load("text", path=text, length=POSITIONS)
    digits = kept_data.load("digits", images=kind != "flat digits")
    if kind != "framed digits":
        return digits
    return Dataset(
        torch.nn.functional.pad(digits.train_inputs, (FRAME,) * 4),
        digits.train_targets,
        torch.nn.functional.pad(digits.test_inputs, (FRAME,) * 4),
        digits.test_targets,
    )
