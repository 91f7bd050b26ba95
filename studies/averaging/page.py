"""What the page of `studies.averaging` says, computed from its Dataset; the sentences are in page.md.j2."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis.results import schema
from studies.averaging.agreement import EXACT, agreement, draws_nothing
from studies.averaging.kinds import GUESSES, family_of, switches
from studies.kit import pages
from studies.kit.seeds import Interval, over_seeds
from studies.kit.signed import signed_root

EXAMPLES = ("weight", "activity")  # The estimators that the page's first sentence names.


def page(dataset: xr.Dataset) -> str:
    """The page docs/results/averaging.md."""
    return pages.render("averaging", values(dataset))


def values(dataset: xr.Dataset) -> dict[str, object]:
    """Everything that the template names."""
    names = [str(name) for name in dataset["guess_kind"].values]
    at_a_glance = _at_a_glance(dataset)
    return {
        "settings": dataset.attrs,
        "largest": int(dataset["averaged"][-1]),
        "widths": [int(width) for width in dataset["width"].values],
        "steps": [str(step) for step in dataset["trained"].values],
        "targets": [float(target) for target in dataset["target"].values],
        "target": _middle(dataset),
        "n_seeds": dataset.sizes["seed"],
        "kinds": [[name, family_of(name), *switches(GUESSES[name])] for name in names],
        "without_draws": [f"`{name}`" for name in names if draws_nothing(dataset, name)],
        "agreement": agreement(dataset),
        "verdicts": [(name, _verdict(dataset.sel(guess_kind=name))) for name in names],
        "at_a_glance": at_a_glance,
        "examples": [row for row in at_a_glance if row[0] in EXAMPLES] or at_a_glance[:1],
        "changes": _changes(dataset),
        "needed": [
            (space, str(trained), _needed(dataset.sel(space=space, trained=trained, layer=schema.ALL_LAYERS)))
            for space in ("weight", "activation")
            for trained in dataset["trained"].values
        ],
    }


def _verdict(dataset: xr.Dataset) -> dict[str, Interval | float | str]:
    """Which cosines averaging reaches in weight space: a case and its numbers.

    The case follows from the predicted ceilings, and from the measured ones where there is no prediction.
    """
    weights = dataset.sel(space="weight")
    together = weights.sel(layer=schema.ALL_LAYERS)
    if bool(together["squared_ceiling_predicted"].isnull().any()):
        return {
            "case": "measured",
            "ceiling": over_seeds(signed_root(together["squared_ceiling"].mean(["width", "trained"]))),
        }
    if float(together["squared_ceiling_predicted"].min()) > 1 - EXACT:
        if float(together["relative_squared_bias_predicted"].max()) > EXACT:
            return {"case": "scale", "least": float(together["relative_squared_bias_predicted"].min())}
        exact = float(together["relative_variance_predicted"].max()) == 0
        return {"case": "exact" if exact else "unbiased"}
    hidden = weights.isel(layer=slice(-2))
    whole, single = (_range(signed_root(part["squared_ceiling_predicted"].values)) for part in (together, hidden))
    return {"case": "biased", "whole": whole, "single": single}


def _range(cosines: NDArray[np.float64]) -> str:
    return f"{cosines.min():.2f} and {cosines.max():.2f}".replace("-", "−")


def _at_a_glance(dataset: xr.Dataset) -> list[list[str]]:
    """The measured number of guesses for the middle cosine: a row for each kind of guess."""
    middle = dataset.sel(space="weight", layer=schema.ALL_LAYERS, target=_middle(dataset))
    columns = [(trained, width) for trained in middle["trained"].values for width in middle["width"].values]
    return [
        [str(name), *(_measured(middle.sel(guess_kind=name, trained=t, width=w)).split(" (")[0] for t, w in columns)]
        for name in middle["guess_kind"].values
    ]


def _middle(dataset: xr.Dataset) -> float:
    """The middle one of the cosines to reach."""
    return float(dataset["target"][dataset.sizes["target"] // 2])


def _changes(dataset: xr.Dataset) -> list[list[str]]:
    """The factors by which training and width change the measured number of guesses in weight space."""
    needed = dataset["needed"].sel(space="weight", layer=schema.ALL_LAYERS, target=_middle(dataset))
    rows = []
    for name in needed["guess_kind"].values:
        counts = needed.sel(guess_kind=name).transpose("width", "trained", "seed").values
        by_training = [_factor(counts[w, 1], counts[w, 0]) for w in range(len(counts))]
        by_width = [_factor(counts[-1, t], counts[0, t]) for t in range(counts.shape[1])]
        rows.append([str(name), *by_training, *by_width])
    return rows


def _factor(counts: NDArray[np.float64], others: NDArray[np.float64]) -> str:
    """Geometric mean over seeds of the ratio, where every count is known and finite."""
    if not (np.isfinite(counts).all() and np.isfinite(others).all()):
        return "–"
    logs = over_seeds(np.log(counts / others))
    if not logs.half > 1e-9:
        return f"{np.exp(logs.mean):.2g}"
    return f"{np.exp(logs.mean):.2g} ({np.exp(logs.low):.2g} – {np.exp(logs.high):.2g})"


def _needed(together: xr.Dataset) -> list[list[str]]:
    """Ceilings and numbers of guesses, measured and predicted: a row for each kind of guess and width."""
    rows = []
    for name in together["guess_kind"].values:
        for width in together["width"].values:
            point = together.sel(guess_kind=name, width=width)
            if np.isnan(point["relative_error"].values).all():
                continue
            ceiling = over_seeds(signed_root(point["squared_ceiling"].values))
            known = float(signed_root(point["squared_ceiling_predicted"]).mean())
            measured, predicted = (
                unknown if np.isnan(number) else text
                for number, text, unknown in ((ceiling.mean, str(ceiling), "unclear"), (known, f"{known:.3f}", "–"))
            )
            cells = [str(name), str(width), f"{measured} \\| {predicted}"]
            for target in together["target"].values:
                at_target = point.sel(target=target)
                predicted = _count(at_target["needed_predicted"].values, "").split(" (")[0]
                known_count = predicted if at_target["needed_predicted"].notnull().any() else "–"
                cells.append(f"{_measured(at_target)} \\| {known_count}")
            rows.append(cells)
    return rows


def _measured(point: xr.Dataset) -> str:
    """The measured number of guesses over seeds, with a star if a seed's number lies beyond the largest m."""
    beyond = bool((point["extrapolated"] * np.isfinite(point["needed"])).any())
    return _count(point["needed"].values, "*" if beyond else "")


def _count(needed: NDArray[np.float64], star: str) -> str:
    """Geometric mean over seeds with its interval; "never" where no number of guesses reaches the cosine."""
    known = needed[~np.isnan(needed)]
    never = int(np.isinf(known).sum())
    if not len(known):
        return "unclear"
    if never == len(needed):
        return "never"
    if never or len(known) < len(needed):
        finite = known[np.isfinite(known)]
        words = [f"never in {never}"] if never else []
        words += [f"unclear in {len(needed) - len(known)}"] if len(known) < len(needed) else []
        typical = f"{_rounded(float(np.exp(np.log(finite).mean())))}{star}; " if len(finite) else ""
        return f"{typical}{' and '.join(words)} of {len(needed)} seeds"
    logs = over_seeds(np.log(known))
    if not logs.half > 1e-9:
        return _rounded(float(np.exp(logs.mean))) + star
    low, high = (_rounded(float(np.exp(end))) for end in (logs.low, logs.high))
    return f"{_rounded(float(np.exp(logs.mean)))}{star} ({low} – {high})"


def _rounded(number: float) -> str:
    """Three digits, thousands set apart."""
    if number < 100:
        return f"{number:.3g}"
    power = 10 ** (int(np.log10(number)) - 2)
    return f"{round(number / power) * power:,}".replace(",", " ")
