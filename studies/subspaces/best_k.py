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
from studies.kit.markdown import capital, listed, table, verb
from studies.kit.seeds import Interval, over_seeds
from studies.subspaces.figures import NAMES
from studies.subspaces.picks import NEAR, STATES, Answer, all_widths, factor, hidden_layers, output_layer, trained

# Wang et al. 2025, Table 1: training accuracy at width 128 for each k, the best first.
PAPER_SWEEP = {"10": 0.324, "25": 0.323, "rank": 0.311, "1": 0.275}
VERDICTS = ("as in the paper", "reversed", "not told apart")


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


def best_k(collected: xr.Dataset, k: int) -> Answer:
    layers, output = hidden_layers(collected)[:-1], output_layer(collected)
    chosen = collected[["regret", "predicted_choice", "sampled_choice"]]
    chosen = chosen.sel(layer=[*hidden_layers(collected), schema.ALL_LAYERS])  # The output tap has no k of its own.
    regret = chosen["regret"].values[np.isfinite(chosen["regret"].values)]
    agreed = int((chosen["predicted_choice"] == chosen["sampled_choice"]).sum())
    width = [w for w in all_widths(collected) if bool(chosen["sampled_choice"].sel(width=w).notnull().any())][-1]
    best = {method: trained(collected, "best_k", width, method) for method in STATES}
    own_k = [
        [
            NAMES[method],
            *(_each(own.sel(space="activation", layer=layer)) for layer in layers),
            *(_each(own.sel(space=space, layer=schema.ALL_LAYERS)) for space in schema.SPACES),
        ]
        for method, own in best.items()
    ]
    parts = {method: _sweep(collected, width, method) for method in STATES}
    ranked = {
        (part, method): Ranking.of(parts[method][index])
        for index, part in enumerate(("hidden layers", "net"))
        for method in STATES
    }
    counts = {word: sum(one.pairs[word] for one in ranked.values()) for word in VERDICTS}
    alike, reversed_, untold = counts.values()
    whole = sum(one.pairs[VERDICTS[0]] == sum(one.pairs.values()) for one in ranked.values())
    sweep = "yes" if whole == len(ranked) else "partly" if alike > reversed_ else "no"
    likes = [listed(str(one) for (own, _), one in ranked.items() if own == part) for part in ("hidden layers", "net")]
    states = listed(NAMES[method] for method in STATES)
    net = [_each(own.sel(space="weight", layer=schema.ALL_LAYERS)) for own in best.values()]
    short = (
        f"With sampling {'yes' if regret.max() < NEAR else 'mostly'}: both choose the same k in {agreed} of "
        f"{len(regret)} cases, and {100 * np.median(regret):.1f} % of the efficiency is lost in the median and "
        f"{100 * regret.max():.1f} % at most by following the sample. "
        f"With the seed paper's sweep {sweep}: its whole order of k ({listed(PAPER_SWEEP)}) comes out in {whole} of "
        f"{len(ranked)} rankings, and of {sum(counts.values())} pairs of k {alike} are as in the paper, {reversed_} "
        f"reversed and {untold} not told apart. Of the paper's k the hidden layers like {likes[0]}, the net {likes[1]} "
        f'({states}; "or": not told apart). Of all k the net likes, seed by seed in weight space, {"; ".join(net)}.'
    )
    return short, [
        "## (b) Is the predicted best k the best one by sampled efficiency, and the seed paper's?",
        "",
        "![energy curves](subspaces_energy_curves.png)",
        "",
        *_agreement(collected),
        "",
        f"Predicted best k at width {width}, seed by seed: of a layer at its activations, and one k in all layers for "
        "the net:",
        "",
        table(["", *(f"layer {one}" for one in layers), *(f"net, {space} space" for space in schema.SPACES)], own_k),
        "",
        f"- Layer {output}, the output, has no k and holds "
        f"{over_seeds(trained(collected, 'upstream_share', width, 'initialisation').sel(layer=output))} of the net's "
        "squared activation gradient at initialisation: directions of other layers are noise to it.",
        "",
        f"Predicted efficiency in weight space at the k of the seed paper's Table 1, width {width}: geometric mean "
        f"over seeds, 95 % interval on the log scale. For the hidden layers it is that of layers {listed(layers)}, as "
        "AdamW gives each its own scale. The paper's column is training accuracy:",
        "",
        _sweep_table(parts),
        "",
        "Which of these k is best, and how many of the six pairs of k stand as in the paper (10 and 25 are only 0.001 "
        "apart there):",
        "",
        table(
            ["", "best of each seed", "best two", "their ratio", *VERDICTS],
            [
                [
                    f"{part}, {NAMES[method]}",
                    listed(one.each),
                    f"{one.best}, {one.second}" + " (not told apart)" * (one.lead.low <= 0),
                    factor(one.lead),
                    *map(str, one.pairs.values()),
                ]
                for (part, method), one in ranked.items()
            ],
        ),
    ]


def _agreement(collected: xr.Dataset) -> list[str]:
    rows, said = [], []
    for quantity in collected["quantity"].values:
        own = collected["z"].sel(quantity=quantity)
        z = np.abs(own.values[np.isfinite(own.values)])
        name, square = str(quantity).replace("_", " "), _mean_square(own)
        beyond, chance = int((z > 3).sum()), len(z) * 2 * float(special.ndtr(-3.0))
        rows.append([name, str(len(z)), str(beyond), f"{chance:.1f}", f"{z.max():.1f}", str(square)])
        said.append(
            f"- {capital(name)}: {beyond} of {len(z)} beyond 3, {chance:.1f} by chance; its mean z² is {square}, "
            f"{verb(square, 'more than', 'less than', 'not told apart from', 1.0)} 1."
        )
    efficiency = collected["z"].sel(quantity="efficiency")
    names = [str(name) for name in collected["layer"].values]
    by_layer = [
        [f"{space} space", *(_known(_mean_square(efficiency.sel(space=[space], layer=[name]))) for name in names)]
        for space in schema.SPACES
    ]
    return [
        "Sampled against predicted, over every width, state, seed, sampled k, layer and space (efficiencies known to "
        "10 %). z is the difference over 1/1.96 of the way to the sampled interval's bound on the prediction's side:",
        "",
        table(["", "comparisons", "beyond 3", "by chance", "largest", "mean z²"], rows),
        "",
        *said,
        "- Layers, spaces and trainings share their draws: the counts are not independent, and the intervals of z² "
        "take what shares them as one.",
        "",
        "Mean z² of the efficiency:",
        "",
        table(["", *("net" if name == schema.ALL_LAYERS else f"layer {name}" for name in names)], by_layer),
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


def _sweep_table(parts: dict[str, tuple[xr.DataArray, xr.DataArray]]) -> str:
    rows = []
    for one, accuracy in PAPER_SWEEP.items():
        logs = [over_seeds(np.log(part.sel(sweep=one).values)) for pair in parts.values() for part in pair]
        rows.append([one, *map(factor, logs), f"{accuracy:.3f}"])
    header = [f"{part}, {NAMES[method]}" for method in parts for part in ("hidden layers", "net")]
    return table(["k", *header, "seed paper"], rows)


def _each(ks: xr.DataArray) -> str:
    """One number a seed, or the one that all share."""
    numbers = [f"{k:.0f}" for k in ks.values]
    return numbers[0] if len(set(numbers)) == 1 else listed(numbers)
