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


def page(dataset: xr.Dataset) -> str:
    """The page docs/results/averaging.md."""
    return pages.render("averaging", values(dataset))


def values(dataset: xr.Dataset) -> dict[str, object]:
    """Everything that the template names."""
    names = [str(name) for name in dataset["guess_kind"].values]
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
        "at_a_glance": _at_a_glance(dataset),
        "changes": _changes(dataset),
        "needed": [
            (space, str(trained), _needed(dataset.sel(space=space, trained=trained, layer=schema.ALL_LAYERS)))
            for space in ("weight", "activation")
            for trained in dataset["trained"].values
        ],
    }


def _verdict(dataset: xr.Dataset) -> dict[str, Interval | float | str]:
    """What the ceilings in weight space say, measured ones where none are predicted: a case and its numbers."""
    weights = dataset.sel(space="weight")
    own = weights.sel(layer=schema.ALL_LAYERS)
    if bool(own["squared_ceiling_predicted"].isnull().any()):
        return {
            "case": "measured",
            "ceiling": over_seeds(signed_root(own["squared_ceiling"].mean(["width", "trained"]))),
        }
    if float(own["squared_ceiling_predicted"].min()) > 1 - EXACT:
        if float(own["relative_squared_bias_predicted"].max()) > EXACT:
            return {"case": "scale", "least": float(own["relative_squared_bias_predicted"].min())}
        exact = float(own["relative_variance_predicted"].max()) == 0
        return {"case": "exact" if exact else "unbiased"}
    hidden = weights.isel(layer=slice(-2))
    whole, single = (_range(signed_root(part["squared_ceiling_predicted"].values)) for part in (own, hidden))
    return {"case": "biased", "whole": whole, "single": single}


def _range(cosines: NDArray[np.float64]) -> str:
    return f"{cosines.min():.2f} and {cosines.max():.2f}".replace("-", "−")


def _at_a_glance(dataset: xr.Dataset) -> list[list[str]]:
    """How many guesses the middle cosine takes, measured, a row a kind."""
    own = dataset.sel(space="weight", layer=schema.ALL_LAYERS, target=_middle(dataset))
    columns = [(trained, width) for trained in own["trained"].values for width in own["width"].values]
    return [
        [str(name), *(_measured(own.sel(guess_kind=name, trained=t, width=w)).split(" (")[0] for t, w in columns)]
        for name in own["guess_kind"].values
    ]


def _middle(dataset: xr.Dataset) -> float:
    return float(dataset["target"][dataset.sizes["target"] // 2])


def _changes(dataset: xr.Dataset) -> list[list[str]]:
    """What training and width do to the number of guesses, measured, in weight space."""
    needed = dataset["needed"].sel(space="weight", layer=schema.ALL_LAYERS, target=_middle(dataset))
    rows = []
    for name in needed["guess_kind"].values:
        own = needed.sel(guess_kind=name).transpose("width", "trained", "seed").values
        by_training = [_factor(own[w, 1], own[w, 0]) for w in range(len(own))]
        by_width = [_factor(own[-1, t], own[0, t]) for t in range(own.shape[1])]
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


def _needed(own: xr.Dataset) -> list[list[str]]:
    rows = []
    for name in own["guess_kind"].values:
        for width in own["width"].values:
            point = own.sel(guess_kind=name, width=width)
            if np.isnan(point["relative_error"].values).all():
                continue
            ceiling = over_seeds(signed_root(point["squared_ceiling"].values))
            known = float(signed_root(point["squared_ceiling_predicted"]).mean())
            measured, predicted = (
                unknown if np.isnan(number) else text
                for number, text, unknown in ((ceiling.mean, str(ceiling), "unclear"), (known, f"{known:.3f}", "–"))
            )
            cells = [str(name), str(width), f"{measured} \\| {predicted}"]
            for target in own["target"].values:
                one = point.sel(target=target)
                predicted = _count(one["needed_predicted"].values, "").split(" (")[0]
                known_count = predicted if one["needed_predicted"].notnull().any() else "–"
                cells.append(f"{_measured(one)} \\| {known_count}")
            rows.append(cells)
    return rows


def _measured(own: xr.Dataset) -> str:
    """The count over seeds, with a star where one that is printed lies beyond the largest m."""
    beyond = bool((own["extrapolated"] * np.isfinite(own["needed"])).any())
    return _count(own["needed"].values, "*" if beyond else "")


def _count(needed: NDArray[np.float64], star: str) -> str:
    """Geometric mean over seeds with its interval; "never" where no number of guesses will do."""
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
