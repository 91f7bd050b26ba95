"""The cells of the part on the ResNet: heads behind its eight residual blocks, as Fournier et al. place them.

    estimate at a block's output = ⟨target, guess⟩ guess / ‖guess‖²     of each example (activation)
    estimate of a block's weights = ⟨Target, Guess⟩ Guess / ‖Guess‖²    of the whole batch (weight)

Target and guess are gradients at the block's output, pulled back through the block to its weights. Examples interact
in batch normalisation in training mode, so heads are trained, and guesses measured, on the network in evaluation mode.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.capture import freeze
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ActivityPerturbation, Estimator, LocalLoss, WeightPerturbation
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.estimators.local.blocks import behind_modules
from fganalysis.estimators.local.local_loss import Space, Target
from fganalysis.estimators.local.projection import projected
from fganalysis.estimators.noise import GAUSSIAN, Sphere
from fganalysis.results import schema
from fganalysis.training.datasets import Dataset
from fganalysis.training.evaluation import evaluate
from studies.guess_target.cells import FROZEN_SEED, HEADS, KINDS, PROJECTIONS, TARGETS
from studies.kit import kept_data, long_names, resumed
from studies.kit.devices import on

Array = NDArray[np.float64]
STAGES = (2, 2, 2, 2)  # Residual blocks of each, as in ResNet-18.
BLOCKS = tuple(f"blocks.{number}" for number in range(sum(STAGES)))
ALL_BLOCKS = "all blocks"  # The eight of them as one vector; the classifier, whose guess is exact, is left out.
AT_OUTPUTS, AT_TAPS = "noise", "perturbation"
GUESSES = (*HEADS, AT_OUTPUTS, AT_TAPS)
MOMENTS = ("initialisation", "trained")
BATCH_SIZE = 64  # Examples in a step of the network's and of the heads' training.
QUANTITIES = {
    "cosine": "mean cosine of the estimate with the loss's gradient",
    "efficiency": "fraction of the exact step's progress at the best step size",
}
OF_NETWORKS = {
    "accuracy": ("accuracy on the training set of the network that is measured", "1"),
    "loss": ("loss on the batch of the network that is measured", "loss"),
    "steps": ("steps of training before the second look", "1"),
}


@dataclass(frozen=True)
class ResNet:
    """Which network is trained and how it is measured; the settings that a cell depends on."""

    seed: int
    widths: tuple[int, ...]
    mlp_width: int
    cnn_channels: int
    rate: float
    epochs: int
    head_steps: int
    batch: int
    guesses: int
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class NoiseAtBlocks:
    """The loss's gradient at each block's output, projected on Gaussian noise there and pulled back to the taps."""

    space: Space = "activation"

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        blocks = snapshot.remember("blocks of the study", lambda: behind_modules(snapshot, BLOCKS))
        drawn = []
        for block in blocks:
            assert block.gradient is not None
            drawn.append(GAUSSIAN.draw((n_guesses, *block.gradient.shape[-2:]), generator, block.gradient))
        return ActivationEstimates(tuple(projected(snapshot, blocks, drawn, None, self.space)))


def measured(of: ResNet, scratch: Path) -> xr.Dataset:
    """Every quantity over (trained, guess, target, projection, space, block), and the accuracy over (trained)."""
    data = on(of.device, kept_data.load("digits", images=True))
    image = tuple(data.train_inputs.shape[1:])
    untrained: torch.nn.Module = fga.networks.resnet(of.widths, STAGES, image, seed=of.seed)
    untrained = untrained.to(of.device)
    adam = partial(torch.optim.Adam, lr=of.rate)
    run = resumed.backpropagated(
        untrained, data, scratch, epochs=of.epochs, seed=of.seed, batch_size=BATCH_SIZE, optimizer=adam
    )
    rows: list[xr.Dataset] = []
    for network in (with_statistics(untrained, data), run.network):
        network.eval()
        snapshot = fga.capture(network, torch.nn.functional.cross_entropy, *data.batch(of.batch), step=len(rows))
        found = _at(snapshot, trained_heads(snapshot, data, of), of)
        accuracy = evaluate(network, data, torch.nn.functional.cross_entropy)["train_accuracy"]
        rows.append(found.assign(accuracy=accuracy, loss=float(snapshot.loss)))
    dataset = xr.concat(rows, dim="trained", data_vars="all").assign_coords(trained=list(MOMENTS))
    return dataset.assign(steps=int(run.log["step"][-1]))


def described(dataset: xr.Dataset) -> xr.Dataset:
    """With units and long names."""
    return long_names.described(dataset, OF_NETWORKS | {name: (words, "1") for name, words in QUANTITIES.items()})


def with_statistics(network: torch.nn.Module, data: Dataset) -> torch.nn.Module:
    """The untrained network after one pass in training mode, which gathers the statistics of its normalisations."""
    network.train()
    with torch.no_grad():
        for inputs in data.train_inputs.split(BATCH_SIZE):
            network(inputs)
    return network


def heads_of(of: ResNet) -> dict[str, LocalLoss]:
    """The heads of each kind, not trained yet."""
    widths = {"linear": None, "mlp": of.mlp_width, "cnn": of.cnn_channels}
    settings = {"mode": "trained", "seed": of.seed, "rate": of.rate, "blocks": BLOCKS}
    return {kind: LocalLoss(kind, width=widths[kind], **settings) for kind in KINDS}  # type: ignore[arg-type]


def trained_heads(snapshot: Snapshot, data: Dataset, of: ResNet) -> dict[str, LocalLoss]:
    """The heads of each kind after so many steps of Adam, each on its own loss, while the network stays as it is."""
    heads = {kind: head.initialised(snapshot) for kind, head in heads_of(of).items()}
    order, unused = torch.Generator().manual_seed(of.seed), torch.Generator(snapshot.device)
    for _ in range(of.head_steps):
        rows = torch.randperm(len(data.train_inputs), generator=order)[:BATCH_SIZE]
        batch = (data.train_inputs[rows], data.train_targets[rows])
        frozen = freeze(snapshot.network, snapshot.loss_fn, *batch, autodiff="reverse", step=0, plan=snapshot.plan)
        heads = {kind: head.advanced(frozen, unused) for kind, head in heads.items()}
    return heads


def estimators_of(heads: dict[str, LocalLoss], of: ResNet) -> dict[tuple[str, str, str], Estimator]:
    """What is measured, by guess, target and projection. The local target of every head is that of the trained head."""
    found: dict[tuple[str, str, str], Estimator] = {}
    for space in get_args(Space):
        for kind, head in heads.items():
            for target in get_args(Target):
                trained = replace(head, target=target, space=space)
                found[f"{kind} head", target, space] = trained
                found[f"{kind} frozen", target, space] = replace(trained, mode="frozen", seed=of.seed + FROZEN_SEED)
        found[AT_OUTPUTS, "global", space] = NoiseAtBlocks(space)
    found[AT_TAPS, "global", "activation"] = ActivityPerturbation(noise=Sphere(), layers="separate")
    found[AT_TAPS, "global", "weight"] = WeightPerturbation(noise=Sphere(), layers="separate")
    return found


def _at(snapshot: Snapshot, heads: dict[str, LocalLoss], of: ResNet) -> xr.Dataset:
    layers = {
        name: sorted({snapshot.taps[index].layer for index in block.taps})
        for name, block in zip(BLOCKS, behind_modules(snapshot, BLOCKS), strict=True)
    }
    layers[ALL_BLOCKS] = sorted(set().union(*layers.values()))
    exact = np.array([[float(g.double().square().sum()) for g in _by_layer(snapshot, s)] for s in schema.SPACES])
    dims = ("guess", "target", "projection", "space", "block")
    shape = (len(GUESSES), len(TARGETS), len(PROJECTIONS), len(schema.SPACES), len(layers))
    values = {name: np.full(shape, np.nan) for name in QUANTITIES}
    for (guess, target, projection), estimator in estimators_of(heads, of).items():
        if isinstance(estimator, LocalLoss):  # Not random: one guess says everything.
            scalars = estimator(snapshot, 1, torch.Generator(snapshot.device)).inner_products(snapshot)
            inner, squares = (part.double().cpu().numpy() for part in scalars)
        else:
            sampled = fga.sample(snapshot, estimator, of.guesses, of.seed, workers=1)
            inner, squares = (sampled[name].values for name in ("inner_product", "squared_norm"))
        place = (GUESSES.index(guess), TARGETS.index(target), PROJECTIONS.index(projection))
        for name, numbers in _quantities(inner, squares, exact, list(layers.values())).items():
            values[name][place] = numbers
    coords = {
        "guess": list(GUESSES),
        "target": list(TARGETS),
        "projection": list(PROJECTIONS),
        "space": list(schema.SPACES),
        "block": list(layers),
    }
    return xr.Dataset({name: (dims, array) for name, array in values.items()}, coords=coords)


def _by_layer(snapshot: Snapshot, space: str) -> list[Tensor]:
    if space == "activation":
        return [torch.cat([snapshot.gradients[i].flatten() for i in layer.taps]) for layer in snapshot.weights]
    return [gradient.flatten() for gradient in snapshot.weight_gradients]


def _quantities(inner: Array, squares: Array, exact: Array, layers: list[list[int]]) -> dict[str, Array]:
    """`QUANTITIES` over (space, block) from (space, layer, guess) and the exact squared norms (space, layer)."""
    inner, squares = (np.stack([part[:, of].sum(1) for of in layers], axis=1) for part in (inner, squares))
    exact = np.stack([exact[:, of].sum(1) for of in layers], axis=1)
    # A head whose units are all dead guesses zero, which has no cosine and makes no progress: both are 0.
    cosine = inner / np.sqrt(np.where(squares != 0, squares * exact[..., None], 1.0))
    mean, mean_square = inner.mean(-1), squares.mean(-1)
    return {
        "cosine": cosine.mean(-1),
        "efficiency": mean**2 / np.where(mean_square != 0, exact * mean_square, 1.0),
    }
