"""The log of a training as a Dataset over its steps."""

from __future__ import annotations

import numpy as np
import xarray as xr

LOGGED = {
    "loss": ("loss on the training set", "loss"),
    "train_accuracy": ("accuracy on the training set", "1"),
    "test_accuracy": ("accuracy on the test set", "1"),
    "cosine": ("cosine of the step's gradient estimate with the exact gradient", "1"),
    "relative_error": ("norm of the estimate's error over the norm of the exact gradient", "1"),
}


def training_log(rows: list[dict[str, float]], estimator: str, seed: int) -> xr.Dataset:
    steps = [int(row["step"]) for row in rows]
    variables = {
        name: xr.Variable("step", [row.get(name, np.nan) for row in rows], {"long_name": long_name, "units": units})
        for name, (long_name, units) in LOGGED.items()
    }
    return xr.Dataset(variables, coords={"step": steps}, attrs={"estimator": estimator, "seed": seed})
