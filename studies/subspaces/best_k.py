"""Answer (b) of `studies.subspaces`: is the predicted best k the best one by sampled efficiency, and the seed paper's?

Every number and every verdict is read from the collected Dataset. Efficiencies of different seeds differ by factors:
they are compared seed by seed on the log scale, and one k is called better only where the 95 % interval of the log
ratio leaves zero out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import xarray as xr
from scipy import special

from fganalysis.results import schema
from fganalysis.statistics.intervals import Z95
from studies.kit.markdown import listed, verb
from studies.kit.seeds import Interval, over_seeds
from studies.subspaces.figures import NAMES
from studies.subspaces.picks import NEAR, STATES, all_widths, factor, hidden_layers, output_layer, trained

# Wang et al. 2025, Table 1: training accuracy at width 128 for each k, the best first.
PAPER_SWEEP = {"10": 0.324, "25": 0.323, "rank": 0.311, "1": 0.275}
VERDICTS = ("as in the paper", "reversed", "undecided")
PARTS = ("hidden layers", "net")


@dataclass(frozen=True)
class Ranking:
    """The k of the seed paper's sweep by predicted efficiency: the best of every seed, and the two of highest mean log.

    lead: log ratio of the best two. pairs: how often each of VERDICTS is said of two k.
    """

    each: list[str]
    best: str
    second: str
    lead: Interval
    pairs: dict[str, int]

    @classmethod
    def of(cls, efficiency: xr.DataArray) -> Ranking:
        logs = efficiency.copy(data=np.log(efficiency.values))
        each = [str(logs.sel(seed=seed).idxmax("sweep").item()) for seed in logs["seed"].values]
        means = logs.mean("seed")
        best, second = (str(name) for name in means["sweep"].values[np.argsort(-means.values, kind="stable")][:2])
        said = [verb(_ratio(logs, *pair), *VERDICTS) for pair in combinations(PAPER_SWEEP, 2)]
        return cls(each, best, second, _ratio(logs, best, second), {word: said.count(word) for word in VERDICTS})

    def __str__(self) -> str:
        return self.best if self.lead.low > 0 else f"{self.best} or {self.second}"


def best_k(collected: xr.Dataset, k: int) -> dict[str, object]:
    """What answer (b) says: the names of the template best_k.md.j2."""
    layers, output = hidden_layers(collected)[:-1], output_layer(collected)
    chosen = collected[["regret", "predicted_choice", "sampled_choice"]]
    chosen = chosen.sel(layer=[*hidden_layers(collected), schema.ALL_LAYERS])  # The output tap has no k of its own.
    regret = chosen["regret"].values[np.isfinite(chosen["regret"].values)]
    width = [w for w in all_widths(collected) if bool(chosen["sampled_choice"].sel(width=w).notnull().any())][-1]
    best = {method: trained(collected, "best_k", width, method) for method in STATES}
    parts = {method: _sweep(collected, width, method) for method in STATES}
    ranked = {(part, method): Ranking.of(parts[method][index]) for index, part in enumerate(PARTS) for method in STATES}
    return {
        "k": k,
        "n_cases": len(regret),
        "n_agreed": int((chosen["predicted_choice"] == chosen["sampled_choice"]).sum()),
        "median_regret": 100 * float(np.median(regret)),
        "largest_regret": 100 * float(regret.max()),
        "near": bool(regret.max() < NEAR),
        "n_rankings": len(ranked),
        "n_whole": sum(ranking.pairs[VERDICTS[0]] == sum(ranking.pairs.values()) for ranking in ranked.values()),
        "pairs": [sum(ranking.pairs[verdict] for ranking in ranked.values()) for verdict in VERDICTS],
        "paper_order": list(PAPER_SWEEP),
        "best_of_paper": [[str(ranking) for (owner, _), ranking in ranked.items() if owner == part] for part in PARTS],
        "states": [NAMES[method] for method in STATES],
        "best_of_all": [_each(own.sel(space="weight", layer=schema.ALL_LAYERS)) for own in best.values()],
        "width": width,
        "layers": layers,
        "output": output,
        "output_share": over_seeds(trained(collected, "upstream_share", width, "initialisation").sel(layer=output)),
        "agreement": _agreement(collected),
        "layer_names": [str(name) for name in collected["layer"].values],
        "by_layer": _by_layer(collected),
        "best": [
            [
                NAMES[method],
                *(_each(own.sel(space="activation", layer=layer)) for layer in layers),
                *(_each(own.sel(space=space, layer=schema.ALL_LAYERS)) for space in schema.SPACES),
            ]
            for method, own in best.items()
        ],
        "spaces": list(schema.SPACES),
        "sweep_columns": [f"{part}, {NAMES[method]}" for method in parts for part in PARTS],
        "sweep": _sweep_rows(parts),
        "ranked": [
            {
                "of": f"{part}, {NAMES[method]}",
                "each": ranking.each,
                "best": ranking.best,
                "second": ranking.second,
                "known": ranking.lead.low > 0,
                "lead": factor(ranking.lead),
                "pairs": list(ranking.pairs.values()),
            }
            for (part, method), ranking in ranked.items()
        ],
    }


def _agreement(collected: xr.Dataset) -> list[dict[str, object]]:
    """For each quantity that was sampled, how its differences from the prediction are distributed."""
    found = []
    for quantity in collected["quantity"].values:
        own = collected["z"].sel(quantity=quantity)
        z = np.abs(own.values[np.isfinite(own.values)])
        found.append(
            {
                "name": str(quantity).replace("_", " "),
                "n": len(z),
                "beyond": int((z > 3).sum()),
                "by_chance": len(z) * 2 * float(special.ndtr(-3.0)),
                "largest": float(z.max()),
                "mean_square": _mean_square(own),
            }
        )
    return found


def _by_layer(collected: xr.Dataset) -> list[list[str]]:
    efficiency = collected["z"].sel(quantity="efficiency")
    return [
        [
            f"{space} space",
            *(_known(_mean_square(efficiency.sel(space=[space], layer=[name]))) for name in collected["layer"].values),
        ]
        for space in schema.SPACES
    ]


def _mean_square(z: xr.DataArray) -> Interval:
    """Mean z² with the 95 % interval of a ratio of sums over independent draws: width, seed, moment and k."""
    draws = z.transpose("width", "seed", "moment", "k", ...).values
    draws = draws.reshape(np.prod(draws.shape[:4]), -1)
    sums, counts = np.nansum(draws**2, 1), np.isfinite(draws).sum(1)
    if not counts.any():
        return Interval(float("nan"), float("nan"))
    mean = sums.sum() / counts.sum()
    return Interval(float(mean), float(Z95 * np.linalg.norm(sums - mean * counts) / counts.sum()))


def _known(interval: Interval) -> str:
    return str(interval) if np.isfinite(interval.mean) else "—"


def _ratio(logs: xr.DataArray, one: str, other: str) -> Interval:
    return over_seeds(logs.sel(sweep=one) - logs.sel(sweep=other, drop=True))


def _sweep(collected: xr.Dataset, width: int, method: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Efficiency in weight space over (sweep, seed): the geometric mean of layers with a choice of k, and the net's."""
    own = trained(collected, "sweep_efficiency", width, method).sel(space="weight")
    hidden = own.sel(layer=hidden_layers(collected)[:-1])
    parts = (hidden.prod("layer") ** (1 / hidden.sizes["layer"]), own.sel(layer=schema.ALL_LAYERS))
    return parts[0].transpose("sweep", "seed"), parts[1].transpose("sweep", "seed")


def _sweep_rows(parts: dict[str, tuple[xr.DataArray, xr.DataArray]]) -> list[list[str]]:
    rows = []
    for sweep, accuracy in PAPER_SWEEP.items():
        logs = [over_seeds(np.log(part.sel(sweep=sweep).values)) for pair in parts.values() for part in pair]
        rows.append([sweep, *map(factor, logs), f"{accuracy:.3f}"])
    return rows


def _each(ks: xr.DataArray) -> str:
    """One number a seed, or the one that all share."""
    numbers = [f"{k:.0f}" for k in ks.values]
    return numbers[0] if len(set(numbers)) == 1 else listed(numbers)
