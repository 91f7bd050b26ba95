"""One training of `studies.subspaces`: a network trained by one method and looked at from every side, as a DataTree.

/subspace    what `fganalysis.measuring.snapshot_subspaces` says at the looked-at steps
/measured    sampled bias, variance and efficiency of the orthogonal upstream guess, over k
/beside      predicted efficiency of plain activity perturbation; the overlap's root, as the seed paper prints it; the
             mean orthogonal guess of the weights
/path        loss and overlap over the steps, for comparisons at equal loss
/turning     principal angles between the leading k-dimensional subspaces of any two steps; gradients of all steps
/weights     singular values of the weights, before and after
/sranks      sranks of features and weights at the steps of /turning
/curvature   shares of the weight gradient in dominant eigenvectors of Hessian and Gauss–Newton matrix
/training    loss and accuracy
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import xarray as xr

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Backpropagation, Estimator, OrthogonalUpstream, Upstream
from fganalysis.measuring.snapshot_subspaces import subspaces
from fganalysis.results import schema
from fganalysis.training.checkpoints import load_checkpoint
from fganalysis.training.datasets import Dataset
from fganalysis.training.evaluation import evaluate
from studies.kit import kept_data, resumed
from studies.kit.devices import on
from studies.subspaces.curvature_shares import curvature_shares
from studies.subspaces.mean_guesses import beside, overlaps
from studies.subspaces.sranks import sranks
from studies.subspaces.turning import turning
from studies.subspaces.weight_spectra import weight_spectra

METHODS = ("initialisation", "backpropagation", "orthogonal", "upstream")
MANY_EXAMPLES = 256  # for what needs no decomposition of every example's Jacobian
MEASURED = ("squared_bias", "variance", "efficiency")
FOLLOWED = "backpropagation"  # has many steps in /path, at one of which its loss is that of a slower one after its last
LOOKED_AT = 10  # of them, each a third later than the one before


@dataclass(frozen=True)
class Training:
    """What a cell depends on; see `studies.subspaces.Settings`.

    common_step: one that every width has. closely: whether /curvature is taken and every k is sampled.
    """

    width: int
    method: str
    seed: int
    epochs: int
    common_step: int
    k: int
    ks: tuple[int, ...]
    guesses: int
    closely: bool
    batch: int
    training_batch: int
    learning_rate: float
    dataset: str
    device: str = "cpu"

    def estimator(self) -> Estimator:
        methods: dict[str, Estimator] = {
            "backpropagation": Backpropagation(),
            "orthogonal": OrthogonalUpstream(k=self.k),
            "upstream": Upstream(),
        }
        return methods[self.method]


def training_cell(training: Training, scratch: Path) -> xr.DataTree:
    """Trains and looks; what is finished of that is in ``scratch``, so that a killed cell goes on from there."""
    data = on(training.device, kept_data.load(training.dataset))
    inputs, classes = data.train_inputs.shape[1], int(data.train_targets.max()) + 1
    width = training.width
    network = fga.networks.mlp([inputs, width, width, width, classes], bias=False, seed=training.seed)
    network = network.to(training.device)
    if training.method == "initialisation":
        return xr.DataTree.from_dict(_looks(training, data, [_captured(network, data, 0)], scratch))
    last = training.epochs * -(-len(data.train_inputs) // training.training_batch)
    steps = sorted({0, training.common_step, *(last >> halvings for halvings in range(7))})
    path = sorted(
        {round(last / (4 / 3) ** earlier) for earlier in range(LOOKED_AT if training.method == FOLLOWED else 1)}
    )
    run = resumed.train(
        network,
        data,
        training.estimator(),
        scratch,
        epochs=training.epochs,
        checkpoints=sorted({*steps, *path}),
        batch_size=training.training_batch,
        optimizer=partial(torch.optim.AdamW, lr=training.learning_rate),
        seed=training.seed,
        log_every=training.common_step // math.gcd(training.common_step, 5),  # The common step is in the log.
    )
    snapshots = []
    for step in steps:
        load_checkpoint(run.checkpoints[step], network)
        snapshots.append(_captured(network, data, step))
    nodes = _looks(training, data, [one for one in snapshots if one.step in (training.common_step, last)], scratch)
    nodes |= {"weights": weight_spectra([snapshots[0], snapshots[-1]]), "training": run.log}
    looks = []
    for step in path:
        load_checkpoint(run.checkpoints[step], network)
        looks.append(resumed.kept(scratch / f"path_{step}.nc", partial(_on_the_path, training, network, data, step)))
    nodes["path"] = xr.concat(looks, dim=xr.IndexVariable("step", path))
    nodes["sranks"] = resumed.kept(scratch / "sranks.nc", partial(sranks, snapshots))
    nodes["turning"] = resumed.kept(scratch / "turning.nc", partial(turning, snapshots, training.k))
    return xr.DataTree.from_dict(nodes)


def _on_the_path(training: Training, network: torch.nn.Module, data: Dataset, step: int) -> xr.Dataset:
    loss = evaluate(network, data, torch.nn.functional.cross_entropy)["loss"]
    return overlaps(_captured(network, data, step, training.batch), training.k).assign(loss=loss)


def _captured(network: torch.nn.Module, data: Dataset, step: int, examples: int = MANY_EXAMPLES) -> Snapshot:
    return fga.capture(network, torch.nn.functional.cross_entropy, *data.batch(examples), step=step)


def _looks(training: Training, data: Dataset, snapshots: list[Snapshot], scratch: Path) -> dict[str, xr.Dataset]:
    """What is looked at closely, at a few steps only."""
    few = [_captured(one.network, data, one.step, training.batch) for one in snapshots]
    looks: dict[str, list[Callable[[], xr.Dataset]]] = {
        "subspace": [partial(subspaces, one) for one in few],
        "measured": [partial(_measured, one, training, scratch) for one in few],
        "beside": [partial(beside, one, training.k) for one in few],
    }
    if training.closely:
        looks["curvature"] = [partial(curvature_shares, one, training.k) for one in snapshots]
    nodes = {}
    for name, at_steps in looks.items():
        parts = [
            resumed.kept(scratch / f"{name}_{one.step}.nc", look) for one, look in zip(snapshots, at_steps, strict=True)
        ]
        nodes[name] = xr.concat(parts, dim=schema.STEP, data_vars="all", join="outer")
    return nodes


def _measured(snapshot: Snapshot, training: Training, scratch: Path) -> xr.Dataset:
    """Sampled quantities over k; full rank stands under the width, which no rank exceeds."""
    guesses: dict[int, Estimator] = {training.k: OrthogonalUpstream(k=training.k, exact=training.closely)}
    if training.closely:
        highest = int(snapshot.upstream[0].rank().max())
        guesses |= {k: OrthogonalUpstream(k=k, exact=True) for k in training.ks if k < highest}
        guesses[training.width] = OrthogonalUpstream(k="rank")
    guesses = dict(sorted(guesses.items()))
    names = [quantity + suffix for quantity in MEASURED for suffix in ("", schema.SE, schema.LOW, schema.HIGH)]

    def sampled(guess: Estimator) -> xr.Dataset:
        sample = fga.sample(snapshot, guess, training.guesses, training.seed, workers=1)
        return sample[names].drop_vars(schema.ESTIMATOR)

    parts = [
        resumed.kept(scratch / f"measured_{snapshot.step}_{k}.nc", partial(sampled, guess))
        for k, guess in guesses.items()
    ]
    return xr.concat(parts, dim=xr.IndexVariable("k", list(guesses)))
