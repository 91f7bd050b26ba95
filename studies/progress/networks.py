"""The networks of `studies.progress`, and their training by backpropagation up to the moments that are measured."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

import fganalysis as fga
from fganalysis.capturing.tap import Loss
from fganalysis.training.datasets import Dataset
from studies.architectures import networks as architectures
from studies.kit import kept_data, resumed

MLPS = {"MLP": torch.nn.ReLU, "tanh MLP": torch.nn.Tanh}
NETWORKS = (*MLPS, "conv net", "GPT")
INPUTS, CLASSES, HIDDEN_LAYERS = 40, 10, 3
TRAINING_BATCH = 64
LEARNING_RATE = 1e-3


def network(name: str, width: int, seed: int) -> torch.nn.Module:
    """The network before training; of the MLPs 40-w-w-w-10 without biases, the width counts for these alone."""
    if name in MLPS:
        sizes = [INPUTS, *[width] * HIDDEN_LAYERS, CLASSES]
        return fga.networks.mlp(sizes, bias=False, seed=seed, activation=MLPS[name])
    return architectures.network(name, "base", seed)


def data_of(name: str, text: Path) -> Dataset:
    """What the network is trained with: MNIST-1D for the MLPs."""
    return kept_data.load("mnist1d") if name in MLPS else architectures.data_of(name, text)


def loss_of(name: str) -> Loss:
    """The mean cross-entropy."""
    return torch.nn.functional.cross_entropy if name in MLPS else architectures.loss_of(name)


def trained(
    untrained: torch.nn.Module, name: str, data: Dataset, steps: int, seed: int, scratch: Path
) -> torch.nn.Module:
    """The network after so many steps of AdamW, rounded to whole passes over the training set; 0 trains nothing."""
    if not steps:
        return untrained.eval()
    per_epoch = -(-len(data.train_inputs) // TRAINING_BATCH)
    run = resumed.backpropagated(
        untrained,
        data,
        scratch / str(steps),
        epochs=max(1, round(steps / per_epoch)),
        seed=seed,
        batch_size=TRAINING_BATCH,
        optimizer=partial(torch.optim.AdamW, lr=LEARNING_RATE),
        loss_fn=loss_of(name),
    )
    return run.network.eval()
