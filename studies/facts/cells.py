"""What `studies.facts` computes: facts 1 to 3 and fact 4, and the seed paper's metrics beside its tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivityPerturbation,
    Estimator,
    OrthogonalUpstream,
    PreconditionedUpstream,
    Upstream,
)
from studies.kit import kept_data, resumed
from studies.kit.devices import on
from studies.kit.long_names import KINDS, described
from theory import upstream

Array = NDArray[np.float64]
HIDDEN = ["0", "2", "4"]  # The taps of layers 1, 2 and 3.
METRICS = ("variance", "bias", "covariance_norm")
PRINTED = {**KINDS, "_printed": "printed by Wang et al. 2025: "}
# A pass a layer: the other layers' noise, fact 4, would hide the bias that is looked for. W̃^P is decomposed, as its
# definition has it: left to choose, it takes fact 3 for granted.
SAME_LAW: dict[str, Estimator] = {
    "orthogonal, k = 10": OrthogonalUpstream(k=10, layers="separate"),
    "orthogonal, k = rank": OrthogonalUpstream(k="rank", layers="separate"),
    "activity, live units": ActivityPerturbation(active_only=True, layers="separate"),
    "preconditioned": PreconditionedUpstream(exact=True, layers="separate"),
    "activity": ActivityPerturbation(layers="separate"),
}
# guess → estimator, then what is printed: variance, bias, covariance norm (none in table 5).
Table = dict[str, tuple[Estimator, tuple[float, float, float]]]
TABLE_2: Table = {
    "upstream": (Upstream(), (1.50e-4, 2.75e-4, 0.084)),
    "orthogonal, bottom": (OrthogonalUpstream(k=10, which="bottom"), (1.30e-5, 2.83e-4, 0.085)),
    "orthogonal": (OrthogonalUpstream(k=10), (1.03e-5, 2.86e-5, 0.085)),
}
# W̃^P as the paper computes it, directions of zero singular values kept: where the next layer is as wide, the law of
# plain activity perturbation. `PreconditionedUpstream` drops them.
AS_PRINTED = ActivityPerturbation()
TABLE_5: Table = {
    "orthogonal": (OrthogonalUpstream(k=10), (6.33e-6, 3.63e-5, np.nan)),
    "preconditioned": (AS_PRINTED, (1.75e-4, 1.35e-8, np.nan)),
    "upstream": (Upstream(), (7.04e-5, 1.68e-4, np.nan)),
}
TABLES = {"table_2": TABLE_2, "table_5": TABLE_5}


def _snapshot(width: int, seed: int, inputs: Tensor, targets: Tensor) -> Snapshot:
    network = fga.networks.mlp([40, width, width, width, 10], bias=False, seed=seed, dtype=inputs.dtype)
    return fga.capture(network.to(inputs.device), torch.nn.functional.cross_entropy, inputs, targets)


def same_law(width: int, examples: int, guesses: int, seed: int, device: str) -> xr.Dataset:
    """Facts 1–3 at initialisation, in double precision, over (guess_kind, layer) in activation space."""
    data = on(device, kept_data.load("mnist1d"))
    inputs, targets = data.batch(examples)
    snapshot = _snapshot(width, seed, inputs.double(), targets)
    tree = fga.diagnose(snapshot, list(SAME_LAW.values()), guesses, seed, subspace=False)
    where = {"space": "activation", "layer": HIDDEN, "step": 0}
    measured, predicted = (tree[node].to_dataset().sel(where, drop=True) for node in ("measured", "predicted"))
    squares = measured["gradient_norm"] ** 2
    variables = {}
    for name, source, scale in (("relative_bias", "relative_bias", 1.0), ("relative_variance", "variance", squares)):
        variables[name] = measured[source] / scale
        variables[name + "_se"] = measured[source + "_se"] / scale
        variables[name + "_predicted"] = predicted[source] / scale
    distances = np.array([_distances(snapshot, estimator) for estimator in SAME_LAW.values()])
    variables["covariance_distance"] = xr.DataArray(distances, dims=("estimator", "layer"))
    dataset = xr.Dataset(variables).drop_vars("estimator").rename(estimator="guess_kind")
    return described(
        dataset.assign_coords(guess_kind=list(SAME_LAW)),
        {
            "relative_bias": ("norm of the bias over norm of the gradient", "1"),
            "relative_variance": ("total variance of one guess over squared norm of the gradient", "1"),
            "covariance_distance": ("largest element of Sigma - M", "1"),
        },
    )


def _distances(snapshot: Snapshot, estimator: Estimator) -> list[float]:
    """The largest |Σ − M| for k = rank and for W̃^P, a number a layer; NaN for the others.

    And NaN below a layer with fewer units: there the directions are fewer too.
    """
    distances = []
    for jacobian in snapshot.upstream:
        weight, derivative = (array.double().cpu().numpy() for array in (jacobian.weight, jacobian.derivative))
        if weight.shape[0] < weight.shape[1] or estimator not in (
            SAME_LAW["orthogonal, k = rank"],
            SAME_LAW["preconditioned"],
        ):
            distances.append(float("nan"))
            continue
        whitened = estimator == SAME_LAW["preconditioned"]
        factor = (
            upstream.preconditioned(weight, derivative) if whitened else upstream.orthogonal(weight, derivative, "rank")
        )
        mask = np.eye(derivative.shape[1]) * (derivative != 0)[:, None, :]
        difference = factor.left @ factor.left.transpose(0, 2, 1) - mask
        distances.append(float(np.abs(difference).max()))
    return distances


def joint_pass(width: int, examples: int, guesses: int, seed: int, n_seeds: int, device: str) -> xr.Dataset:
    """Fact 4: variance with one pass for all layers over that with a pass a layer, (inputs, seed, layer)."""
    data, kinds = kept_data.load("mnist1d"), ["gaussian", "mnist1d"]
    data.batch(examples)  # Refuses more examples than there are, which a slice of rows would not.
    found = np.empty((3, len(kinds), n_seeds, len(HIDDEN)))
    for index, place in np.ndindex(len(kinds), n_seeds):
        generator = torch.Generator().manual_seed(seed + place)
        if kinds[index] == "gaussian":
            inputs = torch.randn(examples, 40, generator=generator)
            targets = torch.randint(0, 10, (examples,), generator=generator)
        else:
            rows = torch.randperm(len(data.train_inputs), generator=generator)[:examples]
            inputs, targets = data.train_inputs[rows], data.train_targets[rows]
        snapshot = _snapshot(width, seed + place, inputs.to(device), targets.to(device))
        joint, separate = ActivityPerturbation(), ActivityPerturbation(layers="separate")
        predicted = [fga.predict(snapshot, passes)["variance"] for passes in (joint, separate)]
        found[0, index, place] = _in_hidden(predicted[0] / predicted[1])
        samples = [fga.sample(snapshot, passes, guesses, seed) for passes in (joint, separate)]
        ratio = samples[0]["variance"] / samples[1]["variance"]
        squared = [(sample["variance_se"] / sample["variance"]) ** 2 for sample in samples]
        found[1, index, place] = _in_hidden(ratio)
        found[2, index, place] = _in_hidden(ratio * (squared[0] + squared[1]) ** 0.5)
    dims = ("inputs", "seed", "layer")
    dataset = xr.Dataset(
        {name: (dims, values) for name, values in zip(("ratio_predicted", "ratio", "ratio_se"), found, strict=True)},
        coords={"inputs": kinds, "seed": seed + np.arange(n_seeds), "layer": HIDDEN},
    )
    return described(dataset, {"ratio": ("variance in a joint pass over variance in a pass for the layer alone", "1")})


def _in_hidden(array: xr.DataArray) -> Array:
    return array.sel(space="activation", layer=HIDDEN).to_numpy()


def paper_table(
    table: str, width: int, epochs: int, batch: int, guesses: int, seed: int, device: str, scratch: Path
) -> xr.Dataset:
    """The paper's metrics over (guess_kind, layer), predicted and measured, and those printed over (guess_kind)."""
    data = on(device, kept_data.load("mnist1d"))
    network = fga.networks.mlp([40, width, width, width, 10], bias=False, seed=seed).to(device)
    run = resumed.backpropagated(network, data, scratch, epochs=epochs, seed=seed)
    inputs, targets = data.batch(batch)
    snapshot = fga.capture(run.network, torch.nn.functional.cross_entropy, inputs, targets)
    rows = []
    for name, (estimator, printed) in TABLES[table].items():
        sampled = fga.sample(snapshot, estimator, guesses, seed)
        measured, predicted = (
            part.sel(layer=HIDDEN).drop_vars("estimator") for part in (sampled, fga.predict(snapshot, estimator))
        )
        # Layer 3 has ten units above, where W̃^P has ten directions.
        known = xr.ones_like(predicted["wang2025_bias"]) * ([1, 1, np.nan] if estimator == AS_PRINTED else 1)
        variables = {}
        for metric, value in zip(METRICS, printed, strict=True):
            source = f"wang2025_{metric}"
            variables[f"{metric}_predicted"] = predicted[source] * known
            variables[f"{metric}_printed"] = xr.DataArray(value)
            if source in measured:
                variables[metric] = measured[source] * known
                variables[f"{metric}_se"] = measured[f"{source}_se"] * known
        rows.append(xr.Dataset(variables).expand_dims(guess_kind=[name]))
    units = {"variance": fga.schema.SQUARED_UNITS, "bias": fga.schema.GRADIENT_UNITS}
    long_names = {metric: fga.schema.variables()[f"wang2025_{metric}"].long_name for metric in METRICS}
    names = {metric: (long_name, units.get(metric, "1")) for metric, long_name in long_names.items()}
    dataset = described(xr.concat(rows, dim="guess_kind", data_vars="all"), names, PRINTED)
    dataset.attrs |= {"width": width, "epochs": epochs, "train_accuracy": float(run.log["train_accuracy"][-1])}
    return dataset
