"""The cells of `studies.averaging`: a trained network, and means of one estimator's guesses beside predictions.

An estimator that leaves the generator where it was draws nothing: its guesses are all alike, and one of them says it
all, at every m and without error.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy import special

import fganalysis as fga
from fganalysis.capturing.coordinates import squared_gradients
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Estimator
from fganalysis.estimators.guesses import Estimates
from fganalysis.results import schema
from fganalysis.statistics.guess_scalars import cosines
from fganalysis.statistics.quantities import quantities
from fganalysis.training.loop import DEFAULT_BATCH
from studies.averaging.kinds import GUESSES
from studies.averaging.streams import RATIO, means_of_guesses
from studies.kit import kept_data, kept_networks, resumed
from studies.kit.devices import on
from studies.kit.seeds import half_widths
from studies.kit.signed import signed_root

Array = NDArray[np.float64]
LEAST_GROUPS = 4  # Of a size that is reported.
FEWEST_GROUPS = 16  # For the unbiased statistics of bias and ceiling.
GRID = (schema.SPACE, schema.LAYER)


def trained(width: int, seed: int, epochs: int, device: str, scratch: Path) -> xr.DataTree:
    """The log of one training by backpropagation, and under /network the weights after it."""
    data = on(device, kept_data.load("mnist1d"))
    run = resumed.backpropagated(_network(width, seed).to(device), data, scratch, epochs=epochs, seed=seed)
    return xr.DataTree.from_dict({"/": run.log, kept_networks.NODE: kept_networks.as_dataset(run.network)})


def measured(
    width: int, seed: int, epochs: int, guess: str, guesses: int, batch: int, device: str, network: Path | None = None
) -> xr.Dataset:
    """Means of one estimator's guesses at initialisation, or after ``epochs`` of a training whose cell is given."""
    data = on(device, kept_data.load("mnist1d"))
    there = _network(width, seed).to(device)
    if network is not None:
        kept_networks.restored(there, network)
    step = epochs * -(-len(data.train_inputs) // DEFAULT_BATCH)
    snapshot = fga.capture(there, torch.nn.functional.cross_entropy, *data.batch(batch), step=step)
    return cell(snapshot, GUESSES[guess], guesses, seed)


def _network(width: int, seed: int) -> torch.nn.Module:
    network: torch.nn.Module = fga.networks.mlp([40, width, width, width, 10], bias=False, seed=seed)
    return network


def cell(snapshot: Snapshot, estimator: Estimator, n_guesses: int, seed: int) -> xr.Dataset:
    """Error and cosine of means of m guesses, (space, layer, averaged), and the moments of one guess."""
    sizes = [RATIO**power for power in range(n_guesses.bit_length()) if n_guesses // RATIO**power >= LEAST_GROUPS]
    estimator = _seeded(estimator, seed)
    with torch.no_grad():
        only = _only_guess(estimator, snapshot)
        if only is None:
            variables = _of_stream(snapshot, estimator, n_guesses, seed, sizes)
        else:
            variables = _of_one_guess(snapshot, only, len(sizes))
    variables |= _named(_predicted(snapshot, estimator), "_predicted")
    coords = {schema.SPACE: list(schema.SPACES), schema.LAYER: [*snapshot.layers, schema.ALL_LAYERS], "averaged": sizes}
    return xr.Dataset(variables, coords=coords)


def _seeded(estimator: Any, seed: int) -> Any:
    """Matrices or heads that are drawn once, from the network's seed by a stream that its weights do not come from."""
    if not hasattr(estimator, "seed"):
        return estimator
    state = np.random.SeedSequence((seed, *type(estimator).__name__.encode())).generate_state(1)[0]
    return replace(estimator, seed=int(state))


def _only_guess(estimator: Estimator, snapshot: Snapshot) -> Estimates | None:
    """The guess that every guess is, where a call draws nothing."""
    generator = torch.Generator(snapshot.device).manual_seed(0)
    before = generator.get_state()
    guess = estimator(snapshot, 1, generator)
    return guess if torch.equal(generator.get_state(), before) else None


def _of_stream(
    snapshot: Snapshot, estimator: Estimator, n_guesses: int, seed: int, sizes: list[int]
) -> dict[str, object]:
    """What is measured of guesses that differ."""
    entropy = (seed, snapshot.step, *fga.estimators.stable_name(estimator).encode())
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    generator = torch.Generator(snapshot.device).manual_seed(int(state) >> 1)
    scalars: dict[int, list[tuple[Array, Array]]] = {}
    groups = []
    in_a_group = RATIO ** int(np.log(n_guesses // FEWEST_GROUPS) / np.log(RATIO) + 1e-9)
    for n_averaged, block in means_of_guesses(estimator, snapshot, n_guesses, generator):
        inner, norms = (part.double().cpu().numpy() for part in block.inner_products(snapshot))
        scalars.setdefault(n_averaged, []).append((inner, norms))
        if n_averaged == in_a_group:
            groups.append(block.total())
    gram = _with_all(block.error_grams(snapshot, groups).double().cpu().numpy())
    truth = squared_gradients(snapshot)
    rows = []
    for m in sizes:
        inner, norms = (_with_all(np.concatenate(parts, axis=-1)) for parts in zip(*scalars[m], strict=True))
        rows.append(_errors_and_cosines(inner, norms, truth))
        if m == 1:
            first = inner[..., : len(groups) * in_a_group], norms[..., : len(groups) * in_a_group]
    single = quantities(*first, gram, np.repeat(np.arange(len(groups)), in_a_group), truth)
    variables = _named(_moments_of_one({name: estimate.value for name, estimate in single.items()}, truth))
    variables["squared_ceiling_se"] = (GRID, single["directional_bias"].se)
    return variables | _curves(*(np.stack(values, -1) for values in zip(*rows, strict=True)))


def _of_one_guess(snapshot: Snapshot, guess: Estimates, n_sizes: int) -> dict[str, object]:
    """The same where all guesses are alike: exact, so that errors are zero and curves flat.

    The squared error is taken from the error itself, and the part across the gradient from it: differences of large
    squares would leave their rounding.
    """
    truth = squared_gradients(snapshot)
    inner = _with_all(guess.inner_products(snapshot)[0].double().cpu().numpy())[..., 0]
    error = _with_all(guess.error_grams(snapshot, [guess.total()]).double().cpu().numpy())[..., 0, 0]
    shrinkage = inner / truth
    along = shrinkage**2 * truth
    across = np.maximum(error - (shrinkage - 1) ** 2 * truth, 0.0)
    known = {"directional_bias": across / (along + across), "squared_bias": error, "shrinkage": shrinkage}
    found = _moments_of_one(known | {"variance": np.zeros_like(error)}, truth)
    variables = _named(found)
    variables["squared_ceiling_se"] = (GRID, np.zeros_like(error))
    cosine = signed_root(found["squared_ceiling"])
    measured = (found["relative_squared_bias"], np.zeros_like(error), cosine, np.zeros_like(error))
    return variables | _curves(*(np.repeat(values[..., None], n_sizes, -1) for values in measured))


def _curves(*values: Array) -> dict[str, object]:
    names = ("relative_error", "relative_error_se", "cosine", "cosine_se")
    return {name: ((*GRID, "averaged"), of_sizes) for name, of_sizes in zip(names, values, strict=True)}


def _predicted(snapshot: Snapshot, estimator: Estimator) -> dict[str, Array]:
    predicted = fga.predict(snapshot, estimator)
    names = ("directional_bias", "squared_bias", "variance", "shrinkage")
    return _moments_of_one({name: predicted[name].to_numpy() for name in names}, squared_gradients(snapshot))


def _with_all(per_layer: Array) -> Array:
    """(space, layer, …) with the sum over layers as one layer more."""
    return np.concatenate([per_layer, per_layer.sum(1, keepdims=True)], axis=1)


def _errors_and_cosines(inner: Array, norms: Array, truth: Array) -> tuple[Array, Array, Array, Array]:
    """Means over groups, with errors widened for their number, of ‖ĝ − g‖²/‖g‖² and cos(ĝ, g); (space, layer) each."""
    squares = truth[..., None]
    found = []
    for values in ((norms - 2 * inner + squares) / squares, cosines(inner, norms, truth)):
        found += [values.mean(-1), half_widths(values, -1) / special.ndtri(0.975)]
    return found[0], found[1], found[2], found[3]


def _moments_of_one(known: dict[str, Array], truth: Array) -> dict[str, Array]:
    """Ceiling cos²(ḡ, g) with the cosine's sign, ‖ḡ − g‖²/‖g‖², V/‖g‖² and ‖ḡ‖²/‖g‖², (space, layer)."""
    squared_cosine = 1 - known["directional_bias"]
    return {
        "squared_ceiling": np.copysign(squared_cosine, known["shrinkage"]),
        "relative_squared_bias": known["squared_bias"] / truth,
        "relative_variance": known["variance"] / truth,
        "relative_squared_mean": known["shrinkage"] ** 2 / squared_cosine,
    }


def _named(moments_of_one: dict[str, Array], suffix: str = "") -> dict[str, object]:
    return {name + suffix: (GRID, values) for name, values in moments_of_one.items()}
