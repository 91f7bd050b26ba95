"""What the page of `studies.sketches` says, computed from its Dataset; the sentences are in page.md.j2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from studies.kit import pages
from studies.kit.seeds import half_widths, over_seeds
from studies.sketches.cells import LARGE_SCORE, NEGLIGIBLE, PROPORTIONAL, TIMES
from studies.sketches.networks import NETWORKS

Array = NDArray[np.float64]
BEST, WITHIN = "rows by norm", "row sketch within examples"
NAMES = {"attention": "attention network"}  # Where the name of a network stands in a sentence.
ROUNDING = 1e-9  # Of an energy.


@dataclass(frozen=True)
class Geometric:
    """Geometric mean of one number a seed, with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if not self.high > self.low * (1 + 1e-9):
            return f"{self.mean:.2g}"
        return f"{self.mean:.2g} ({self.low:.2g} to {self.high:.2g})"


def geometric(values: Array) -> Geometric:
    """Of positive numbers, one a seed."""
    logs = np.log(values)
    centre, half = float(logs.mean()), float(half_widths(logs, 0))
    return Geometric(float(np.exp(centre)), float(np.exp(centre - half)), float(np.exp(centre + half)))


def page(dataset: xr.Dataset) -> str:
    """The page docs/results/sketches.md."""
    return pages.render("sketches", values(dataset))


def values(dataset: xr.Dataset) -> dict[str, object]:
    """Everything that the template names."""
    sketches = [name for name in PROPORTIONAL if name in dataset["sketch"].values]
    networks, stages = (
        [str(name) for name in dataset["network"].values],
        [str(name) for name in dataset["stage"].values],
    )
    equal = {
        (network, stage, sketch): _geometric(dataset["equal_memory"], network=network, stage=stage, sketch=sketch)
        for network in networks
        for stage in stages
        for sketch in sketches
    }
    last = stages[-1]
    return {
        "settings": dataset.attrs,
        "networks": [(name, NETWORKS[name].described) for name in networks],
        "n_seeds": dataset.sizes["seed"],
        "sizes": [int(size) for size in dataset["size"].values],
        "best": [f"{equal[network, last, BEST]} in the {NAMES.get(network, network)}" for network in networks],
        "sketches": sketches,
        "equal": [
            [network, stage, *(_bold(equal[network, stage, sketch]) for sketch in sketches)]
            for network in networks
            for stage in stages
        ],
        "verdicts": _verdicts(list(equal.values())),
        "by_layer": _by_layer(dataset, sketches, last),
        "by_rows": _by_rows(dataset, last),
        "minibatch": [
            [network, stage, str(over_seeds(dataset["minibatch"].sel(network=network, stage=stage)))]
            for network in networks
            for stage in stages
        ],
        "agreement": _agreement(dataset),
        "bias_seen": _bias_seen(dataset),
        "ages": _ages(dataset),
        "age_columns": [f"age {age}" for age in dataset["age"].values],
        "aged": _aged(dataset),
        "largest_difference": float(abs(dataset["outside"] - dataset["outside_predicted"]).max()),
    }


def _bold(found: Geometric) -> str:
    """In bold where the interval is below one."""
    return f"**{found}**" if found.high < 1 else str(found)


def _geometric(array: xr.DataArray, **place: str) -> Geometric:
    return geometric(array.sel(place).values)


def _verdicts(found: list[Geometric]) -> dict[str, int]:
    """How often a sketch is as noisy as the minibatch with less memory than the inputs, with more, or with either."""
    less, more = sum(one.high < 1 for one in found), sum(one.low > 1 for one in found)
    return {"all": len(found), "less": less, "more": more, "open": len(found) - less - more}


def _by_rows(dataset: xr.Dataset, stage: str) -> list[tuple[str, int, Geometric, Geometric]]:
    """The memory of equal noise of layers with several rows an example and of those with one, by two sketches.

    Each is a geometric mean over layers and networks, a number a seed.
    """
    own = dataset["equal_memory_of_layer"].sel(stage=stage)
    logs = own.copy(data=np.log(own.values))
    rows = dataset["rows_each"].sel(stage=stage)
    found = []
    for words, chosen in (("several rows", rows > 1), ("a single row", rows == 1)):
        if bool(chosen.any()):
            means = logs.where(chosen).mean(("network", "layer"))
            sampled, within = (geometric(np.exp(means.sel(sketch=name).values)) for name in (BEST, WITHIN))
            found.append((words, int(chosen.isel(seed=0).sum()), sampled, within))
    return found


def _by_layer(dataset: xr.Dataset, sketches: list[str], stage: str) -> list[list[str]]:
    """The memory of equal noise of every layer alone, after training: a row for each layer."""
    rows = []
    for network in dataset["network"].values:
        own = dataset["equal_memory_of_layer"].sel(network=network, stage=stage).dropna("layer", how="all")
        for layer in own["layer"].values:
            rows_each = float(dataset["rows_each"].sel(network=network, stage=stage, layer=layer)[0])
            cells = [f"{geometric(own.sel(layer=layer, sketch=sketch).values).mean:.2g}" for sketch in sketches]
            rows.append([str(network), f"`{layer}`", f"{rows_each:.0f}", *cells])
    return rows


def _agreement(dataset: xr.Dataset) -> dict[str, object]:
    """How many scores of measured against predicted noise are large, and how many would be by chance."""
    scores = abs((dataset["noise"] - dataset["noise_predicted"]) / dataset["noise_se"])
    scores = scores.where(dataset["noise_predicted"] > NEGLIGIBLE)
    by_kind = scores.max([dim for dim in scores.dims if dim not in ("sketch", "size")])
    worst = by_kind.where(by_kind == by_kind.max(), drop=True)
    z = scores.values[np.isfinite(scores.values)]
    large = dataset["score_again"].values[np.isfinite(dataset["score_again"].values)]
    chance = {bound: len(z) * 2 * float(special.ndtr(-bound)) for bound in (2.0, LARGE_SCORE)}
    return {
        "n": len(z),
        "above_2": int((z > 2).sum()),
        "chance_2": chance[2.0],
        "above_3": int((z > LARGE_SCORE).sum()),
        "chance_3": chance[LARGE_SCORE],
        "largest": float(z.max()),
        "again": [f"{score:.2f}" for score in large],
        "times": TIMES,
        "worst": (str(worst["sketch"].values[0]), int(worst["size"].values[0])),
    }


def _bias_seen(dataset: xr.Dataset) -> dict[str, float]:
    """In how many cells the interval of the squared bias leaves zero out; by chance at most one in forty does."""
    seen = dataset["bias_seen"].values[dataset["noise_predicted"].values > NEGLIGIBLE]
    return {"n": len(seen), "seen": int(seen.sum()), "chance": len(seen) / 40}


def _ages(dataset: xr.Dataset) -> list[list[str]]:
    """The energy outside, with that of random directions and of the gradient's own: a row for network, start, rank."""
    rows = []
    for network in dataset["network"].values:
        for start in dataset["start"].values:
            for rank in dataset["rank"].values:
                own = dataset.sel(network=network, start=start, rank=rank)
                outside = [_share(own["outside"].sel(age=age)) for age in own["age"].values]
                others = [_share(own[f"outside_{kind}"].isel(age=-1)) for kind in ("own", "random")]
                rows.append([str(network), str(start), str(rank), *outside, *others])
    return rows


def _share(values: xr.DataArray) -> str:
    """Of an energy, with its interval; 0 for rounding alone."""
    return "0" if float(abs(values).max()) < ROUNDING else str(over_seeds(values))


def _aged(dataset: xr.Dataset) -> dict[str, object]:
    """Of the most directions, the energy outside at the first and the last age, over all networks and starts."""
    most = dataset.isel(rank=-1)
    ratios = [
        over_seeds(most["outside"].sel(network=n, start=s).isel(age=-1) / most["outside"].sel(network=n, start=s)[:, 0])
        for n in dataset["network"].values
        for s in dataset["start"].values
    ]
    below = [
        over_seeds((most["outside_random"] - most["outside"]).sel(network=n, start=s).isel(age=-1)).low > 0
        for n in dataset["network"].values
        for s in dataset["start"].values
    ]
    return {
        "rank": int(dataset["rank"].values[-1]),
        "ages": [int(dataset["age"].values[0]), int(dataset["age"].values[-1])],
        "grown": sum(ratio.low > 1 for ratio in ratios),
        "below": sum(below),
        "cases": len(ratios),
        "outside": [
            (
                NAMES.get(str(n), str(n)),
                int(s),
                over_seeds(most["outside"].sel(network=n, start=s).isel(age=0)),
                over_seeds(most["outside"].sel(network=n, start=s).isel(age=-1)),
                over_seeds(most["outside_random"].sel(network=n, start=s).isel(age=-1)),
            )
            for n in dataset["network"].values
            for s in dataset["start"].values
        ],
    }
