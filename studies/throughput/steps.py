"""The time of a guess and of a capture beside a step of backpropagation of the same network and batch.

What `fga.sample` does once a run, as the Gram matrix of group means, does not grow with the guesses. So the time of a
guess is the difference of the times of two runs, one twice as long as the other, over that of their numbers of guesses.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from torch.nn.functional import cross_entropy

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.weight_maps.matrix import MatrixMap
from fganalysis.measuring.blocks import MOST_GROUPS, in_order
from fganalysis.measuring.direct import BYTES_OF_GROUPS, default_block_size
from studies.kit.devices import finished

Network = Literal["mlp", "resnet", "gpt"]
NETWORKS: tuple[Network, ...] = get_args(Network)
TIMED = ("activity", "upstream", "weight")
FLOOR = "bare_guess"


@dataclass(frozen=True)
class Case:
    """A network, its loss and a batch. words: what they are."""

    words: str
    network: torch.nn.Module
    loss_fn: Callable[[Any, Any], torch.Tensor]
    inputs: torch.Tensor
    targets: torch.Tensor

    def capture(self) -> Snapshot:
        snapshot = fga.capture(self.network, self.loss_fn, self.inputs, self.targets)
        _ = snapshot.weight_gradients
        return snapshot

    def step(self) -> None:
        """A forward and a backward pass: the gradient of every parameter."""
        self.network.zero_grad()
        self.loss_fn(self.network(self.inputs), self.targets).backward()


def case(name: Network, device: str = "cpu", *, width: int = 512, batch: int = 128, small: bool = False) -> Case:
    """The networks that are timed. width, batch: of the MLP. small: the others as small as can be, for tests."""
    generator = torch.Generator().manual_seed(1)
    loss_fn: Callable[[Any, Any], torch.Tensor] = cross_entropy
    if name == "mlp":
        network: torch.nn.Module = fga.networks.mlp([40, width, width, width, 10], bias=False)
        inputs, targets = torch.randn(batch, 40, generator=generator), _classes(10, (batch,), generator)
        words = f"MLP 40-{width}-{width}-{width}-10 without biases, batch {batch}"
    elif name == "resnet":
        widths, side, images = ((2, 4), 8, 4) if small else ((16, 32, 64), 32, 32)
        network = fga.networks.resnet(widths, (2,) * len(widths)).eval()
        inputs = torch.randn(images, 3, side, side, generator=generator)
        targets = _classes(10, (images,), generator)
        channels = "-".join(map(str, widths))
        words = f"ResNet of {channels} channels, two blocks each, in evaluation mode, {images} images of {side}×{side}"
    else:
        positions, width, heads, blocks, texts = (4, 8, 2, 1, 2) if small else (64, 128, 4, 4, 8)
        network = fga.networks.gpt(256, positions, width, heads, blocks)
        inputs, targets = (_classes(256, (texts, positions), generator) for _ in range(2))

        def loss_fn(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return cross_entropy(outputs.flatten(0, 1), targets.flatten())

        words = f"GPT, blocks {blocks}, width {width}, vocabulary 256, {texts} sequences of {positions} tokens"
    return Case(words, network.to(device), loss_fn, inputs.to(device), targets.to(device))


def _classes(number: int, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randint(number, shape, generator=generator)


def measure(timed: Case, rounds: int, memory: int, n_blocks: int = MOST_GROUPS) -> xr.Dataset:
    """Seconds of a step, a capture and a guess, (round,) and (estimator, round); and what a run takes once.

    Also those of `BareGuesses`, what no guess of activity perturbation can do without.

    ``n_blocks`` is the length of the shorter run, in blocks of guesses. Everything is timed once a round, in turn, each
    right after some steps, with which it is compared.
    """
    snapshot = timed.capture()
    generator = torch.Generator(snapshot.device).manual_seed(0)
    guesses = {}
    for key in TIMED:
        with torch.no_grad():
            numbers = fga.estimators.resolve(key)(snapshot, 1, generator).numbers_per_guess()
        guesses[key] = n_blocks * default_block_size(numbers)

    def run(key: str, n_guesses: int) -> Callable[[], object]:
        return lambda: fga.sample(snapshot, key, n_guesses=n_guesses, memory=memory)

    n_steps = max(1, round(0.3 / min(_seconds(timed.step, snapshot) for _ in range(3))))

    def some_steps() -> None:
        for _ in range(n_steps):
            timed.step()

    def beside(work: Callable[[], object]) -> tuple[float, float]:
        return _seconds(some_steps, snapshot) / n_steps, _seconds(work, snapshot)

    block = default_block_size(sum(tap.outputs.numel() for tap in snapshot.taps))
    bare = BareGuesses(snapshot, block)

    def floor() -> None:
        workers = 1 if snapshot.device.type != "cpu" else os.cpu_count() or 1
        for _ in in_order(bare, guesses["activity"] // block, workers, apart=workers + 1):
            pass

    for key in TIMED:
        run(key, guesses[key])()
    floor()
    steps = np.empty((2 + len(TIMED), rounds))
    floors = np.empty(rounds)
    captures, each, once = np.empty(rounds), np.empty((len(TIMED), rounds)), np.empty((len(TIMED), rounds))
    for repeat in range(rounds):
        steps[0, repeat], captures[repeat] = beside(timed.capture)
        for row, key in enumerate(TIMED):
            steps[1 + row, repeat], short = beside(run(key, guesses[key]))
            long = _seconds(run(key, 2 * guesses[key]), snapshot)
            each[row, repeat] = (long - short) / guesses[key]
            once[row, repeat] = short - (long - short)
        steps[-1, repeat], together = beside(floor)
        floors[repeat] = together / guesses["activity"]
    made = {
        "step": (("compared", "round"), steps),
        "capture": (("round",), captures),
        "guess": (("timed", "round"), each),
        "once": (("timed", "round"), once),
        FLOOR: (("round",), floors),
    }
    return xr.Dataset(
        {
            f"{name}_seconds": (dims, values, {"units": "s", "long_name": LONG_NAMES[name]})
            for name, (dims, values) in made.items()
        },
        coords={"compared": ["capture", *TIMED, FLOOR], "timed": list(TIMED)},
    )


LONG_NAMES = {
    "step": "wall time of a step of backpropagation, timed right before",
    "capture": "wall time of a capture with its checks and the exact gradients",
    "guess": "wall time of a guess with every scalar of both spaces",
    "once": "wall time of what a run takes whatever its length",
    FLOOR: "wall time of the noise, products and sums alone of a guess of activity perturbation",
}


class BareGuesses:
    """Guesses of activity perturbation without anything around them: what no guess with all its scalars can do without.

    At each tap a normal number for each unit and row; one pass each for slope, scaling, both inner products, length and
    sum; and the product that gives the length at the weights. On a graph they would be one function; here they are
    torch's operations, each once, on arrays that are there.
    """

    def __init__(self, snapshot: Snapshot, block: int):
        numbers = block * sum(tap.outputs.numel() for tap in snapshot.taps)
        n_groups = min(MOST_GROUPS, max(1, BYTES_OF_GROUPS * block // (numbers * snapshot.like.element_size())))
        self._taps = [
            (tap.weights, (block, *tap.outputs.shape), gradient.flatten(), mixed.flatten())
            for tap, gradient, mixed in zip(snapshot.taps, snapshot.gradients, snapshot.mixed_gradients, strict=True)
        ]
        self._sums = [[torch.zeros_like(tap.outputs) for tap in snapshot.taps] for _ in range(n_groups)]
        self._device = snapshot.device

    def __call__(self, index: int) -> None:
        with torch.no_grad():
            generator = torch.Generator(self._device).manual_seed(index)
            slope, guesses = torch.zeros((), device=self._device), []
            for _, shape, gradient, _ in self._taps:
                guesses.append(torch.randn(shape, generator=generator, device=self._device))
                slope = slope + (guesses[-1].flatten(1) @ gradient).sum()
            sums = self._sums[index % len(self._sums)]
            for guess, total, (weights, _, gradient, mixed) in zip(guesses, sums, self._taps, strict=True):
                flat = guess.mul_(slope).flatten(1)
                _ = flat @ gradient, flat @ mixed, torch.linalg.vector_norm(flat)
                if isinstance(weights, MatrixMap):
                    torch.linalg.vector_norm(weights.image(guess))
                total.add_(guess[0] if len(guess) == 1 else guess.sum(0))


def _seconds(work: Callable[[], object], snapshot: Snapshot) -> float:
    start = time.perf_counter()
    work()
    finished(snapshot.device)
    return time.perf_counter() - start
