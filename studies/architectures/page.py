"""What the page of `studies.architectures` says, computed from its Dataset; the sentences are in page.md.j2."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from fganalysis.results import schema
from studies.architectures.cells import PART, QUANTITIES, TRAINING_BATCH
from studies.architectures.networks import ARCHITECTURES, POSITIONS
from studies.kit import pages
from studies.kit.markdown import scientific
from studies.kit.seeds import Interval, over_seeds
from studies.kit.shares import clopper_pearson

PAPERS = "orthogonal, k = 10"  # The setting of the seed paper's main table.
ORTHOGONAL = (PAPERS, "orthogonal, k = 1")
RIVALS = ("weight", "activity", "upstream")
WHERE_THE_PAPER_IS = "MLP"
MOMENT_WORDS = {"initialisation": "at initialisation", "trained": "after training"}
PLAIN = (0.01, 1000.0)  # Numbers outside are written with a power of ten.


@dataclass(frozen=True)
class Comparison:
    """How often, and by what factor in the median, one efficiency is above another over pairs of networks."""

    above: int
    pairs: int
    factor: float

    @property
    def verdict(self) -> str:
        """ "ahead" or "behind" where the 95 % interval of the share of pairs leaves one half out."""
        low, high = clopper_pearson(self.above, self.pairs)
        if not self.pairs or low <= 0.5 <= high:
            return "undecided"
        return "ahead" if low > 0.5 else "behind"

    def __str__(self) -> str:
        if not self.pairs:
            return "–"
        return f"{_factor(self.factor)} ({self.above} of {self.pairs})"


# By the orthogonal guess, its rival, the architecture and the moment.
Leads = dict[tuple[str, str, str, str], Comparison]


def page(dataset: xr.Dataset) -> str:
    """The page docs/results/architectures.md."""
    return pages.render("architectures", values(dataset))


def values(dataset: xr.Dataset) -> dict[str, object]:
    """Everything that the template names."""
    efficiency = dataset["efficiency"].sel(space="weight", layer=schema.ALL_LAYERS)
    moments = [str(moment) for moment in dataset["trained"].values]
    architectures = [str(name) for name in dataset["architecture"].values]
    kinds = [str(kind) for kind in dataset["guess_kind"].values]
    networks = list(itertools.product(architectures, moments))
    leads: Leads = {
        (orthogonal, rival, *place): lead(efficiency, orthogonal, rival, *place)
        for orthogonal in ORTHOGONAL
        for rival in RIVALS
        for place in networks
    }
    return {
        "settings": dataset.attrs,
        "training_batch": TRAINING_BATCH,
        "part": PART,
        "positions": POSITIONS,
        "n_seeds": dataset.sizes["seed"],
        "n_pairs": dataset.sizes["seed"] * dataset.sizes["size"],
        "moments": moments,
        "moment_words": [MOMENT_WORDS[moment] for moment in moments],
        "outside": {orthogonal: _outside(leads, orthogonal) for orthogonal in ORTHOGONAL},
        "lost": {
            orthogonal: [
                name
                for name in architectures
                if any(
                    leads[orthogonal, rival, name, moment].verdict == "behind" for rival in RIVALS for moment in moments
                )
            ]
            for orthogonal in ORTHOGONAL
        },
        "on_mlps": [
            f"`{rival}` {_counts(leads, PAPERS, rival, [WHERE_THE_PAPER_IS])}"
            for rival in RIVALS
            if WHERE_THE_PAPER_IS in architectures
        ],
        "elsewhere": [name for name in architectures if name != WHERE_THE_PAPER_IS],
        "by_architecture": [
            [*place, *(str(leads[(o, rival, *place)]) for o in ORTHOGONAL for rival in RIVALS)] for place in networks
        ],
        "verdicts": [_verdicts(leads, architecture, moments) for architecture in architectures],
        "lead_header": [
            "network",
            "moment",
            *(f"{o.split(', ')[1]} / {rival}" for o in ORTHOGONAL for rival in RIVALS),
        ],
        "changes": [[kind, *_changes(dataset, kind, architectures)] for kind in kinds],
        "changes_by_architecture": [
            [name, kind, *(text.split(" (")[0] for text in _changes(dataset, kind, [name]))]
            for name, kind in itertools.product(architectures, kinds)
        ],
        "falls": _falls(dataset, kinds, architectures),
        "changes_header": [
            f"{change}, {moment}" for change in ("width × 2", "depth × 2", "first / last layer") for moment in moments
        ],
        "tables": [(moment, _table(dataset, moment, architectures, kinds)) for moment in moments],
        "agreement": _agreement(dataset),
        "inside": _total(dataset),
        "reasons": {name: _reasons(dataset, name) for name in ("not_measured", "not_predicted")},
        "networks": [_network(dataset.sel(architecture=name)) for name in architectures],
    }


def lead(efficiency: xr.DataArray, orthogonal: str, rival: str, architecture: str, moment: str) -> Comparison:
    """The orthogonal guess against a rival on the networks of one architecture: pairs are sizes and seeds."""
    own = efficiency.sel(architecture=architecture, trained=moment)
    return compared(own.sel(guess_kind=orthogonal).values, own.sel(guess_kind=rival).values)


def compared(ours: ArrayLike, theirs: ArrayLike) -> Comparison:
    """Pairs of efficiencies; NaN pairs are left out, and an estimate that is not positive has no factor."""
    one, other = np.ravel(np.asarray(ours, float)), np.ravel(np.asarray(theirs, float))
    known = np.isfinite(one) & np.isfinite(other)
    one, other = one[known], other[known]
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.where(other > 0, np.maximum(one, 0) / other, np.where(one > 0, np.inf, np.nan))
    factors = factors[~np.isnan(factors)]
    return Comparison(int((one > other).sum()), len(one), float(np.median(factors)) if len(factors) else math.nan)


def _outside(leads: Leads, orthogonal: str) -> dict[str, object]:
    """Verdicts outside MLPs over architectures, moments and rivals, and in words for each rival."""
    elsewhere = list(dict.fromkeys(key[2] for key in leads if key[2] != WHERE_THE_PAPER_IS))
    found = [one.verdict for key, one in leads.items() if key[0] == orthogonal and key[2] in elsewhere]
    rivals = [f"`{rival}` {_counts(leads, orthogonal, rival, elsewhere)}" for rival in RIVALS]
    counts = {verdict: found.count(verdict) for verdict in ("ahead", "behind", "undecided")}
    return {"n": len(found), "rivals": rivals} | counts


def _counts(leads: Leads, orthogonal: str, rival: str, architectures: list[str]) -> str:
    """in 6 of 8 cases (behind in 2)."""
    found = [one.verdict for key, one in leads.items() if key[:2] == (orthogonal, rival) and key[2] in architectures]
    behind = f" (behind in {found.count('behind')})" if "behind" in found else ""
    return f"in {found.count('ahead')} of {len(found)} cases{behind}"


def _verdicts(leads: Leads, architecture: str, moments: list[str]) -> list[str]:
    """Of one architecture, what the orthogonal guess of the paper is ahead of, behind and neither, at each moment."""
    row = [architecture]
    for orthogonal, moment in itertools.product(ORTHOGONAL, moments):
        found = {rival: leads[orthogonal, rival, architecture, moment].verdict for rival in RIVALS}
        parts = [
            f"{verdict}: {', '.join(rival for rival in RIVALS if found[rival] == verdict)}"
            for verdict in ("ahead", "behind", "undecided")
            if verdict in found.values()
        ]
        row.append("; ".join(parts))
    return row


def _pairs(dataset: xr.Dataset, kind: str, architectures: list[str], moment: str) -> list[Comparison]:
    """Efficiencies of a guess: wide against base, deep against base, first against last layer of the deep networks."""
    place = {"space": "weight", "guess_kind": kind, "trained": moment, "architecture": architectures}
    whole = dataset["efficiency"].sel(place).sel(layer=schema.ALL_LAYERS)
    base = whole.sel(size="base").values
    # Efficiencies of single layers are mostly too small to be measured, so the prediction goes first.
    known = dataset["efficiency_predicted"].sel(place)
    own = known.where(known.notnull(), dataset["efficiency"].sel(place))
    first, last = [], []
    for name in architectures:
        layers = int((dataset["layer_name"].sel(architecture=name, size="deep") != "").sum())
        deep = own.sel(architecture=name, size="deep")
        first.append(deep.sel(layer="1").values)
        last.append(deep.sel(layer=str(layers)).values)
    ends = compared(np.concatenate(first), np.concatenate(last))
    return [compared(whole.sel(size="wide").values, base), compared(whole.sel(size="deep").values, base), ends]


def _changes(dataset: xr.Dataset, kind: str, architectures: list[str]) -> list[str]:
    by_moment = [_pairs(dataset, kind, architectures, str(moment)) for moment in dataset["trained"].values]
    return [str(pairs[change]) for change in range(3) for pairs in by_moment]


def _falls(dataset: xr.Dataset, kinds: list[str], architectures: list[str]) -> list[dict[str, object]]:
    """Which guesses lose efficiency, win, or neither, as width and depth double, at each moment."""
    found: list[dict[str, object]] = []
    for change, words in enumerate(("width", "depth")):
        for moment in dataset["trained"].values:
            pairs = {kind: _pairs(dataset, kind, architectures, str(moment))[change] for kind in kinds}
            verdicts = {kind: one.verdict for kind, one in pairs.items()}
            named = {
                v: [f"`{kind}`" for kind in kinds if verdicts[kind] == v] for v in ("ahead", "behind", "undecided")
            }
            found.append({"what": words, "moment": MOMENT_WORDS[str(moment)], **named})
    return found


def _table(dataset: xr.Dataset, moment: str, architectures: list[str], kinds: list[str]) -> list[list[str]]:
    """Measured over seeds | predicted, in weight space and for the whole network of the base size."""
    rows = []
    for architecture, kind in itertools.product(architectures, kinds):
        own = dataset.sel(architecture=architecture, guess_kind=kind, trained=moment, size="base")
        own = own.sel(space="weight", layer=schema.ALL_LAYERS)
        cells = []
        for quantity in QUANTITIES:
            known = float(own[f"{quantity}_predicted"].mean("seed", skipna=False))
            # The bias of an unbiased guess is zero but for rounding.
            known = 0.0 if quantity == "relative_squared_bias" and abs(known) < 1e-9 else known
            cells.append(f"{_shown(own[quantity].values)} \\| {_number(known)}")
        rows.append([architecture, kind, *cells])
    return rows


def _shown(numbers: NDArray[np.float32]) -> str:
    """Mean ± half-width of the interval over seeds."""
    interval = over_seeds(numbers)
    if math.isnan(interval.mean):
        return "–"
    size = max(abs(interval.mean), interval.half if math.isfinite(interval.half) else 0.0)
    return str(interval) if PLAIN[0] <= size < PLAIN[1] else scientific(interval)


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.3g}" if value == 0 or PLAIN[0] <= abs(value) < PLAIN[1] else scientific(Interval(value, math.nan))


def _factor(value: float) -> str:
    """ "≈ 0" and "∞" where the upper or the lower efficiency is too small to be measured, "–" where both are."""
    if math.isnan(value):
        return "–"
    if value <= 0 or math.isinf(value):
        return "∞" if value > 0 else "≈ 0"
    if value < 100:
        return f"{value:.2g}" if value >= 1e-3 else scientific(Interval(value, math.nan))
    return f"{value:.0f}" if value < 1e4 else scientific(Interval(value, math.nan))


def _agreement(dataset: xr.Dataset) -> list[list[str]]:
    """How many predictions lie within the measured 95 % intervals: a row a guess, a column a quantity."""
    rows = []
    for kind in dataset["guess_kind"].values:
        own = dataset.sel(guess_kind=kind)
        rows.append([str(kind), *(_inside(own[f"{quantity}_inside"].values) for quantity in QUANTITIES)])
    return rows


def _inside(flags: NDArray[np.float32]) -> str:
    known = flags[np.isfinite(flags)]
    return f"{int(known.sum())} of {len(known)} ({100 * known.mean():.1f} %)" if len(known) else "–"


def _total(dataset: xr.Dataset) -> dict[str, float]:
    flags = np.concatenate([dataset[f"{quantity}_inside"].values.ravel() for quantity in QUANTITIES])
    known = flags[np.isfinite(flags)]
    return {"n": len(known), "share": float(known.mean()) if len(known) else math.nan}


def _reasons(dataset: xr.Dataset, name: str) -> list[tuple[str, list[str], str]]:
    """Architecture, guesses and the sentence that they have in common."""
    found: dict[tuple[str, str], list[str]] = {}
    for architecture, sentences in json.loads(dataset.attrs[name]).items():
        for kind, sentence in sentences.items():
            found.setdefault((architecture, sentence), []).append(f"`{kind}`")
    return [(architecture, kinds, sentence) for (architecture, sentence), kinds in found.items()]


def _network(own: xr.Dataset) -> list[str]:
    """Name, plan and data, parameters and layers of the three sizes, and the loss before and after training."""
    known = ARCHITECTURES[str(own["architecture"].item())]
    sizes = own["size"].values
    parameters = " / ".join(str(int(own["parameters"].sel(size=size).isel(seed=0))) for size in sizes)
    layers = " / ".join(str(int((own["layer_name"].sel(size=size) != "").sum())) for size in sizes)
    loss = own["loss"].sel(size="base")
    before, after = (over_seeds(loss.sel(trained=moment).values) for moment in own["trained"].values)
    steps = int(own["steps"].isel(size=0, seed=0))
    return [
        str(own["architecture"].item()),
        known.described,
        known.data,
        parameters,
        layers,
        f"{steps}",
        f"{before} → {after}",
    ]
