"""Answer (a) of `studies.subspaces`: is the high overlap one of gradients or of training?

Every number and every verdict is read from the collected Dataset. Intervals are 95 % over seeds. A verdict says "more"
or "less" only where the interval of a difference, taken seed by seed, leaves zero out.
"""

from __future__ import annotations

import xarray as xr

from studies.kit.markdown import capital, listed, table, verb
from studies.kit.seeds import Interval, over_seeds
from studies.subspaces.cells import METHODS
from studies.subspaces.figures import NAMES
from studies.subspaces.picks import Answer, all_widths, hidden_layers, trained, within

# Wang et al. 2025, Figure 1: least and largest overlap, not squared, in layers 1 and 2 after training by W̃⊥.
PAPER_OVERLAP = {128: ((0.91, 0.91), (0.84, 0.84)), 512: ((0.93, 0.95), (0.93, 0.95))}


def overlaps(collected: xr.Dataset, k: int) -> Answer:
    layers, widths = hidden_layers(collected)[:-1], all_widths(collected)
    start = collected.sel(layer=layers, moment="last", trained_by="initialisation").mean("layer")
    rows = []
    for width in widths:
        random = [_random(start.sel(width=width), name) for name in ("random_overlap", "random_overlap_in_range")]
        rows.append([str(width), *random, *(str(over_seeds(_overlap(collected, width, m))) for m in METHODS)])
    changes = {method: _changes(collected, method, "initialisation") for method in METHODS[1:]}
    risen = {method: [w for w, c in zip(widths, own, strict=True) if c.low > 0] for method, own in changes.items()}
    against = _changes(collected, "orthogonal", "backpropagation")
    equal = collected[["equal_step", "equal_loss", "equal_overlap"]].sel(layer=layers).mean("layer")
    own, other = (equal.sel(trained_by=method) for method in ("orthogonal", "backpropagation"))
    lead = [over_seeds((own - other)["equal_overlap"].sel(width=w)) for w in widths]
    level = [
        [
            str(w),
            *(str(over_seeds(one["equal_step"].sel(width=w))) for one in (own, other)),
            *(str(over_seeds(one["equal_loss"].sel(width=w))) for one in (own, other)),
            *(str(over_seeds(one["equal_overlap"].sel(width=w))) for one in (own, other)),
            str(change),
            verb(change, "more", "less", "not told apart"),
        ]
        for w, change in zip(widths, lead, strict=True)
    ]
    losses = [over_seeds(trained(collected, "loss", widths[-1], m)) for m in ("orthogonal", "backpropagation")]
    whose = "Of neither, within these intervals"
    if 2 * len(risen["backpropagation"]) > len(widths):
        whose = "Of training, not of training with that estimator"
    elif 2 * len(risen["orthogonal"]) > len(widths):
        whose = "Of training with that estimator"
    before, after = (over_seeds(_overlap(collected, widths[-1], method)) for method in METHODS[:2])
    short = (
        f"{whose}. Backpropagation alone raises o² at {_at(risen['backpropagation'])} (width {widths[-1]}: from "
        f"{before} to {after}), W̃⊥ raises it at {_at(risen['orthogonal'])}. Where backpropagation has the loss that W̃⊥ "
        f"ends with, W̃⊥'s o² is {_sides(widths, lead)}. After their last steps it is {_sides(widths, against)}, but "
        f"there the losses differ: {losses[0]} and {losses[1]} at width {widths[-1]}."
    )
    over_random = (start["overlap"] / start["random_overlap_in_range"]).mean("seed").values
    lines = [
        "## (a) Is the high overlap a property of gradients, or of training with that estimator?",
        "",
        "![overlap over width](subspaces_overlap_by_width.png)",
        "",
        f"o² at k = {k}, mean of layers {listed(layers)}, after the last step of each training:",
        "",
        table(
            ["width", "random subspace", "random in J's row space, at initialisation", *(NAMES[m] for m in METHODS)],
            rows,
        ),
        "",
        "Random values are exact; the spread is the standard deviation over random subspaces, of one example.",
        "",
        f"- At initialisation o² is {over_random.min():.1f} to {over_random.max():.1f} times what a random subspace of "
        "the Jacobian's row space holds.",
        *(
            f"- {capital(NAMES[method])}, o² changes by {listed(own)} over these widths."
            for method, own in changes.items()
        ),
        f"- W̃⊥ less backpropagation, not at equal loss: {listed(against)}.",
        "",
        "The same at equal training loss: W̃⊥ after its last step, backpropagation at the kept step whose loss is "
        "nearest to that:",
        "",
        table(
            [
                "width",
                *(f"{what}, {who}" for what in ("step", "loss", "o²") for who in ("W̃⊥", "backpropagation")),
                "difference of o²",
                "W̃⊥ has",
            ],
            level,
        ),
    ]
    printed = [
        [str(width), layer, f"{low}" if low == high else f"{low} to {high}", str(own), within(own, low, high)]
        for width, ranges in PAPER_OVERLAP.items()
        if width in widths and k == 10
        for layer, (low, high) in zip(layers, ranges, strict=True)
        for own in [over_seeds(trained(collected, "overlap_root", width, "orthogonal").sel(layer=layer))]
    ]
    if printed:
        head = ["width", "layer", "seed paper", "here", "within the interval"]
        lines += [
            "",
            "o, not squared, after training by W̃⊥, beside Figure 1 of the seed paper:",
            "",
            table(head, printed),
        ]
    return short, lines


def _random(start: xr.Dataset, name: str) -> str:
    return f"{over_seeds(start[name])} (spread {over_seeds(start[name + '_spread']).mean:.2g})"


def _sides(widths: list[int], changes: list[Interval]) -> str:
    """At which widths a difference is above zero, below it, and neither."""
    words = ("higher", "lower", "not told apart")
    said = [verb(change, *words) for change in changes]
    found = {word: [w for w, own in zip(widths, said, strict=True) if own == word] for word in words}
    return listed(f"{word} at {_at(own)}" for word, own in found.items() if own)


def _overlap(collected: xr.Dataset, width: int, method: str) -> xr.DataArray:
    return trained(collected, "overlap", width, method).sel(layer=hidden_layers(collected)[:-1]).mean("layer")


def _changes(collected: xr.Dataset, method: str, other: str) -> list[Interval]:
    return [over_seeds(_overlap(collected, w, method) - _overlap(collected, w, other)) for w in all_widths(collected)]


def _at(widths: list[int]) -> str:
    return f"width{'s' * (len(widths) > 1)} {listed(widths)}" if widths else "no width"
