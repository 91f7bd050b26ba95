"""What the page of `studies.equilibrium` says, computed from its Dataset; the sentences are in page.md.j2."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from studies.kit import pages
from studies.kit.markdown import scientific, verb
from studies.kit.seeds import Interval, over_seeds

FIRST = "layer_1"  # The furthest from the outputs, where the least of a nudge arrives.
LOW, HIGH = 2.0**-10, 2.0**-4  # The range of β in which the order of the bias is fitted.
SMALL, LARGE = (
    2.0**-8,
    2.0**-4,
)  # The β of the table of leading terms, and of the tables by depth and of the random sign.
LOOSEST, FINEST = 0, -1  # Tolerances of the relaxation fall.
POWERS = {"one-sided": 1, "symmetric": 2}


def page(dataset: xr.Dataset) -> str:
    """The page docs/results/equilibrium.md."""
    return pages.render("equilibrium", values(dataset))


def values(dataset: xr.Dataset) -> dict[str, object]:
    """Everything that the template names."""
    least, decay = least_errors(dataset), _decay(dataset)
    loosest, finest = (float(dataset["relaxation"][place]) for place in (LOOSEST, FINEST))
    initial = least.sel(state="initial").isel(relaxation=LOOSEST).transpose("scheme", "hidden", "seed")
    one_sided, symmetric = (initial.sel(scheme=scheme).values for scheme in POWERS)
    advantage = one_sided / symmetric
    change = over_seeds(np.log(advantage[-1] / advantage[0]))
    depths = [int(depth) for depth in dataset["hidden"].values]
    return {
        "settings": dataset.attrs,
        "n_seeds": dataset.sizes["seed"],
        "depths": depths,
        "loosest": f"{loosest:g}",
        "finest": f"{finest:g}",
        "limits": [power(LOW), power(HIGH)],
        "small": power(SMALL),
        "large": power(LARGE),
        "shallowest": {"one_sided": times(one_sided[0]), "symmetric": times(symmetric[0])},
        "deepest": {"one_sided": times(one_sided[-1]), "symmetric": times(symmetric[-1])},
        "advantage": {"first": times(advantage[0]), "last": times(advantage[-1])},
        "grows": verb(change, "grows", "falls", "does not change significantly"),
        "decay": decay,
        "coefficients": [times(_coefficients(dataset, place)) for place in (0, -1)],
        "lengths": _lengths(dataset),
        "won": _won(dataset),
        "smallest": power(float(dataset["beta"].min())),
        "orders": _orders(dataset),
        "leading": _leading(dataset),
        "floors": _floors(dataset, least),
        "exponents": _exponents(dataset, least),
        "by_depth": _by_depth(dataset),
        "random_sign": _random_sign(dataset),
        "trainings": _trainings(dataset),
        "training_beta": power(float(dataset.attrs["training_beta"])),
        "lost": int(dataset["relative_bias"].sel(layer="all").isnull().sum()),
        "all_points": int(dataset["relative_bias"].sel(layer="all").size),
    }


def least_errors(dataset: xr.Dataset) -> xr.DataArray:
    """The least relative bias of the first layer over β, (hidden, seed, state, scheme, relaxation)."""
    return dataset["relative_bias"].sel(layer=FIRST).min("beta")


def times(numbers: NDArray[np.float64]) -> str:
    """The geometric mean with the 95 % interval over seeds."""
    logs = over_seeds(np.log(numbers))
    low, high = np.exp(logs.low), np.exp(logs.high)
    return f"{np.exp(logs.mean):.3g} ({low:.3g} to {high:.3g})"


def power(beta: float) -> str:
    """2^-4."""
    exponent = np.log2(beta)
    return f"2^{exponent:.0f}" if abs(exponent - round(exponent)) < 1e-9 else f"{beta:.3g}"


def _coefficients(dataset: xr.Dataset, place: int) -> NDArray[np.float64]:
    """Relative one-sided bias over β, initial, of all layers."""
    initial = dataset["leading"].isel(hidden=place).sel(state="initial", scheme="one-sided", layer="all")
    return initial.to_numpy()


def _decay(dataset: xr.Dataset) -> str:
    """‖G‖ of the first layer over that of the last, initial, of the deepest networks."""
    deepest = dataset["gradient_norm"].isel(hidden=-1).sel(state="initial")
    last = f"layer_{int(dataset['hidden'][-1]) + 1}"
    return times((deepest.sel(layer=FIRST) / deepest.sel(layer=last)).values)


def _cases(dataset: xr.Dataset) -> list[tuple[str, int, xr.Dataset]]:
    return [
        (str(state), int(hidden), dataset.sel(state=state, hidden=hidden))
        for state in dataset["state"].values
        for hidden in dataset["hidden"].values
    ]


def _orders(dataset: xr.Dataset) -> list[list[str]]:
    """Slopes of log bias against log β: a row for each state and depth, a column for each scheme."""
    inside = dataset.isel(relaxation=FINEST).where((dataset["beta"] >= LOW) & (dataset["beta"] <= HIGH), drop=True)
    x, rows = np.log(inside["beta"].values), []
    for state, hidden, case in _cases(inside):
        row = [state, str(hidden)]
        for scheme in POWERS:
            logs = np.log(case["relative_bias"].sel(scheme=scheme, layer="all").transpose("beta", "seed").values)
            row.append(str(over_seeds(np.polyfit(x, logs, 1)[0])))
        rows.append(row)
    return rows


def _leading(dataset: xr.Dataset) -> list[list[str]]:
    """Bias over β or β² by theory, and the measured bias at a small β over it."""
    at, rows = dataset.isel(relaxation=FINEST).sel(beta=SMALL, method="nearest"), []
    for state, hidden, case in _cases(at):
        row = [state, str(hidden)]
        for scheme, order in POWERS.items():
            own = case.sel(scheme=scheme, layer="all")
            ratio = own["relative_bias"] / (own["leading"] * float(at["beta"]) ** order)
            row += [times(own["leading"].values), str(over_seeds(ratio))]
        rows.append(row)
    return rows


def _floors(dataset: xr.Dataset, least: xr.DataArray) -> list[list[str]]:
    """The least error over β and its β: a row for each state, depth and tolerance."""
    betas, rows = _best(dataset), []
    for state in dataset["state"].values:
        for hidden in dataset["hidden"].values:
            for relaxation in least["relaxation"].values:
                at = {"state": state, "hidden": hidden, "relaxation": relaxation}
                row = [str(state), str(int(hidden)), f"{relaxation:g}"]
                for scheme in POWERS:
                    middle = np.exp(np.log(betas.sel(at | {"scheme": scheme})).mean())
                    row += [times(least.sel(at | {"scheme": scheme}).values), f"2^{np.log2(float(middle)):.1f}"]
                rows.append(row)
    return rows


def _best(dataset: xr.Dataset) -> xr.DataArray:
    """The β of the least relative bias of the first layer."""
    errors = dataset["relative_bias"].sel(layer=FIRST).fillna(np.inf)
    return dataset["beta"].isel(beta=errors.argmin("beta")).drop_vars("beta")


def _exponents(dataset: xr.Dataset, least: xr.DataArray) -> list[list[str]]:
    """Slopes of log least error against log tolerance, where the best β is not the smallest."""
    inside = (_best(dataset) > dataset["beta"].min()).all("seed")
    x, rows = np.log(least["relaxation"].values), []
    for state in least["state"].values:
        for hidden in least["hidden"].values:
            row = [str(state), str(int(hidden))]
            for scheme in POWERS:
                at = {"state": state, "hidden": hidden, "scheme": scheme}
                known = inside.sel(at).values
                logs = np.log(least.sel(at).transpose("relaxation", "seed").values[known])
                row.append(str(over_seeds(np.polyfit(x[known], logs, 1)[0])) if known.sum() > 1 else "–")
            rows.append(row)
    return rows


def _by_depth(dataset: xr.Dataset) -> list[list[str]]:
    """Cosine and wrong signs of the first layer at a large β, at both ends of the tolerances."""
    rows = []
    at = dataset.sel(beta=LARGE, method="nearest").sel(layer=FIRST)
    for state, hidden, case in _cases(at):
        for place in (LOOSEST, FINEST):
            own = case.isel(relaxation=place)
            row = [state, str(hidden), f"{float(own['relaxation']):g}"]
            for scheme in POWERS:
                of = own.sel(scheme=scheme)
                row += [_rounded(over_seeds(of["cosine"])), _percent(over_seeds(of["wrong_signs"]))]
            rows.append(row)
    return rows


def _random_sign(dataset: xr.Dataset) -> list[list[str]]:
    """Noise of the random sign over the bias of the one-sided guess, layer "all"."""
    at, rows = dataset.isel(relaxation=FINEST).sel(beta=LARGE, method="nearest").sel(layer="all"), []
    for state, hidden, case in _cases(at):
        bias = case["relative_bias"].sel(scheme="one-sided")
        rows.append([state, str(hidden), str(over_seeds(case["random_sign_noise"] / bias))])
    return rows


def _lengths(dataset: xr.Dataset) -> dict[str, Interval]:
    """Shrinkage at the β of the trainings, before training, of the networks whose depth is nearest to theirs."""
    at = {"beta": dataset.attrs["training_beta"], "hidden": dataset.attrs["training_depth"]}
    near = dataset["shrinkage"].sel(at, method="nearest").sel(state="initial", layer="all").isel(relaxation=FINEST)
    return {
        "one_sided": over_seeds(near.sel(scheme="one-sided")),
        "symmetric": over_seeds(near.sel(scheme="symmetric")),
    }


def _won(dataset: xr.Dataset) -> tuple[str, Interval]:
    """Whether the symmetric guess trains to a higher accuracy than the one-sided guess, seed by seed."""
    accuracy = dataset["final_accuracy"]
    gain = over_seeds(accuracy.sel(guess="symmetric") - accuracy.sel(guess="one-sided"))
    return verb(gain, "higher", "lower", "not significantly different"), gain


def _trainings(dataset: xr.Dataset) -> list[list[str]]:
    rows = []
    for guess in dataset["guess"].values:
        own = dataset.sel(guess=guess)
        ended = int(own["final_accuracy"].notnull().sum())
        numbers = [str(over_seeds(own[name])) for name in ("final_accuracy", "final_loss")]
        rows.append([str(guess), *numbers, f"{ended} of {own.sizes['seed']}"])
    return rows


def _rounded(interval: Interval) -> str:
    """A cosine; near 1 what is missing there."""
    return str(interval) if interval.mean < 0.999 else f"1 − {scientific(Interval(1 - interval.mean, interval.half))}"


def _percent(interval: Interval) -> str:
    return f"{Interval(100 * interval.mean, 100 * interval.half)} %"
