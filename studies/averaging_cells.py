"""One cell of `studies.averaging`: one network at one step, one estimator, means of its guesses beside predictions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy import special

import fganalysis as fga
from fganalysis import moments, schema
from fganalysis.estimators import (
    ActivationMixing,
    ActivityPerturbation,
    Estimator,
    Minibatch,
    OrthogonalUpstream,
    Upstream,
    WeightPerturbation,
)
from fganalysis.sampling import squared_gradients
from fganalysis.snapshot import Snapshot
from fganalysis.training import load_checkpoint
from studies.averaged_streams import RATIO, means_of_guesses
from studies.seed_intervals import half_widths

Array = NDArray[np.float64]
GUESSES: dict[str, Estimator] = {
    "weight": WeightPerturbation(),
    "activity": ActivityPerturbation(),
    "activity, a pass a layer": ActivityPerturbation(layers="separate"),
    "upstream": Upstream(),
    "orthogonal, k = 10": OrthogonalUpstream(k=10),
    "activation mixing": ActivationMixing(),
    "minibatch of 16": Minibatch(16),
}
LEAST_GROUPS = 4  # Of a size that is reported.
FEWEST_GROUPS = 16  # For the unbiased statistics of bias and ceiling.
GRID = (schema.SPACE, schema.LAYER)


def trainer(epochs: int, batch: int, out: Path) -> Callable[[int, int, bool], Snapshot]:
    """A function to the snapshot of (width, seed, trained), which trains each network once, when it is first asked."""
    data = fga.datasets.load("mnist1d")
    examples = data.train_inputs[:batch], data.train_targets[:batch]
    last = epochs * -(-len(data.train_inputs) // 512)

    @cache
    def checkpoints(width: int, seed: int) -> dict[int, Path]:
        network = fga.networks.mlp([40, width, width, width, 10], bias=False, seed=seed)
        folder = out / f"width_{width}" / f"seed_{seed}" / "checkpoints"
        finished = {step: folder / f"step_{step:06d}.safetensors" for step in (0, last)}
        if all(path.exists() for path in finished.values()):
            return finished
        return fga.train(
            network, data, epochs=epochs, checkpoints=[0, last], out=folder, seed=seed, log_every=10**6
        ).checkpoints

    @cache
    def snapshot(width: int, seed: int, trained: bool) -> Snapshot:
        network = fga.networks.mlp([40, width, width, width, 10], bias=False, seed=seed)
        step = last if trained else 0
        load_checkpoint(checkpoints(width, seed)[step], network)
        return fga.capture(network, torch.nn.functional.cross_entropy, *examples, step=step)

    return snapshot


def cell(snapshot: Snapshot, estimator: Estimator, n_guesses: int, seed: int) -> xr.Dataset:
    """Error and cosine of means of m guesses, (space, layer, averaged), and the moments of one guess."""
    entropy = (seed, snapshot.step, *fga.estimators.label(estimator).encode())
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state) >> 1)
    scalars: dict[int, list[tuple[Array, Array]]] = {}
    groups = []
    in_a_group = RATIO ** int(np.log(n_guesses // FEWEST_GROUPS) / np.log(RATIO) + 1e-9)
    with torch.no_grad():
        for n_averaged, block in means_of_guesses(estimator, snapshot, n_guesses, generator):
            inner, norms = (part.double().numpy() for part in block.inner_products(snapshot))
            scalars.setdefault(n_averaged, []).append((inner, norms))
            if n_averaged == in_a_group:
                groups.append(block.total())
        gram = _with_all(block.error_grams(snapshot, groups).double().numpy())
    truth = squared_gradients(snapshot)
    sizes = [m for m in scalars if n_guesses // m >= LEAST_GROUPS]
    rows = []
    for m in sizes:
        inner, norms = (_with_all(np.concatenate(parts, axis=-1)) for parts in zip(*scalars[m], strict=True))
        rows.append(_errors_and_cosines(inner, norms, truth))
        if m == 1:
            first = inner[..., : len(groups) * in_a_group], norms[..., : len(groups) * in_a_group]
    single = moments.quantities(*first, gram, np.repeat(np.arange(len(groups)), in_a_group), truth)
    predicted = fga.predict(snapshot, estimator)
    names = ("relative_error", "relative_error_se", "cosine", "cosine_se")
    variables = _moments_of_one(single, predicted, truth)
    for name, values in zip(names, zip(*rows, strict=True), strict=True):
        variables[name] = ((*GRID, "averaged"), np.stack(values, -1))
    coords = {schema.SPACE: list(schema.SPACES), schema.LAYER: [*snapshot.layers, schema.ALL_LAYERS], "averaged": sizes}
    return xr.Dataset(variables, coords=coords)


def _with_all(per_layer: Array) -> Array:
    """(space, layer, …) with the sum over layers as one layer more."""
    return np.concatenate([per_layer, per_layer.sum(1, keepdims=True)], axis=1)


def _errors_and_cosines(inner: Array, norms: Array, truth: Array) -> tuple[Array, Array, Array, Array]:
    """Means over groups, with errors widened for their number, of ‖ĝ − g‖²/‖g‖² and cos(ĝ, g); (space, layer) each."""
    squares = truth[..., None]
    found = []
    for values in ((norms - 2 * inner + squares) / squares, inner / np.sqrt(norms * squares)):
        found += [values.mean(-1), half_widths(values, -1) / special.ndtri(0.975)]
    return found[0], found[1], found[2], found[3]


def _moments_of_one(single: dict[str, moments.Estimate], predicted: xr.Dataset, truth: Array) -> dict[str, object]:
    """Ceiling cos²(ḡ, g), ‖ḡ − g‖²/‖g‖², V/‖g‖² and ‖ḡ‖²/‖g‖², measured and predicted, (space, layer)."""
    variables: dict[str, object] = {}
    known = {name: predicted[name].to_numpy() for name in ("directional_bias", "squared_bias", "variance", "shrinkage")}
    measured = {name: single[name].value for name in known}
    for suffix, own in (("", measured), ("_predicted", known)):
        ceiling = 1 - own["directional_bias"]
        variables[f"squared_ceiling{suffix}"] = (GRID, ceiling)
        variables[f"relative_squared_bias{suffix}"] = (GRID, own["squared_bias"] / truth)
        variables[f"relative_variance{suffix}"] = (GRID, own["variance"] / truth)
        variables[f"relative_squared_mean{suffix}"] = (GRID, own["shrinkage"] ** 2 / ceiling)
    variables["squared_ceiling_se"] = (GRID, single["directional_bias"].se)
    return variables
