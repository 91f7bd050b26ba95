"""Tables of the trainings: what was measured of each estimator before them, and the losses after them."""

from __future__ import annotations

import numpy as np
import xarray as xr

from studies.kit.seeds import Interval, over_seeds
from studies.progress.rank import Setting, after_cost, after_steps, budget, of_setting, settings_of
from studies.progress.training import DIVERGED, LOGGED_EVERY, SHOWN_TARGETS

LATE = " from "  # In the name of a network that is trained from a later start.


def values(dataset: xr.Dataset) -> dict[str, object]:
    """What the template training.md.j2 names of losses, and of what was measured before."""
    settings = settings_of(dataset)
    estimators = [str(name) for name in dataset["estimator"].values]
    networks = [str(name) for name in dataset["network"].values]
    return {
        "trained_settings": [str(setting) for setting in settings],
        "before_header": [*(f"curved efficiency, {n}" for n in networks), *(f"cosine, {n}" for n in networks)],
        "before": [_before(dataset, networks, name) for name in estimators],
        "losses_of_steps": [[name, *(_of_steps(dataset, s, name) for s in settings)] for name in estimators],
        "losses_of_cost": [[name, *(_of_cost(dataset, s, name) for s in settings)] for name in estimators],
        "late": [name for name in networks if LATE in name],
        "moments_measured": dataset["moment"].values.tolist(),
        "diverged_factor": DIVERGED,
        "shown_targets": SHOWN_TARGETS,
        "stayed": _stayed(dataset),
    }


def _before(dataset: xr.Dataset, networks: list[str], estimator: str) -> list[str]:
    """Passes a step; curved efficiency and cosine on each network: the first batch is the same with new batches."""
    own = dataset.isel(batches=0).sel(estimator=estimator)
    efficiencies = [_plain(over_seeds(own["curved_efficiency"].sel(network=name))) for name in networks]
    cosines = [f"{float(own['cosine'].sel(network=name).mean()):.2g}" for name in networks]
    return [estimator, f"{float(own['passes'].mean()):.3g}", *efficiencies, *cosines]


def _of_steps(dataset: xr.Dataset, setting: Setting, estimator: str) -> str:
    part = of_setting(dataset, setting).sel(estimator=estimator)
    return _loss(after_steps(part), np.isfinite(part["diverged_at"].values))


def _of_cost(dataset: xr.Dataset, setting: Setting, estimator: str) -> str:
    part = of_setting(dataset, setting).sel(estimator=estimator)
    # A loss between two logged steps is known from both, so that the later one must be before the end, too.
    spent = LOGGED_EVERY * np.ceil(budget(dataset) / part["passes"].values / LOGGED_EVERY)
    ended = part["diverged_at"].values
    losses = of_setting(after_cost(dataset).to_dataset(name="loss"), setting)["loss"].sel(estimator=estimator)
    return _loss(losses, spent >= np.where(np.isfinite(ended), ended, np.inf))


def _loss(losses: xr.DataArray, diverged: np.ndarray) -> str:
    """Mean over the seeds; none where a training that diverged counts as a multiple of the loss at its start."""
    return f"{int(diverged.sum())} of {diverged.size} diverge" if diverged.any() else str(over_seeds(losses))


def _plain(interval: Interval) -> str:
    """Without an interval that is rounding alone."""
    return str(interval) if interval.half > 1e-4 * abs(interval.mean) else f"{interval.mean:.3g}"


def _stayed(dataset: xr.Dataset) -> list[list[str]]:
    """Settings and estimators with moments at which there was no advised step, and how many."""
    rows = []
    for setting in settings_of(dataset):
        own = of_setting(dataset, setting)
        for estimator in own["estimator"].values:
            steps, ended = own["advised_step"].sel(estimator=estimator), own["diverged_at"].sel(estimator=estimator)
            reached = ~(steps["moment"] >= ended)  # True where nothing diverged: the comparison with NaN is False.
            missing = int((reached & ~np.isfinite(steps)).sum())
            if missing:
                rows.append([str(setting), str(estimator), f"{missing} of {int(reached.sum())}"])
    return rows
