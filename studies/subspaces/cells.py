"""One training of `studies.subspaces`: a network trained by one method and looked at from every side, as a DataTree.

/subspace    what `fganalysis.measuring.diagnose.subspaces` says at the looked-at steps
/measured    sampled bias, variance and efficiency of the orthogonal upstream guess, over k
/beside      predicted efficiency of plain activity perturbation; the overlap's root, as the seed paper prints it; the
             mean orthogonal guess of the weights
/path        loss and overlap over the steps, for comparisons at equal loss
/turning     principal angles between the leading k-dimensional subspaces of any two steps; gradients of all steps
/weights     singular values of the weights, before and after
/curvature   shares of the weight gradient in dominant eigenvectors of Hessian and Gauss–Newton matrix
/training    loss and accuracy
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from scipy import linalg
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Backpropagation, Estimator, OrthogonalUpstream, Upstream
from fganalysis.measuring import curvature, subspace
from fganalysis.measuring.diagnose import subspaces
from fganalysis.measuring.gradient_stream import StreamingSubspace
from fganalysis.results import schema
from fganalysis.training.checkpoints import load_checkpoint
from fganalysis.training.datasets import Dataset
from fganalysis.training.evaluation import evaluate
from studies.subspaces.descent import projected_gradients

METHODS = ("initialisation", "backpropagation", "orthogonal", "upstream")
MANY_EXAMPLES = 256  # for what needs no decomposition of every example's Jacobian
DRAWN_PAIRS = 32  # of random subspaces, whose mean angle has no closed form; it then is known to a quarter degree
TURNING = ("activation_gradient", "upstream_jacobian")
MEASURED = ("squared_bias", "variance", "efficiency")
FOLLOWED = "backpropagation"  # has many steps in /path, at one of which its loss is that of a slower one after its last
LOOKED_AT = 10  # of them, each a third later than the one before
VERSION = 3  # of what a cell keeps: one that keeps less is computed again
DIRECTIONS = ("hessian", "gauss_newton")


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

    def estimator(self) -> Estimator:
        methods: dict[str, Estimator] = {
            "backpropagation": Backpropagation(),
            "orthogonal": OrthogonalUpstream(k=self.k),
            "upstream": Upstream(),
        }
        return methods[self.method]


def training_cell(training: Training, scratch: Path) -> xr.DataTree:
    """Trains, looks, and leaves nothing in ``scratch``, the folder of the checkpoints."""
    data = fga.datasets.load(training.dataset)
    inputs, classes = data.train_inputs.shape[1], int(data.train_targets.max()) + 1
    width = training.width
    network = fga.networks.mlp([inputs, width, width, width, classes], bias=False, seed=training.seed)
    if training.method == "initialisation":
        return xr.DataTree.from_dict(_looks(training, data, [_captured(network, data, 0)]))
    last = training.epochs * -(-len(data.train_inputs) // training.training_batch)
    steps = sorted({0, training.common_step, *(last >> halvings for halvings in range(7))})
    path = sorted(
        {round(last / (4 / 3) ** earlier) for earlier in range(LOOKED_AT if training.method == FOLLOWED else 1)}
    )
    run = fga.train(
        network,
        data,
        training.estimator(),
        epochs=training.epochs,
        checkpoints=sorted({*steps, *path}),
        out=scratch,
        batch_size=training.training_batch,
        optimizer=partial(torch.optim.AdamW, lr=training.learning_rate),
        seed=training.seed,
        log_every=training.common_step // math.gcd(training.common_step, 5),  # The common step is in the log.
    )
    snapshots = []
    for step in steps:
        load_checkpoint(run.checkpoints[step], network)
        snapshots.append(_captured(network, data, step))
    nodes = _looks(training, data, [one for one in snapshots if one.step in (training.common_step, last)])
    nodes |= {"weights": _weights([snapshots[0], snapshots[-1]]), "training": run.log}
    looks = []
    for step in path:
        load_checkpoint(run.checkpoints[step], network)
        loss = evaluate(network, data, torch.nn.functional.cross_entropy)["loss"]
        looks.append(_overlaps(_captured(network, data, step, training.batch), training.k).assign(loss=loss))
    nodes["path"] = xr.concat(looks, dim=xr.IndexVariable("step", path))
    nodes["turning"] = _turning(snapshots, training.k)
    shutil.rmtree(scratch)
    return xr.DataTree.from_dict(nodes)


def _captured(network: torch.nn.Module, data: Dataset, step: int, examples: int = MANY_EXAMPLES) -> Snapshot:
    return fga.capture(network, torch.nn.functional.cross_entropy, *data.batch(examples), step=step)


def _looks(training: Training, data: Dataset, snapshots: list[Snapshot]) -> dict[str, xr.Dataset]:
    """What is looked at closely, at a few steps only."""
    few = [_captured(one.network, data, one.step, training.batch) for one in snapshots]
    nodes = {
        "subspace": [subspaces(one) for one in few],
        "measured": [_measured(one, training) for one in few],
        "beside": [_beside(one, training.k) for one in few],
    }
    if training.closely:
        nodes["curvature"] = [_curvature(one, training.k) for one in snapshots]
    return {name: xr.concat(parts, dim=schema.STEP, data_vars="all", join="outer") for name, parts in nodes.items()}


def _measured(snapshot: Snapshot, training: Training) -> xr.Dataset:
    """Sampled quantities over k; full rank stands under the width, which no rank exceeds."""
    guesses: dict[int, Estimator] = {training.k: OrthogonalUpstream(k=training.k, exact=training.closely)}
    if training.closely:
        highest = int(snapshot.upstream[0].rank().max())
        guesses |= {k: OrthogonalUpstream(k=k, exact=True) for k in training.ks if k < highest}
        guesses[training.width] = OrthogonalUpstream(k="rank")
    guesses = dict(sorted(guesses.items()))
    names = [quantity + suffix for quantity in MEASURED for suffix in ("", schema.SE, schema.LOW, schema.HIGH)]
    parts = [
        fga.sample(snapshot, guess, training.guesses, training.seed, workers=1)[names].drop_vars(schema.ESTIMATOR)
        for guess in guesses.values()
    ]
    return xr.concat(parts, dim=xr.IndexVariable("k", list(guesses)))


def _beside(snapshot: Snapshot, k: int) -> xr.Dataset:
    """What is predicted of other guesses, and of the mean orthogonal guess Ḡ = Σ_b ḡ_b x_bᵀ of the weights' gradient G.

    weight_overlap: squared cosine of Ḡ and G. agreement: ‖Ḡ‖² over Σ_b ‖ḡ_b x_bᵀ‖², 1 for examples at right angles.
    """
    found = fga.predict(snapshot, "activity")[["efficiency"]].drop_vars(schema.ESTIMATOR)
    roots, sums = [], []
    for tap, gradient, right in zip(snapshot.taps, snapshot.gradients, [*_leading(snapshot, k), None], strict=True):
        mean = gradient
        if right is not None:
            mean = torch.einsum("bum,bvm,bv->bu", right, right, gradient)
            kept = mean.norm(dim=1) / gradient.norm(dim=1)
            roots.append(float(kept[kept.isfinite()].mean()))
        guess, truth = (one.T.double() @ tap.inputs.double() for one in (mean, gradient))
        alone = (mean.double().square().sum(1) * tap.inputs.double().square().sum(1)).sum()
        sums.append([float(one) for one in ((guess * truth).sum(), guess.square().sum(), truth.square().sum(), alone)])
    inner, square, whole, alone_square = np.array([*sums, np.sum(sums, axis=0)]).T
    found["overlap_root"] = (schema.LAYER, [*roots, np.nan, np.nan])
    found["weight_overlap"] = (schema.LAYER, inner**2 / (square * whole))
    found["agreement"] = (schema.LAYER, square / alone_square)
    return found


def _overlaps(snapshot: Snapshot, k: int) -> xr.Dataset:
    """o² at k of every hidden layer, example mean."""
    overlap = []
    for right, gradient in zip(_leading(snapshot, k), snapshot.gradients, strict=False):
        kept = torch.einsum("bum,bu->bm", right, gradient).square().sum(1) / gradient.square().sum(1)
        overlap.append(float(kept[kept.isfinite()].mean()))
    return xr.Dataset({"overlap": (schema.LAYER, overlap)}, {schema.LAYER: list(snapshot.layers[:-1])})


def _leading(snapshot: Snapshot, k: int) -> list[Tensor]:
    return [jacobian.singular_vectors(min(k, *jacobian.weight.shape))[2] for jacobian in snapshot.upstream]


def _turning(snapshots: list[Snapshot], k: int) -> xr.Dataset:
    """Angles between the leading subspaces of all pairs of steps, hidden layers only, and ranks of stacked gradients.

    angle: mean of the k principal angles, degrees. alignment: their mean squared cosine, beside a random subspace's.
    Gradients are stacked over the steps with the same norm each: the loss falls, and the first steps would be all.
    """
    layers = snapshots[0].layers[:-1]
    steps = [one.step for one in snapshots]
    shape = (len(TURNING), len(layers), len(steps), len(steps))
    angle, alignment = np.empty(shape), np.empty(shape)
    drawn, stacked, single = (np.empty(len(layers)) for _ in range(3))
    random = [subspace.random_alignment(k, k, tap.units) for tap in snapshots[0].taps[:-1]]
    generator = torch.Generator().manual_seed(0)
    for layer in range(len(layers)):
        units = snapshots[0].taps[layer].units
        gradients = [one.gradients[layer] / one.gradients[layer].norm() for one in snapshots]
        spectra = [subspace.modes(gradient) for gradient in gradients]
        bases = (
            torch.stack([one.leading(k) for one in spectra]),
            torch.stack([_leading_of_all(one, layer, k) for one in snapshots]),
        )
        for matrix, basis in enumerate(bases):
            angles = subspace.principal_angles(basis[:, None], basis[None, :])
            angle[matrix, layer] = angles.rad2deg().mean(-1)
            alignment[matrix, layer] = angles.cos().square().mean(-1)
        pairs = torch.linalg.qr(torch.randn(2, DRAWN_PAIRS, units, k, generator=generator, dtype=torch.float64))[0]
        drawn[layer] = subspace.principal_angles(pairs[0], pairs[1]).rad2deg().mean()
        whole = StreamingSubspace.of(gradients[0])
        for gradient in gradients[1:]:
            whole = whole.add(gradient)
        stacked[layer] = subspace.entropy_rank(whole.modes().values)
        single[layer] = np.mean([float(subspace.entropy_rank(one.values)) for one in spectra])
    grid = ("matrix", "layer", "step", "other_step")
    return xr.Dataset(
        {
            "angle": (grid, angle, {"units": "degrees", "long_name": f"mean of {k} principal angles"}),
            "alignment": (grid, alignment, {"units": "1", "long_name": "mean squared cosine of the principal angles"}),
            "random_angle": ("layer", drawn, {"units": "degrees", "long_name": "angle of random subspaces, drawn"}),
            "random_alignment": (
                "layer",
                [float(one.mean) for one in random],
                {"units": "1", "long_name": "the same for a random subspace"},
            ),
            "random_alignment_spread": (
                "layer",
                [float(one.spread) for one in random],
                {"units": "1", "long_name": "standard deviation of that of a random subspace"},
            ),
            "stacked_rank": ("layer", stacked, {"units": "1", "long_name": "entropy rank of all steps' gradients"}),
            "single_rank": ("layer", single, {"units": "1", "long_name": "entropy rank of a step's, mean over steps"}),
        },
        coords={"matrix": list(TURNING), "layer": list(layers), "step": steps, "other_step": steps},
    )


def _leading_of_all(snapshot: Snapshot, layer: int, k: int) -> Tensor:
    """The k directions (unit, k) of a layer that all examples' Jacobians stacked answer to most, by LAPACK.

    They are eigenvectors of Σ_b J_bᵀJ_b = (WᵀW) ∘ (DᵀD) for J_b = W diag(d_b), D the rows d_b.
    """
    jacobian = snapshot.upstream[layer]
    weight, derivative = jacobian.weight.double(), jacobian.derivative.double()
    gram = (weight.T @ weight) * (derivative.T @ derivative)
    leading = (len(gram) - k, len(gram) - 1)
    return torch.from_numpy(linalg.eigh(gram.cpu().numpy(), subset_by_index=leading)[1]).to(gram)


def _weights(snapshots: list[Snapshot]) -> xr.Dataset:
    """Singular values of every weight matrix; does training with an upstream guess sharpen them?"""
    spectra = [[subspace.singular_values(tap.weight).numpy() for tap in one.taps] for one in snapshots]
    longest = max(len(values) for values in spectra[0])
    padded = np.array([[np.pad(v, (0, longest - len(v)), constant_values=np.nan) for v in row] for row in spectra])
    ranks = np.array([[float(subspace.stable_rank(values)) for values in row] for row in spectra])
    return xr.Dataset(
        {
            "singular_value": (("step", "layer", "mode"), padded, {"units": "1", "long_name": "of a weight matrix"}),
            "stable_rank": (("step", "layer"), ranks, {"units": "1", "long_name": "stable rank of a weight matrix"}),
        },
        coords={
            "step": [one.step for one in snapshots],
            "layer": list(snapshots[0].layers),
            "mode": np.arange(1, longest + 1),
        },
    )


def _curvature(snapshot: Snapshot, k: int) -> xr.Dataset:
    """Where the weight gradient and its truncation to the Jacobians' leading k directions lie, over the curvature's.

    share: of the squared weight gradient in the k dominant eigenvectors. truncated_share: the same for the truncated
    gradient. kept: squared cosine of the truncated with the whole gradient.
    """
    whole = torch.cat([g.flatten() for g in snapshot.weight_gradients]).double().numpy()
    kept_parts = [*projected_gradients(snapshot, k), snapshot.weight_gradients[-1]]
    truncated = torch.cat([g.flatten() for g in kept_parts]).double().numpy()
    share, shorter, values = np.empty(2), np.empty(2), np.empty((2, k))
    products = (curvature.hessian_product(snapshot), curvature.gauss_newton_product(snapshot))
    for index, product in enumerate(products):
        pairs = curvature.dominant(product, snapshot, k, tolerance=1e-3)
        share[index] = float(subspace.overlap_curve(whole, pairs.vectors)[-1])
        shorter[index] = float(subspace.overlap_curve(truncated, pairs.vectors)[-1])
        values[index] = pairs.values
    kept = float((whole @ truncated) ** 2 / ((whole @ whole) * (truncated @ truncated)))
    random = subspace.random_overlap(k, len(whole))
    one = {"units": "1"}
    return xr.Dataset(
        {
            "share": ("directions", share, one | {"long_name": "share of the weight gradient in the dominant space"}),
            "truncated_share": ("directions", shorter, one | {"long_name": "the same for the truncated gradient"}),
            "eigenvalue": (
                ("directions", "mode"),
                values,
                {"units": "loss per squared unit of weight", "long_name": "dominant eigenvalues"},
            ),
            "kept": ((), kept, one | {"long_name": "squared cosine of the truncated with the whole weight gradient"}),
            "random_share": ((), float(random.mean), one | {"long_name": "share in a random space of that size"}),
        },
        coords={"directions": list(DIRECTIONS), "mode": np.arange(1, k + 1), "step": snapshot.step},
    )
