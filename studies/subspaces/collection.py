"""The cells of `studies.subspaces` as one Dataset over (width, trained_by, seed, moment), which answers are read from.

moment: "common", the step that every width has, and "last". A network at initialisation has the same numbers at both.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr

from fganalysis.results import schema
from fganalysis.results.schema import SE
from fganalysis.results.tables import error_towards
from studies.subspaces.cells import METHODS
from studies.subspaces.sranks import MATRICES as OF_TRAINING

Key = tuple[int, str, int]
MOMENTS = ("common", "last")
AT_K = (
    "overlap",
    "random_overlap",
    "random_overlap_spread",
    "random_overlap_in_range",
    "kept_energy",
    "orthogonal_efficiency",
)
FREE_OF_K = ("best_k", "upstream_efficiency", "entropy_rank", "stable_rank", "modes_for_90")
SWEEP = (1, 10, 25)  # the k of the seed paper's Table 1, beside the full rank
WELL_KNOWN = 0.1  # a sampled efficiency is compared where its standard error is below a tenth of it
COUNTED = {"z", "sampled_choice", "predicted_choice", "regret"}
NOTES = {
    "training_step": ("steps of training behind", "step"),
    "upstream_share": ("share of the squared activation gradient at a tap, all taps one", "1"),
    "cross_layer": ("noise that a tap's guess takes from all taps over what it would make alone", "1"),
    "activity_efficiency": ("efficiency of activity perturbation", "1"),
    "random_overlap_in_range_spread": ("standard deviation of that overlap, of examples that share their rank", "1"),
    "weight_overlap": ("squared cosine of the mean guess of the weights' gradient with that gradient", "1"),
    "agreement": ("squared norm of the mean guess of the weights' gradient over the sum of its examples'", "1"),
    "equal_step": ("kept step whose loss is nearest to that of the orthogonal guess after its last step", "step"),
    "equal_loss": ("loss on the training set at the equal step", "loss"),
    "equal_overlap": ("overlap at the equal step, example mean", "1"),
    "overlap_root": ("norm of the gradient in the k leading directions over its norm, example mean", "1"),
    "sweep_efficiency": ("predicted efficiency at the k of the seed paper's sweep", "1"),
    "predicted_choice": ("k of the highest predicted efficiency among those sampled", "1"),
    "sampled_choice": ("k of the highest sampled efficiency among those sampled", "1"),
    "regret": ("predicted efficiency lost by taking the sampled choice, over the highest predicted", "1"),
    "z": ("(sampled - predicted) / (1/1.96 of the way to the interval's bound on that side)", "1"),
    "loss": ("loss on the training set", "loss"),
    "initial_loss": ("loss on the training set before training", "loss"),
    "train_accuracy": ("accuracy on the training set", "1"),
    "weight_rank": ("stable rank of the weights after the last step", "1"),
    "initial_weight_rank": ("stable rank of the weights before training", "1"),
    "features_srank": ("leading modes with 99% of the sum of singular values, of a layer's inputs", "1"),
    "weights_srank": ("leading modes with 99% of the sum of singular values, of a layer's weights", "1"),
    "initial_features_srank": ("the same of the inputs before training", "1"),
    "initial_weights_srank": ("the same of the weights before training", "1"),
    "random_features_srank": ("the same of a random matrix of the shape of the inputs", "1"),
    "random_weights_srank": ("the same of a random matrix of the shape of the weights", "1"),
    "turned": ("mean squared cosine of the angles between the leading subspaces of the first and of this step", "1"),
}


def collect(trainings: Mapping[Key, xr.DataTree], descents: xr.Dataset, k: int) -> xr.Dataset:
    """Everything that an answer is made of, with units and long names; the descents' variables begin with descent_."""
    widths = list(dict.fromkeys(width for width, _, _ in trainings))
    seeds = list(dict.fromkeys(seed for _, _, seed in trainings))
    by_width = []
    for width in widths:
        by_method = [
            _joined("seed", [_summary(trainings[width, method, seed], width, k) for seed in seeds])
            for method in METHODS
        ]
        by_width.append(_joined("trained_by", by_method))
    collected = _joined("width", by_width).assign_coords(width=widths, trained_by=list(METHODS), seed=seeds)
    renamed = descents.rename({name: f"descent_{name}" for name in descents.data_vars})
    collected = collected.merge(renamed.rename(step="descent_step"))
    collected = collected.merge(_at_equal_loss(trainings), join="left")
    known = schema.variables()
    for name, array in collected.data_vars.items():
        if name in NOTES:
            array.attrs |= {"long_name": NOTES[str(name)][0], "units": NOTES[str(name)][1]}
        elif name in known:
            array.attrs |= {"long_name": known[str(name)].long_name, "units": known[str(name)].units}
    return collected


def _joined(dim: str, parts: list[xr.Dataset]) -> xr.Dataset:
    return xr.concat(parts, dim=dim, data_vars="all", join="outer", coords="minimal")


def _summary(tree: xr.DataTree, width: int, k: int) -> xr.Dataset:
    """One cell over (moment, space, layer, …)."""
    spaces = tree["subspace"].to_dataset()
    found = spaces[list(AT_K)].sel(mode=k, drop=True)
    for name in FREE_OF_K:
        found[name] = spaces[name]
    found["training_step"] = spaces["step"].variable
    share = found["random_overlap_in_range"]  # k/rank: o² ~ Beta(k/2, (rank − k)/2)
    found["random_overlap_in_range_spread"] = (2 * share**2 * (1 - share) / (k + 2 * share)) ** 0.5
    efficiency = spaces["orthogonal_efficiency"]
    full = int(spaces["mode"][-1])
    sweep = [efficiency.sel(mode=min(one, full), drop=True) for one in (*SWEEP, width)]
    found["sweep_efficiency"] = xr.concat(sweep, dim=xr.IndexVariable("sweep", [*map(str, SWEEP), "rank"]))
    squares = (spaces["singular_value"].sel(matrix="activation_gradient", drop=True) ** 2).sum("mode")
    squares = squares.where(squares["layer"] != schema.ALL_LAYERS, squares.sum("layer"))
    found["upstream_share"] = squares / squares.sel(layer=schema.ALL_LAYERS)
    # tr Cov = k Σ_b T_b + kept energy, and a tap alone would have its own kept energy in place of Σ_b T_b.
    kept = spaces["kept_energy"].sel(mode=k, drop=True) * squares
    variance = spaces["orthogonal_variance"].sel(space="activation", mode=k, drop=True)
    found["cross_layer"] = (variance - kept) / (k * kept)
    beside = tree["beside"].to_dataset()
    found["activity_efficiency"] = beside["efficiency"]
    for name in ("overlap_root", "weight_overlap", "agreement"):
        found[name] = beside[name]
    found = found.merge(_sampled(tree["measured"].to_dataset(), spaces))
    if "curvature" in tree.children:
        own = tree["curvature"].to_dataset().drop_vars(["eigenvalue", "mode"])
        found = found.merge(own.rename({name: f"curvature_{name}" for name in own.data_vars}))
    if "training" in tree.children:
        log = tree["training"].to_dataset()
        at = log.sel(step=found["step"])
        found["loss"], found["train_accuracy"] = at["loss"], at["train_accuracy"]
        found["initial_loss"] = log["loss"].isel(step=0, drop=True)
        weights = tree["weights"].to_dataset()["stable_rank"]
        found["initial_weight_rank"], found["weight_rank"] = (weights.isel(step=end, drop=True) for end in (0, -1))
    if "turning" in tree.children:
        turning = tree["turning"].to_dataset()
        from_the_first = turning["alignment"].isel(step=0, drop=True).rename(other_step="step")
        found["turned"] = from_the_first.sel(step=found["step"])
        for name in ("random_alignment", "random_alignment_spread", "stacked_rank", "single_rank"):
            found[name] = turning[name]
    if "sranks" in tree.children:
        ranks = tree["sranks"].to_dataset()
        for matrix in OF_TRAINING:
            own = ranks.sel(matrix=matrix, drop=True)
            found[f"{matrix}_srank"] = own["srank"].sel(step=found["step"])
            found[f"initial_{matrix}_srank"] = own["srank"].isel(step=0, drop=True)
            found[f"random_{matrix}_srank"] = own["random_srank"]
    twice = found.sizes["step"] == 1
    found = found.isel(step=[0, -1]).rename(step="moment").assign_coords(moment=list(MOMENTS))
    if twice:  # Comparisons are counted: once each.
        for name in COUNTED & set(found.data_vars):
            found[name] = found[name].where(found["moment"] == "last")
    return found


def _at_equal_loss(trainings: Mapping[Key, xr.DataTree]) -> xr.Dataset:
    """Every training at the step, among those of /path, whose loss is nearest to that of W̃⊥ after its last step."""
    looks = []
    for (width, method, seed), tree in trainings.items():
        if "path" not in tree.children:
            continue
        path = tree["path"].to_dataset()
        target = trainings[width, "orthogonal", seed]["path"]["loss"].isel(step=-1, drop=True)
        nearest = path.isel(step=int(np.argmin(np.abs(path["loss"].values - float(target))))).reset_coords("step")
        nearest = nearest.rename(step="equal_step", loss="equal_loss", overlap="equal_overlap")
        looks.append(nearest.expand_dims(width=[width], trained_by=[method], seed=[seed]))
    found = xr.combine_by_coords(looks, join="outer")
    assert isinstance(found, xr.Dataset)
    return found


def _sampled(measured: xr.Dataset, spaces: xr.Dataset) -> xr.Dataset:
    """Sampled quantities against predicted ones, and the k that sampled and predicted efficiency would choose."""
    predicted = spaces.sel(mode=measured["k"].values).rename(mode="k")
    expected = {
        "efficiency": predicted["orthogonal_efficiency"],
        "variance": predicted["orthogonal_variance"],
        "squared_bias": predicted["orthogonal_bias"] ** 2,
    }
    sampled, error = measured["efficiency"], measured["efficiency" + SE]
    sound = (error < WELL_KNOWN * sampled) & (expected["efficiency"] > 0)
    distances = []
    for name, value in expected.items():
        z = (measured[name] - value) / error_towards(value, measured, name)
        distances.append(z.where(sound if name == "efficiency" else True))
    found = xr.concat(distances, dim=xr.IndexVariable("quantity", list(expected))).to_dataset(name="z")
    if measured.sizes["k"] > 1:
        by_sample, by_theory = (one.fillna(-1).argmax("k") for one in (sampled, expected["efficiency"]))
        # A choice is known where the best sampled efficiency is.
        usable = sound.isel(k=by_sample, drop=True)
        highest = expected["efficiency"].max("k")
        found["sampled_choice"] = measured["k"].isel(k=by_sample, drop=True).drop_vars("k").where(usable)
        found["predicted_choice"] = measured["k"].isel(k=by_theory, drop=True).drop_vars("k").where(usable)
        lost = 1 - expected["efficiency"].isel(k=by_sample, drop=True).drop_vars("k") / highest
        found["regret"] = lost.where(usable)
    return found
