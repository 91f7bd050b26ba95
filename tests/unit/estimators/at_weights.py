"""What is predicted at the weights against the enumerated mean and covariance, for layers of any kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

import fganalysis as fga
from fganalysis.assertions.enumeration import Enumeration
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.testing import exact_moments


def assert_predicted_at_weights(estimator: Any, snapshot: Snapshot, law: Any = None) -> None:
    """Bias, shrinkage and variance of every layer, to 1e-10 of their scales. law: of the noise, where it has one."""
    stated = replace(estimator, noise=law()) if law is not None else estimator
    exact = exact_moments(estimator, snapshot, law or _never)
    predicted = fga.predict(snapshot, stated).sel(space="weight")
    sizes = [gradient.numel() for gradient in snapshot.weight_gradients]
    gradient = torch.cat([part.flatten() for part in snapshot.weight_gradients])
    terms = torch.stack(
        [
            (exact.weight_mean - gradient).square(),
            exact.weight_covariance.diagonal(),
            exact.weight_mean * gradient,
            gradient.square(),
        ]
    )
    by_layer = torch.stack([part.sum(1) for part in terms.split(sizes, dim=1)], dim=1)
    squared_bias, variance, inner, square = torch.cat([by_layer, by_layer.sum(1, keepdim=True)], dim=1).numpy()
    scale = float(square[-1])
    np.testing.assert_allclose(predicted["variance"], variance, rtol=1e-10, atol=1e-10 * scale)
    np.testing.assert_allclose(predicted["squared_bias"], squared_bias, rtol=1e-10, atol=1e-10 * scale)
    np.testing.assert_allclose(predicted["shrinkage"], inner / square, rtol=1e-10, atol=1e-10)


def _never() -> Enumeration:
    raise AssertionError("no noise is injected")
