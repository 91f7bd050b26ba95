"""What the page of `studies.binary` says, computed from its Dataset; the sentences are in page.md.j2."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fganalysis.results import schema
from studies.binary.cells import LAWS, UNBIASED
from studies.kit import pages
from studies.kit.markdown import listed
from studies.kit.seeds import over_seeds

Array = NDArray[np.float64]
NAMES = {
    "score_function": "score function",
    "score_function_with_baseline": "score function, baseline",
    "arm": "ARM",
    "straight_through": "straight-through",
    "gumbel_straight_through_1": "Gumbel straight-through, τ = 1",
    "concrete_1": "concrete, τ = 1",
    "concrete_0.1": "concrete, τ = 0.1",
    "path_sample_analytic": "path sample-analytic",
}
FLIPS, CHAIN_RULE = "path_sample_analytic", "straight_through"
LARGE = 3.0  # A z that is counted.
SMALL = 0.1  # Of the gradient: a bias that the page calls small.


def page(dataset: xr.Dataset) -> str:
    """The page docs/results/binary.md."""
    return pages.render("binary", values(dataset))


def values(dataset: xr.Dataset) -> dict[str, object]:
    """Everything that the template names."""
    names = [str(name) for name in dataset["estimator"].values]
    epochs = [int(number) for number in dataset["epochs"].values]
    layers = [str(layer) for layer in dataset["layer"].values]
    hidden = [layer for layer in layers if layer.startswith("hidden")]
    claims = _claims(dataset, hidden[:-1])
    return {
        "settings": dataset.attrs,
        "units": "-".join([str(dataset.attrs["width"])] * dataset.attrs["depth"]),
        "epochs": epochs,
        "moments": [after(number) for number in epochs],
        "n_seeds": dataset.sizes["seed"],
        "hidden": hidden,
        "words": [words(layer) for layer in hidden],
        "exactly": [NAMES[name] for name in names if name in LAWS],
        "averaged": [int(m) for m in dataset["averaged"].values],
        "networks": _networks(dataset),
        "first": hidden[0],
        "bias": _quantity(dataset, "relative_bias", hidden[0]),
        "deviation": _quantity(dataset, "relative_variance", hidden[0]),
        "by_layer": _by_layer(dataset, hidden, epochs[-1]),
        "winners": _winners(dataset, [*hidden, schema.ALL_LAYERS]),
        "leads": sum(bool(claim["first"]) for claim in claims),
        "overtaken": _overtaken(dataset, [*hidden[:-1], schema.ALL_LAYERS]),
        "claims": claims,
        "against": _against(dataset, hidden),
        "crossings": [row[2] for row in _overtaken(dataset, hidden[:1])],
        "agreement": _agreement(dataset),
    }


def words(layer: str) -> str:
    """A layer in a reader's words."""
    return "all layers" if layer == schema.ALL_LAYERS else layer.replace("hidden_", "hidden layer ")


def parts(dataset: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Relative bias and variance: exact where they follow from sums over states, else measured."""
    bias, variance = (
        dataset[f"{name}_predicted"].fillna(dataset[name]) for name in ("relative_bias", "relative_variance")
    )
    return bias, variance


def error_of_mean(dataset: xr.Dataset, averaged: Array) -> xr.DataArray:
    """√(bias² + variance/M) over the norm of the gradient, with dimension ``averaged``."""
    bias, variance = parts(dataset)
    m = xr.DataArray(averaged, {"averaged": averaged}, "averaged")
    found: xr.DataArray = (bias**2 + variance / m) ** 0.5
    return found


def logarithms(values: xr.DataArray) -> xr.DataArray:
    """The same with logarithms."""
    return values.copy(data=np.log(values.values))


def factor(values: Array) -> str:
    """Geometric mean over networks, with its 95 % interval: 12 (8.1 to 18). Zeros have none: then the range."""
    if (values <= 0).any():
        return f"{rounded(values.min())} to {rounded(values.max())}"
    logs = over_seeds(np.log(values))
    mean, low, high = (rounded(np.exp(one)) for one in (logs.mean, logs.low, logs.high))
    return f"{mean} ({low} to {high})"


def rounded(number: float) -> str:
    """Two digits, without exponents for large numbers: 12 000."""
    if not 100 <= number < 1e12:
        return f"{number:.2g}"
    return f"{float(f'{number:.2g}'):,.0f}".replace(",", " ")


def after(epochs: int) -> str:
    """How long a network was trained."""
    return f"{epochs} epoch" + ("" if epochs == 1 else "s")


def _networks(dataset: xr.Dataset) -> list[list[str]]:
    rows = []
    for number in dataset["epochs"].values:
        own = dataset.sel(epochs=number)
        norm = own["gradient_norm"].isel(estimator=0).sel(layer=schema.ALL_LAYERS)
        rows.append([str(number), str(over_seeds(own["loss"])), str(over_seeds(own["accuracy"])), factor(norm.values)])
    return rows


def _quantity(dataset: xr.Dataset, name: str, layer: str) -> list[list[str]]:
    """A row for each estimator: measured in the first network with its interval, and exact, at each epoch."""
    rows = []
    for estimator in dataset["estimator"].values:
        cells = [NAMES[str(estimator)]]
        for number in dataset["epochs"].values:
            own = dataset.sel(estimator=estimator, epochs=number, layer=layer).isel(seed=0)
            measured, low, high, exact = (
                float(own[name + suffix]) for suffix in ("", schema.LOW, schema.HIGH, "_predicted")
            )
            cells.append(f"{measured:.3g} ({low:.3g} to {high:.3g})")
            zero = name == "relative_bias" and str(estimator) in UNBIASED
            cells.append("0" if zero else "–" if np.isnan(exact) else f"{exact:.3g}")
        rows.append(cells)
    return rows


def _by_layer(dataset: xr.Dataset, hidden: list[str], epochs: int) -> list[list[str]]:
    """Relative bias and standard deviation of a draw, geometric means over networks, by layer."""
    bias, variance = parts(dataset.sel(epochs=epochs))
    rows = []
    for estimator in dataset["estimator"].values:
        cells = [NAMES[str(estimator)]]
        for layer in hidden:
            own_bias, own_variance = (part.sel(estimator=estimator, layer=layer).values for part in (bias, variance))
            exactly_zero = (own_bias < 1e-9).all() or str(estimator) in UNBIASED
            cells += ["0" if exactly_zero else factor(own_bias), factor(np.sqrt(own_variance))]
        rows.append(cells)
    return rows


def _winners(dataset: xr.Dataset, layers: list[str]) -> list[list[str]]:
    """Which estimator has the least error for which M: a row for each epoch and layer."""
    averaged = dataset["averaged"].values.astype(float)
    errors = logarithms(error_of_mean(dataset, averaged)).mean("seed")
    rows = []
    for number in dataset["epochs"].values:
        for layer in layers:
            own = errors.sel(epochs=number, layer=layer).transpose("estimator", "averaged")
            best = [str(dataset["estimator"].values[index]) for index in own.values.argmin(0)]
            starts = [i for i, name in enumerate(best) if i == 0 or best[i - 1] != name]
            ends = [*(start - 1 for start in starts[1:]), len(best) - 1]
            ranges = [
                f"{NAMES[best[s]]}, M = {averaged[s]:.0f}" + (f" to {averaged[e]:.0f}" if e > s else "")
                for s, e in zip(starts, ends, strict=True)
            ]
            rows.append([str(number), words(layer), "; ".join(ranges)])
    return rows


def _overtaken(dataset: xr.Dataset, layers: list[str]) -> list[list[str]]:
    """The M from which the best unbiased estimator has the smaller error, (v_u − v)/b²: a row an epoch and layer."""
    bias, variance = parts(dataset)
    least = variance.sel(estimator=list(UNBIASED)).min("estimator")
    rows = []
    for number in dataset["epochs"].values:
        for layer in layers:
            cells = [str(number), words(layer)]
            for name in (FLIPS, CHAIN_RULE):
                at = {"epochs": number, "layer": layer}
                excess = (least - variance.sel(estimator=name)).sel(at).values
                m = excess / bias.sel(estimator=name).sel(at).values ** 2
                cells.append(factor(m) if (m > 1).all() else f"1 in {int((m <= 1).sum())} of {len(m)} networks")
            rows.append(cells)
    return rows


def _claims(dataset: xr.Dataset, layers: list[str]) -> list[dict[str, object]]:
    """The paper's abstract, at each epoch, in the layers below the last hidden one."""
    bias, variance = parts(dataset)
    others = [str(name) for name in dataset["estimator"].values if name not in (*UNBIASED, FLIPS, CHAIN_RULE)]
    single = error_of_mean(dataset, np.array([1.0])).isel(averaged=0)
    claims: list[dict[str, object]] = []
    for number in dataset["epochs"].values:
        at = {"epochs": number, "layer": layers}
        v, e = (logarithms(part.sel(at)).mean("layer") for part in (variance, single))
        b = logarithms(bias.sel(at).sel(estimator=[FLIPS, CHAIN_RULE])).mean("layer")
        ratio = v.sel(estimator=list(UNBIASED)).min("estimator") - v.sel(estimator=FLIPS)
        order = e.mean("seed").sortby(e.mean("seed"))
        claims.append(
            {
                "after": after(int(number)),
                "variance_ratio": factor(np.exp(ratio.values)),
                "bias": factor(np.exp(b.sel(estimator=FLIPS).values)),
                "small": bool(np.exp(b.sel(estimator=FLIPS).mean()) < SMALL),
                "bias_ratio": factor(np.exp((b.sel(estimator=CHAIN_RULE) - b.sel(estimator=FLIPS)).values)),
                "order": listed(NAMES[str(name)] for name in order["estimator"].values),
                "first": str(order["estimator"].values[0]) == FLIPS,
                "both": {FLIPS, CHAIN_RULE} == {str(name) for name in order["estimator"].values[:2]},
                "against_unbiased": bool(
                    (
                        e.sel(estimator=[FLIPS, CHAIN_RULE]).max("estimator")
                        < e.sel(estimator=list(UNBIASED)).min("estimator")
                    ).all()
                ),
                "against_relaxed": [
                    NAMES[name] for name in others if bool((e.sel(estimator=name) > e.sel(estimator=CHAIN_RULE)).all())
                ],
            }
        )
    return claims


def _against(dataset: xr.Dataset, hidden: list[str]) -> list[str]:
    """Where the largest means point away from the gradient: the cosine below zero, its mean over networks."""
    last = dataset["cosine"].isel(averaged=-1).sel(layer=hidden).mean("seed")
    found = []
    for number in dataset["epochs"].values:
        for layer in hidden:
            place = f"in {words(layer)} after {after(int(number))}"
            for name, cosine in zip(last["estimator"].values, last.sel(epochs=number, layer=layer).values, strict=True):
                if cosine < 0:
                    found.append(f"{NAMES[str(name)]} {place} ({cosine:.2f})")
    return [text.replace("(-", "(−") for text in found]


def _agreement(dataset: xr.Dataset) -> dict[str, object]:
    """How measured and exact bias and variance agree, and measured errors of means with the law of M."""
    z = np.concatenate([dataset[f"{name}_z"].values.ravel() for name in ("squared_bias", "variance")])
    z = z[np.isfinite(z)]
    law = error_of_mean(dataset, dataset["averaged"].values.astype(float))
    exact = dataset["relative_bias_predicted"].notnull()
    known = dataset["error_low"].notnull() & exact
    within = ((dataset["error_low"] <= law) & (law <= dataset["error_high"])).where(known)
    return {
        "comparisons": len(z),
        "large": int((abs(z) > LARGE).sum()),
        "expected": f"{0.0027 * len(z):.1f}",
        "largest": float(abs(z).max()),
        "means": int(known.sum()),
        "within": float(within.mean()),
    }
