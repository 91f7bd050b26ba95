"""How far what `studies.averaging` measures is from what is predicted: the numbers of its page."""

from __future__ import annotations

import numpy as np
import xarray as xr

from fganalysis.results import schema
from studies.kit.seeds import Interval, over_seeds

ROUNDING = 2e-5  # Of ‖ĝ‖², a sum in single precision: an error that varies less is not compared.
EXACT = 1e-6  # Squared cosines as near to 1, and biases over ‖g‖² as small, are rounding.


def draws_nothing(dataset: xr.Dataset, name: str) -> bool:
    """Whether no guess of a kind differs from another, in any network."""
    own = dataset.sel(guess_kind=name, space="weight", layer=schema.ALL_LAYERS)
    return bool((own["relative_error_se"] == 0).all())


def agreement(dataset: xr.Dataset) -> dict[str, object]:
    """How far measured errors are from predicted ones, and cosines from √ρ², over all cells, spaces and layers."""
    drawn = [str(name) for name in dataset["guess_kind"].values if not draws_nothing(dataset, str(name))]
    own = dataset.sel(guess_kind=drawn)
    off = (own["cosine"] / own["cosine_predicted"]).sel(layer=schema.ALL_LAYERS, space="weight")
    by_kind = []
    for name in drawn:
        mean = off.sel(guess_kind=name).mean(["width", "trained"])
        ratios = [over_seeds(mean.sel(averaged=m)) for m in own["averaged"].values]
        words = ["–" if np.isnan(ratio.mean) else str(ratio) for ratio in ratios]
        by_kind.append([name, *_scores(own.sel(guess_kind=name)), *words])
    return {
        "groups": dataset.attrs["guesses"] // int(dataset["averaged"][-1]),
        "sizes": [int(m) for m in own["averaged"].values],
        "by_size": [[str(m), *_scores(own.sel(averaged=m))] for m in own["averaged"].values],
        "by_kind": by_kind,
        "exactness": _exactness(dataset),
        "finite_difference": _finite_difference(dataset),
    }


def _scores(own: xr.Dataset) -> list[str]:
    """How many errors are compared with their prediction, how many are 2 and 3 standard errors off, and the worst."""
    second = own["relative_squared_mean_predicted"] + own["relative_variance_predicted"] / own["averaged"]
    error, predicted, measured, length = (
        array.transpose(*own["relative_error"].dims).values.ravel()
        for array in (own["relative_error_se"], own["relative_error_predicted"], own["relative_error"], second)
    )
    seen = error > ROUNDING * length
    z = np.abs((measured - predicted)[seen] / error[seen])
    return [str(len(z)), f"{(z > 2).mean():.1%}", f"{(z > 3).mean():.1%}", f"{z.max():.1f}"] if len(z) else ["–"] * 4


def _exactness(dataset: xr.Dataset) -> float | None:
    """How far from the predicted errors those are that have no sampling error, over ‖error‖² + ‖gradient‖²."""
    still = [str(name) for name in dataset["guess_kind"].values if draws_nothing(dataset, str(name))]
    if not still:
        return None
    own = dataset.sel(guess_kind=still)
    off = abs(own["relative_error"] - own["relative_error_predicted"]) / (1 + own["relative_error_predicted"])
    return float(off.max())


def _finite_difference(dataset: xr.Dataset) -> list[tuple[Interval, int, str]]:
    """The error of the guess without a closed form over that of the one that it tends to, at every width and step."""
    if not {"finite difference", "weight"} <= set(dataset["guess_kind"].values.tolist()):
        return []
    own = dataset.sel(space="weight", layer=schema.ALL_LAYERS, averaged=1)
    ratio = own["relative_error"].sel(guess_kind="finite difference", drop=True)
    ratio = ratio / own["relative_error_predicted"].sel(guess_kind="weight", drop=True)
    return [
        (over_seeds(ratio.sel(trained=trained, width=width)), int(width), str(trained))
        for trained in own["trained"].values
        for width in own["width"].values
    ]
