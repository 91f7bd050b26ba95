"""What the page of `studies.finite_difference` says, computed from its Dataset; the sentences are in page.md.j2."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from studies.kit import pages
from studies.kit.markdown import scientific
from studies.kit.seeds import Interval, over_seeds

NAMES = {"tanh": "tanh", "relu": "ReLU"}
LOW, HIGH = 2.0**-12, 2.0**-5  # The range of ε in which the order of the error is fitted.
ORDERS = {"one-sided": "1", "central": "2"}  # The order for a smooth loss.


def page(dataset: xr.Dataset) -> str:
    """The page docs/results/finite_difference.md."""
    return pages.render("finite_difference", values(dataset))


def values(dataset: xr.Dataset) -> dict[str, object]:
    """Everything that the template names."""
    return {
        "settings": dataset.attrs,
        "loss": over_seeds(dataset["loss"].isel(activation=0)),
        "networks": [NAMES[str(name)] for name in dataset["activation"].values],
        "n_seeds": dataset.sizes["seed"],
        "refused": _refused(dataset),
        "best": _best(dataset),
        "one_against_two": _one_against_two(dataset),
        "limits": [_power(np.array([limit])) for limit in (LOW, HIGH)],
        "orders": _orders(dataset),
        "relu": _relu(dataset),
        "rounding": _rounding(dataset),
        "agreement": _agreement(dataset),
    }


def _refused(dataset: xr.Dataset) -> str | None:
    """The largest step in float32 that the estimator refused; None if it refused no step."""
    tried = dataset["slope_error"].sel(dtype="float32")
    tried = tried.where(dataset["epsilon"] >= 2.0 ** dataset.attrs["smallest_float32"], drop=True)
    refused = tried.isnull().any(["seed", "scheme", "activation"])
    return _power(np.array([float(tried["epsilon"][refused.values].max())])) if bool(refused.any()) else None


def _best(dataset: xr.Dataset) -> list[list[str]]:
    """The best ε and the error there, measured and predicted: a row for each network, type and difference."""
    rows = []
    for activation, dtype, scheme, case in _cases(dataset):
        measured, predicted = _power(case["best_epsilon"].values), _power(case["best_epsilon_predicted"].values)
        errors = [scientific(over_seeds(case[f"least_error{suffix}"])) for suffix in ("", "_predicted")]
        rows.append([NAMES[activation], dtype, scheme, measured, predicted, *errors])
    return rows


def _one_against_two(dataset: xr.Dataset) -> list[tuple[str, str, Interval]]:
    """The smallest error of the one-sided difference over that of the central difference, by network and type."""
    ratios = []
    for activation in dataset["activation"].values:
        for dtype in dataset["dtype"].values:
            least = dataset["least_error"].sel(activation=activation, dtype=dtype)
            ratio = over_seeds(least.sel(scheme="one-sided").values / least.sel(scheme="central").values)
            ratios.append((NAMES[str(activation)], str(dtype), ratio))
    return ratios


def _orders(dataset: xr.Dataset) -> list[list[str]]:
    """Slopes of log error against log ε in double precision, away from both rounding and large steps."""
    part = dataset.sel(dtype="float64").where((dataset["epsilon"] >= LOW) & (dataset["epsilon"] <= HIGH), drop=True)
    x = np.log(part["epsilon"].values)
    rows = []
    for activation in part["activation"].values:
        for scheme in part["scheme"].values:
            errors = part.sel(activation=activation, scheme=scheme)
            orders = []
            for name in ("slope_error", "slope_error_predicted"):
                logs = np.log(errors[name].transpose("epsilon", "seed").to_numpy())
                orders.append(str(over_seeds(np.polyfit(x, logs, 1)[0])))
            rows.append([NAMES[str(activation)], str(scheme), *orders, ORDERS[str(scheme)]])
    return rows


def _relu(dataset: xr.Dataset) -> dict[str, str]:
    """The nearest kink and the best central ε of the ReLU network, where there is one."""
    if "relu" not in dataset["activation"].values:
        return {}
    best = dataset["best_epsilon"].sel(activation="relu", scheme="central")
    by_dtype = {dtype: _power(best.sel(dtype=dtype).values) for dtype in ("float32", "float64")}
    return by_dtype | {"kinks": _power(dataset["nearest_kink"].sel(activation="relu").values)}


def _rounding(dataset: xr.Dataset) -> list[list[str]]:
    """The rounding error of a loss, its lower limit and their ratio: a row for each network."""
    rows = []
    for activation in dataset["activation"].values:
        network = dataset.sel(activation=activation)
        errors = [scientific(over_seeds(network[name])) for name in ("rounding", "representation")]
        ratio = over_seeds(network["rounding"].values / network["representation"].values)
        rows.append([NAMES[str(activation)], *errors, str(ratio)])
    return rows


def _agreement(dataset: xr.Dataset) -> list[list[str]]:
    """Measured over predicted errors above and below the best ε: a row for each network, type and difference."""
    rows = []
    for activation, dtype, scheme, case in _cases(dataset):
        best = float(np.exp(np.log(case["best_epsilon"]).mean()))
        ratios = (case["slope_error"] / case["slope_error_predicted"]).transpose("seed", "epsilon")
        logs = np.log(ratios.to_numpy())
        epsilon = dataset["epsilon"].values
        cells = []
        for part in ((epsilon >= 2 * best) & (epsilon <= 2.0**-4), (epsilon < best / 2) & (epsilon >= best / 64)):
            chosen = logs[:, part]
            mean = over_seeds(np.nanmean(chosen, axis=1))
            worst = np.nanmean(chosen, axis=0)
            low, high = np.exp(mean.low), np.exp(mean.high)
            index = int(np.nanargmax(np.abs(worst)))
            at = _power(epsilon[part][index : index + 1])
            cells += [f"{np.exp(mean.mean):.3f} ({low:.3f} – {high:.3f})", f"{np.exp(worst[index]):.2f} at {at}"]
        rows.append([NAMES[activation], dtype, scheme, *cells])
    return rows


def _cases(dataset: xr.Dataset) -> list[tuple[str, str, str, xr.Dataset]]:
    return [
        (str(a), str(d), str(s), dataset.sel(activation=a, dtype=d, scheme=s))
        for a in dataset["activation"].values
        for d in dataset["dtype"].values
        for s in dataset["scheme"].values
    ]


def _power(values: NDArray[np.float64]) -> str:
    """2⁻¹²·⁵ with the interval of the exponent."""
    exponents = over_seeds(np.log2(values))
    if not exponents.half > 1e-9:
        whole = exponents.mean == round(exponents.mean)
        return f"2^{exponents.mean:.0f}" if whole else f"2^{exponents.mean:.2f}"
    return f"2^({exponents})"
