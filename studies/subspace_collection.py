"""The cells of `studies.subspaces` as one Dataset over (width, trained_by, seed, moment), which answers are read from.

moment: "common", the step that every width has, and "last". A network at initialisation has the same numbers at both.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis import schema
from fganalysis.schema import SE
from studies.subspace_cells import METHODS

Key = tuple[int, str, int]
MOMENTS = ("common", "last")
AT_K = ("overlap", "random_overlap", "random_overlap_in_range", "kept_energy", "orthogonal_efficiency")
SWEEP = (1, 10, 25)  # the k of the seed paper's Table 1, beside the full rank
WELL_KNOWN = 0.1  # a sampled efficiency is compared where its standard error is below a tenth of it
NOTES = {
    "upstream_share": ("share of the squared activation gradient at a tap, all taps one", "1"),
    "cross_layer": ("noise that a tap's guess takes from all taps over what it would make alone", "1"),
    "activity_efficiency": ("efficiency of activity perturbation", "1"),
    "sweep_efficiency": ("predicted efficiency at the k of the seed paper's sweep", "1"),
    "sampled_efficiency": ("sampled efficiency of the orthogonal upstream guess", "1"),
    "sampled_efficiency_se": ("standard error of the sampled efficiency", "1"),
    "best_efficiency": ("predicted efficiency of the orthogonal upstream guess at its best k", "1"),
    "predicted_choice": ("k of the highest predicted efficiency among those sampled", "1"),
    "sampled_choice": ("k of the highest sampled efficiency among those sampled", "1"),
    "regret": ("predicted efficiency lost by taking the sampled choice", "1"),
    "z": ("(sampled - predicted) / standard error, of the efficiency", "1"),
    "loss": ("loss on the training set", "loss"),
    "initial_loss": ("loss on the training set before training", "loss"),
    "train_accuracy": ("accuracy on the training set", "1"),
    "weight_rank": ("stable rank of the weights", "1"),
    "initial_weight_rank": ("stable rank of the weights before training", "1"),
    "turned": ("mean principal angle between the leading subspaces of the first and the last step", "degrees"),
    "aligned": ("mean squared cosine of the same angles", "1"),
    "random_aligned": ("mean squared cosine with a random subspace", "1"),
}


def collect(trainings: Mapping[Key, xr.DataTree], descents: xr.Dataset, k: int) -> xr.Dataset:
    """Everything that an answer is made of, with units and long names; the descents' variables begin with descent_."""
    widths = list(dict.fromkeys(width for width, _, _ in trainings))
    seeds = list(dict.fromkeys(seed for _, _, seed in trainings))
    nested = [[[_summary(trainings[w, m, s], w, k) for s in seeds] for m in METHODS] for w in widths]
    by_width = [
        xr.concat(
            [xr.concat(row, dim="seed", data_vars="all", join="outer", coords="minimal") for row in rows],
            dim="trained_by",
            data_vars="all",
            join="outer",
            coords="minimal",
        )
        for rows in nested
    ]
    collected = xr.concat(by_width, dim="width", data_vars="all", join="outer", coords="minimal")
    collected = collected.assign_coords(width=widths, trained_by=list(METHODS), seed=seeds)
    renamed = descents.rename({name: f"descent_{name}" for name in descents.data_vars})
    collected = collected.merge(renamed.rename(step="descent_step"))
    known = schema.variables()
    for name, array in collected.data_vars.items():
        if name in NOTES:
            array.attrs |= {"long_name": NOTES[str(name)][0], "units": NOTES[str(name)][1]}
        elif name in known:
            array.attrs |= {"long_name": known[str(name)].long_name, "units": known[str(name)].units}
    return collected


def _summary(tree: xr.DataTree, width: int, k: int) -> xr.Dataset:
    """One cell over (moment, space, layer, …)."""
    spaces = tree["subspace"].to_dataset()
    found = spaces[list(AT_K)].sel(mode=k, drop=True)
    for name in ("best_k", "upstream_efficiency"):
        found[name] = spaces[name]
    for name in ("entropy_rank", "stable_rank", "modes_for_90"):
        found[name] = spaces[name]
    efficiency = spaces["orthogonal_efficiency"]
    found["best_efficiency"] = efficiency.max("mode")
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
    found["activity_efficiency"] = tree["activity"].to_dataset()["efficiency"]
    found = found.merge(_sampled(tree["measured"].to_dataset(), efficiency, k))
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
        ends = turning.isel(step=0, other_step=-1, drop=True)
        found["turned"], found["aligned"] = ends["angle"], ends["alignment"]
        found["random_aligned"], found["random_angle"] = turning["random_alignment"], turning["random_angle"]
        found["stacked_rank"], found["single_rank"] = turning["stacked_rank"], turning["single_rank"]
    moments = found.isel(step=[0, -1]).rename(step="moment")
    return moments.assign_coords(moment=list(MOMENTS))


def _sampled(measured: xr.Dataset, predicted: xr.DataArray, k: int) -> xr.Dataset:
    """Sampled efficiencies against predicted ones, and the k that each of them would choose."""
    sampled, error = measured["efficiency"], measured["efficiency" + SE]
    expected = predicted.sel(mode=measured["k"].values).rename(mode="k").assign_coords(k=measured["k"])
    sound = (error < WELL_KNOWN * sampled) & (expected > 0)
    found = xr.Dataset(
        {
            "sampled_efficiency": sampled.sel(k=k, drop=True),
            "sampled_efficiency_se": error.sel(k=k, drop=True),
            "z": ((sampled - expected) / error).where(sound),
        }
    )
    if measured.sizes["k"] > 1:
        # A choice is known where the best sampled efficiency is.
        usable = sound.isel(k=sampled.fillna(-1).argmax("k"), drop=True)
        ks = measured["k"].values.astype(float)
        by_sample, by_theory = sampled.fillna(-1).argmax("k"), expected.fillna(-1).argmax("k")
        found["sampled_choice"] = _pick(ks, by_sample).where(usable)
        found["predicted_choice"] = _pick(ks, by_theory).where(usable)
        found["regret"] = (1 - expected.isel(k=by_sample, drop=True) / expected.max("k")).where(usable)
        found = found.drop_vars([name for name in found.coords if name == "k" and "k" not in found.dims])
    return found


def _pick(ks: NDArray[np.float64], index: xr.DataArray) -> xr.DataArray:
    return index.copy(data=ks[index.values]).drop_vars("k", errors="ignore")
