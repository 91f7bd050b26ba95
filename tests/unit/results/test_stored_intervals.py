"""Intervals as `fga.sample` stores them: exact estimators in both precisions, flags, tails, and both of a variance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.estimators import Subsampled
from fganalysis.results import schema
from fganalysis.statistics.rare_tails import MARGINS, RawSample

EXACT = {
    **dict.fromkeys(("bias", "squared_bias", "relative_bias", "directional_bias", "variance", "mse"), 0.0),
    **dict.fromkeys(("shrinkage", "cosine", "efficiency", "best_scale", "descent_probability"), 1.0),
    **dict.fromkeys(("wang2025_bias", "wang2025_variance"), 0.0),
}


def small_snapshot(dtype: torch.dtype) -> fga.Snapshot:
    network = fga.networks.mlp([5, 7, 3], bias=False, seed=0, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 5, generator=generator, dtype=torch.float64).to(dtype)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.tensor([0, 1, 2, 0, 1, 2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_bounds_of_the_exact_gradient_hold_its_exact_values(dtype: torch.dtype) -> None:
    """And are no further apart than rounding: 10⁻³ in single precision, 10⁻¹¹ in double."""
    found = fga.sample(small_snapshot(dtype), "backpropagation", n_guesses=256)
    most = 1e-3 if dtype == torch.float32 else 1e-11
    assert set(EXACT) == set(schema.QUANTITIES)
    for name, truth in EXACT.items():
        low, high = found[name + schema.LOW], found[name + schema.HIGH]
        known = low.notnull()
        assert known.any() and bool(((low <= truth) & (high >= truth) | ~known).all()), name
        assert float((high - low).max()) < (0.1 if name == "descent_probability" else most), name
        assert not (found[name + schema.SHORT] == 1).any(), name


def test_every_quantity_says_where_it_may_be_short_and_those_with_a_tail_how_heavy_it_is() -> None:
    def heavy(network, loss_fn, inputs, targets, generator):  # type: ignore[no-untyped-def]
        factor = (1 - torch.rand((), generator=generator, dtype=torch.float64)) ** -0.8
        loss = loss_fn(network(inputs), targets)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        return {name: factor * g for (name, _), g in zip(network.named_parameters(), gradients, strict=True)}

    estimators = [fga.estimators.from_function(heavy), "weight"]
    found = [fga.sample(small_snapshot(torch.float64), one, n_guesses=512) for one in estimators]
    for dataset in found:
        for name in schema.QUANTITIES:
            values = dataset[name + schema.SHORT].values
            assert np.isin(values[~np.isnan(values)], (0.0, 1.0)).all()
            assert dataset[name + schema.SHORT].attrs["units"] == "1"
            assert (name + schema.TAIL in dataset) == (name in schema.TAILED)
    for name in ("shrinkage", "mse", "variance"):
        short, tail = (found[0][name + suffix].sel(space="weight") for suffix in (schema.SHORT, schema.TAIL))
        assert (short == 1).all() and (tail > 0.5).all()
        light = found[1][name + schema.TAIL].sel(space="weight")
        assert ((light < 0.5) == (found[1][name + schema.SHORT].sel(space="weight") == 0)).all()
    # Norms of mean guesses share the tail of `bias`, in units of the guess: half of that of its square.
    for dataset in found:
        xr.testing.assert_equal(
            dataset["relative_bias_short"].drop_attrs(),
            dataset["bias_short"].rename("relative_bias_short").drop_attrs(),
        )
        assert (dataset["bias_tail"] < dataset["mse_tail"]).sel(space="weight").all()


@pytest.mark.parametrize("exponent", [-60, -20, 20, 60])
def test_margins_of_predictions_do_not_depend_on_units(exponent: int) -> None:
    dataset = fga.sample(small_snapshot(torch.float64), "activity", n_guesses=256)
    of_guess = np.arange(256) // 16 % dataset.sizes["group"]
    found = []
    for scale in (1.0, 10.0**exponent):
        raw = RawSample(
            *(scale**2 * dataset[name].values for name in ("inner_product", "squared_norm", "gram")),
            of_guess,
            scale**2 * dataset["gradient_norm"].values ** 2,
            scale**2 * dataset["variance"].values,
            scale**2 * dataset["variance_se"].values,
        )
        own = {}
        for name in MARGINS:
            power = {"mse": 2, "variance": 2, "squared_bias": 2, "bias": 1}.get(name, 0)
            margin = raw.margin(name, scale**power * dataset[name].values, 1e-4)
            # A squared norm is compared by its square, of which a prediction is the root.
            unit = scale ** (2 if power else 0)
            own[name] = np.stack([margin.below / unit, margin.above / unit])
        found.append(own)
    for name in MARGINS:
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-6, err_msg=name)


def test_both_parts_of_a_variance_have_bounds_that_can_be() -> None:
    """Of the exact gradient of part of the batch nothing varies within; of a guess on all of it nothing between."""
    snapshot = small_snapshot(torch.float64)
    part = fga.variance_parts(Subsampled("backpropagation", 2), snapshot, 64, torch.Generator().manual_seed(0))
    whole = fga.variance_parts(Subsampled("weight", 6), snapshot, 64, torch.Generator().manual_seed(0))
    for estimate in (part.within, part.between, whole.within, whole.between):
        known = ~np.isnan(estimate.low)
        assert (estimate.low[known] >= 0).all() and (estimate.low[known] <= estimate.high[known]).all()
    for nothing in (part.within, whole.between):
        known = ~np.isnan(nothing.low)
        assert (nothing.low[known] == 0).all()
    assert (part.within.high < 1e-10).all() and (part.between.low > 0).all()
