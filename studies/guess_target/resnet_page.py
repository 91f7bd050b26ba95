"""What the page on the ResNet says, computed from its Dataset; the sentences are in resnet.md.j2."""

from __future__ import annotations

import xarray as xr

from studies.guess_target.cells import HEADS, PROJECTIONS, TARGETS
from studies.guess_target.page import NAMES as HEAD_NAMES
from studies.guess_target.page import shown
from studies.guess_target.resnet import ALL_BLOCKS, AT_OUTPUTS, AT_TAPS, BLOCKS, GUESSES, MOMENTS
from studies.kit import pages
from studies.kit.seeds import Interval, over_seeds

NAMES = {guess: HEAD_NAMES[guess] for guess in HEADS} | {
    AT_OUTPUTS: "noise at the blocks' outputs",
    AT_TAPS: "noise at every tap",
}
SHOWN = {"cosine": "Cosine", "efficiency": "Efficiency"}


def page(dataset: xr.Dataset) -> str:
    """The page docs/results/guess_target_resnet.md."""
    return pages.render("guess_target", values(dataset), "resnet.md.j2")


def values(dataset: xr.Dataset) -> dict[str, object]:
    """Everything that the template names."""
    weight = dataset.sel(space="weight")
    cosine = weight["cosine"].sel(target="global")
    at_outputs = cosine.sel(projection="activation")
    mean = at_outputs.sel(block=list(BLOCKS)).mean("block")
    return {
        "settings": dataset.attrs,
        "steps": int(dataset["steps"].max()),
        "n_seeds": dataset.sizes["seed"],
        "moments": list(MOMENTS),
        "projections": list(PROJECTIONS),
        "targets": list(TARGETS),
        "blocks": [*map(str, range(len(BLOCKS))), "all"],
        "accuracy": {m: over_seeds(dataset["accuracy"].sel(trained=m).values) for m in MOMENTS},
        "cosine": {m: {g: over_seeds(mean.sel(trained=m, guess=g).values) for g in GUESSES} for m in MOMENTS},
        "lead": {m: _difference(mean.sel(trained=m), "mlp head") for m in MOMENTS},
        "leads": [[NAMES[g], *(shown(_difference(mean.sel(trained=m), g)) for m in MOMENTS)] for g in HEADS],
        "depth": _depth(at_outputs.sel(trained=MOMENTS[-1], guess="mlp head")),
        "ends": _ends(at_outputs.sel(trained=MOMENTS[-1])),
        "counts": _counts(cosine),
        "significant": {m: _significant(cosine.sel(trained=m), "head") for m in MOMENTS},
        "frozen": {m: _significant(cosine.sel(trained=m), "frozen") for m in MOMENTS},
        "tables": [(title, _tables(weight[name])) for name, title in SHOWN.items()],
        "summary": _summary(weight["cosine"]),
    }


def _ends(cosine: xr.DataArray) -> list[tuple[str, Interval, Interval]]:
    """The first and the last block: the cosine of a trained MLP head and that of noise at the blocks' outputs."""
    ends = []
    for number in (0, len(BLOCKS) - 1):
        head, noise = (over_seeds(cosine.sel(block=BLOCKS[number], guess=g).values) for g in ("mlp head", AT_OUTPUTS))
        ends.append((str(number), head, noise))
    return ends


def _depth(cosine: xr.DataArray) -> Interval:
    """The mean cosine in the last two blocks minus that in the ones before, paired by seed."""
    last, before = (cosine.sel(block=list(part)).mean("block") for part in (BLOCKS[-2:], BLOCKS[:-2]))
    return over_seeds(last.values - before.values)


def _difference(cosine: xr.DataArray, guess: str) -> Interval:
    """A guess's cosine minus that of noise at the blocks' outputs, paired by seed."""
    return over_seeds(cosine.sel(guess=guess).values - cosine.sel(guess=AT_OUTPUTS).values)


def _sides(cosine: xr.DataArray, guess: str) -> tuple[int, int]:
    """At how many blocks the whole interval of the difference is above zero, and at how many below."""
    differences = [_difference(cosine.sel(block=block), guess) for block in BLOCKS]
    return sum(d.low > 0 for d in differences), sum(d.high < 0 for d in differences)


def _counts(cosine: xr.DataArray) -> list[list[str]]:
    """A row for each head: blocks where it is above and below noise, for each moment and space of the projection."""
    rows = []
    for guess in HEADS:
        sides = [_sides(cosine.sel(trained=m, projection=p), guess) for m in MOMENTS for p in PROJECTIONS]
        rows.append([NAMES[guess], *(f"{above} / {below}" for above, below in sides)])
    return rows


def _significant(cosine: xr.DataArray, state: str) -> dict[str, int]:
    """Of trained or of frozen heads in activation space: in how many of all cases above noise, and below."""
    guesses = [guess for guess in HEADS if guess.endswith(state)]
    sides = [_sides(cosine.sel(projection="activation"), guess) for guess in guesses]
    above, below = (sum(side) for side in zip(*sides, strict=True))
    return {"above": above, "below": below, "of": len(guesses) * len(BLOCKS)}


def _tables(values: xr.DataArray) -> list[tuple[str, list[list[str]]]]:
    """A table for each moment, in activation space for the global target: a row a guess, a column a block."""
    chosen = values.sel(target="global", projection="activation")
    tables = []
    for moment in MOMENTS:
        at = chosen.sel(trained=moment)
        rows = [
            [NAMES[guess], *(shown(over_seeds(at.sel(guess=guess, block=b).values)) for b in (*BLOCKS, ALL_BLOCKS))]
            for guess in GUESSES
        ]
        tables.append((moment, rows))
    return tables


def _summary(cosine: xr.DataArray) -> list[list[str]]:
    """Means over the blocks: a row a guess, a column a moment, target and space of the projection."""
    whole, rows = cosine.sel(block=list(BLOCKS)).mean("block"), []
    for guess in GUESSES:
        cells = [NAMES[guess]]
        for moment in MOMENTS:
            for target in TARGETS:
                for projection in PROJECTIONS:
                    at = whole.sel(trained=moment, target=target, projection=projection, guess=guess)
                    cells.append("–" if bool(at.isnull().all()) else shown(over_seeds(at.values)))
        rows.append(cells)
    return rows
