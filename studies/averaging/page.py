"""The page of `studies.averaging`, from its Dataset alone."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis.results import schema
from studies.averaging.agreement import EXACT, agreement, draws_nothing
from studies.averaging.kinds import GUESSES, family_of, switches
from studies.kit.markdown import listed, table
from studies.kit.seeds import over_seeds
from studies.kit.signed import signed_root


def page(dataset: xr.Dataset) -> str:
    """docs/results/averaging.md."""
    attributes, largest = dataset.attrs, int(dataset["averaged"][-1])
    lines = [
        "# How does the error fall with the guesses that are averaged, and how many reach a given cosine?",
        "",
        "Written by `python -m studies.averaging` from its Dataset: do not edit. MLPs 40-w-w-w-10 without biases on "
        f"MNIST-1D, w = {listed(dataset['width'].values)}, at initialisation and after {attributes['epochs']} epochs "
        f"of backpropagation (AdamW, batch 512); gradients of one batch of {attributes['batch']} examples. "
        f"{dataset.sizes['seed']} seeds of weights and noise; {attributes['guesses']} guesses of each estimator, "
        f"network and step, cut into groups of m up to {largest}. All layers together; every layer is in the Dataset.",
        "",
        *_kinds(dataset),
        "Intervals are 95 % over seeds, of logarithms where the number is an error or a count of guesses.",
        "",
        "## Error against the number of guesses",
        "",
        "![Squared error over m](averaging_error.png)",
        "",
        "Weight space. Squared error of the mean of m guesses over the squared gradient norm; lines are bias² + V/m as "
        "predicted, flat where the bias is reached. An estimate is worse than none at all above 1. The error of "
        "`backpropagation` is zero and has no place on the axis.",
        "",
        *agreement(dataset),
        "## Cosine against the number of guesses",
        "",
        "![Cosine over m](averaging_cosine.png)",
        "",
        "Weight space. Lines are √ρ²_m as predicted, drawn on beyond the largest m that was measured; the level that "
        "a line ends at is the cosine of the mean guess.",
        "",
        "## How many guesses does a cosine take?",
        "",
        *_verdicts(dataset),
    ]
    lines += _at_a_glance(dataset)
    lines += _changes(dataset)
    for space in ("weight", "activation"):
        for trained in dataset["trained"].values:
            own = dataset.sel(space=space, trained=trained, layer=schema.ALL_LAYERS)
            lines += [f"### {space} space, {trained}", "", _needed(own), ""]
    lines += [
        "Measured (95 % interval) | predicted. `*`: beyond the largest group, extrapolated from ceiling, variance and "
        "mean as measured. `never`: the ceiling is below in every seed; otherwise the seeds are counted. `–`: no "
        "closed form.",
    ]
    return "\n".join(lines) + "\n"


def _kinds(dataset: xr.Dataset) -> list[str]:
    """What every kind perturbs and shares, and which of them draw nothing."""
    names = [str(name) for name in dataset["guess_kind"].values]
    rows = [[name, family_of(name), *switches(GUESSES[name])] for name in names]
    still = [f"`{name}`" for name in names if draws_nothing(dataset, name)]
    lines = [
        "The space that a guess is made in, the noise that examples share, whose slope scales the direction, and the "
        "passes that layers share. Guesses of activation gradients make guesses of weight gradients too. A guess is no "
        "unit of cost: it takes as many passes as it has directions or steps, and with a pass each one a layer.",
        "",
        table(["guess", "family", "space", "noise", "slope", "layers"], rows),
        "",
    ]
    if still:
        lines += [
            f"{listed(still)} draw nothing when they guess (matrices and heads are drawn once, from the network's "
            "seed): every guess is the same, so that one is measured, without sampling error, and averaging changes "
            "nothing.",
            "",
        ]
    return lines


def _verdicts(dataset: xr.Dataset) -> list[str]:
    """One sentence an estimator, from the ceilings in weight space, measured ones where none are predicted."""
    verdicts = [f"- {name}: {_verdict(dataset.sel(guess_kind=name))}." for name in dataset["guess_kind"].values]
    note = (
        "Feedback and local losses take the error at the output tap as it is: their cosine over all layers is to a "
        "good part that tap's, and what they make of the other layers is in those alone."
    )
    return [*verdicts, "", note, ""]


def _verdict(dataset: xr.Dataset) -> str:
    weights = dataset.sel(space="weight")
    own = weights.sel(layer=schema.ALL_LAYERS)
    if bool(own["squared_ceiling_predicted"].isnull().any()):
        measured = over_seeds(signed_root(own["squared_ceiling"].mean(["width", "trained"])))
        return f"no closed form; as measured the cosine of the mean is {measured}, over widths and steps"
    if float(own["squared_ceiling_predicted"].min()) > 1 - EXACT:
        bias = float(own["relative_squared_bias_predicted"].max())
        if bias > EXACT:
            least = f"{float(own['relative_squared_bias_predicted'].min()):.3g}"
            return f"biased in scale alone, so that any cosine can be bought, but no squared error below {least}"
        if float(own["relative_variance_predicted"].max()) == 0:
            return "the gradient itself"
        return "exactly unbiased, so that any cosine can be bought"
    hidden = weights.isel(layer=slice(-2))
    ranges = [_range(signed_root(part["squared_ceiling_predicted"].values)) for part in (own, hidden)]
    return (
        f"the cosine of the mean lies between {ranges[0]} over widths, steps and seeds, in single hidden "
        f"layers between {ranges[1]}"
    )


def _range(cosines: NDArray[np.float64]) -> str:
    return f"{cosines.min():.2f} and {cosines.max():.2f}".replace("-", "−")


def _at_a_glance(dataset: xr.Dataset) -> list[str]:
    """How many guesses the middle cosine takes, measured, a row a kind."""
    target = _middle(dataset)
    own = dataset.sel(space="weight", layer=schema.ALL_LAYERS, target=target)
    columns = [(trained, width) for trained in own["trained"].values for width in own["width"].values]
    rows = [
        [str(name), *(_measured(own.sel(guess_kind=name, trained=t, width=w)).split(" (")[0] for t, w in columns)]
        for name in own["guess_kind"].values
    ]
    return [
        f"Guesses for a cosine of {target:g}, measured, weight space (intervals and predictions follow below):",
        "",
        table(["guess", *(f"{trained}, width {width}" for trained, width in columns)], rows),
        "",
    ]


def _middle(dataset: xr.Dataset) -> float:
    return float(dataset["target"][dataset.sizes["target"] // 2])


def _changes(dataset: xr.Dataset) -> list[str]:
    """What training and width do to the number of guesses, measured, in weight space."""
    target = _middle(dataset)
    needed = dataset["needed"].sel(space="weight", layer=schema.ALL_LAYERS, target=target)
    rows = []
    for name in needed["guess_kind"].values:
        own = needed.sel(guess_kind=name).transpose("width", "trained", "seed").values
        by_training = [_factor(own[w, 1], own[w, 0]) for w in range(len(own))]
        by_width = [_factor(own[-1, t], own[0, t]) for t in range(own.shape[1])]
        rows.append([str(name), *by_training, *by_width])
    widths, steps = needed["width"].values, [str(step) for step in needed["trained"].values]
    header = ["guess", *(f"{steps[1]} / {steps[0]}, width {width}" for width in widths)]
    header += [f"width {widths[-1]} / {widths[0]}, {step}" for step in steps]
    return [
        f"By which factor training and width change the number of guesses for a cosine of {target:g}, measured, weight "
        "space:",
        "",
        table(header, rows),
        "",
    ]


def _factor(counts: NDArray[np.float64], others: NDArray[np.float64]) -> str:
    """Geometric mean over seeds of the ratio, where every count is known and finite."""
    if not (np.isfinite(counts).all() and np.isfinite(others).all()):
        return "–"
    logs = over_seeds(np.log(counts / others))
    if not logs.half > 1e-9:
        return f"{np.exp(logs.mean):.2g}"
    return f"{np.exp(logs.mean):.2g} ({np.exp(logs.low):.2g} – {np.exp(logs.high):.2g})"


def _needed(own: xr.Dataset) -> str:
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
    return table(["guess", "width", "ceiling", *(f"cosine {target:g}" for target in own["target"].values)], rows)


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
