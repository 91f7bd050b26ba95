"""The Dataset of a sample: raw numbers of guesses and groups, and the estimates that follow from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from fganalysis.capturing.coordinates import coordinates, over_layers
from fganalysis.capturing.reference import Reference
from fganalysis.measuring.guess_sums import GuessScalars
from fganalysis.results import schema
from fganalysis.statistics.guess_scalars import cosine_quantiles
from fganalysis.statistics.intervals import Estimate
from fganalysis.statistics.quantities import quantities


@dataclass(frozen=True)
class RawNumbers:
    """The numbers that estimates follow from, with layer "all"; shapes as in `fganalysis.statistics.quantities`.

    most_groups: of guesses, that there would be if the memory held them.
    """

    inner_product: np.ndarray
    squared_norm: np.ndarray
    gram: np.ndarray
    group_of_guess: np.ndarray
    squared_gradient: np.ndarray
    most_groups: int

    @classmethod
    def of(
        cls,
        scalars: GuessScalars,
        gram: np.ndarray,
        group_of_guess: np.ndarray,
        squared_gradient: np.ndarray,
        most_groups: int,
    ) -> RawNumbers:
        parts = (scalars.inner_products.cpu().numpy(), scalars.squared_norms.cpu().numpy(), gram)
        inner, norms, whole = (np.concatenate([part, over_layers(part)[:, None]], axis=1) for part in parts)
        return cls(inner, norms, whole, group_of_guess, squared_gradient, most_groups)

    def estimates(self, precision: float) -> dict[str, Estimate]:
        return quantities(
            self.inner_product, self.squared_norm, self.gram, self.group_of_guess, self.squared_gradient, precision
        )


def sampled_dataset(
    reference: Reference, name: str, raw: RawNumbers, estimates: Sequence[Mapping[str, Estimate]]
) -> xr.Dataset:
    """The Dataset of `sample`. ``estimates``: of the quantities that every result has, then of each metric."""
    grid, known = (schema.SPACE, schema.LAYER), schema.variables()
    of_quantities, *of_metrics = (
        {
            variable: (known[variable].dims, part)
            for quantity, estimate in by_name.items()
            for variable, part in _named(quantity, estimate).items()
        }
        for by_name in estimates
    )
    levels = list(schema.COSINE_QUANTILES.values())
    cosines = cosine_quantiles(raw.inner_product, raw.squared_norm, raw.squared_gradient, levels)
    variables: dict[str, tuple] = of_quantities | {
        quantile: (grid, values) for quantile, values in zip(schema.COSINE_QUANTILES, cosines, strict=True)
    }
    variables["gradient_norm"] = (grid, np.sqrt(raw.squared_gradient))
    variables["inner_product"] = ((*grid, schema.GUESS), raw.inner_product)
    variables["squared_norm"] = ((*grid, schema.GUESS), raw.squared_norm)
    variables["gram"] = ((*grid, schema.GROUP, schema.OTHER_GROUP), raw.gram)
    variables["group_size"] = ((schema.GROUP,), np.bincount(raw.group_of_guess, minlength=raw.gram.shape[-1]))
    for more in of_metrics:
        variables |= more
    return xr.Dataset(variables, coords=coordinates(reference, name))


def attributes(
    reference: Reference,
    name: str,
    settings: Mapping[str, object],
    raw: RawNumbers,
    seed: int,
    block_size: int,
    not_looked_at: Sequence[str],
) -> dict[str, object]:
    """The attributes of every sample. name, settings: of the estimator. not_looked_at: parameters without a guess."""
    n_groups = raw.gram.shape[-1]
    fewer = {schema.FEWER_GROUPS: f"{n_groups} instead of {raw.most_groups}, as the memory holds no more"}
    return {
        "estimator": name,
        "settings": json.dumps(settings),
        "n_guesses": raw.inner_product.shape[-1],
        "seed": seed,
        "block_size": block_size,
        **reference.facts,
        "device": str(reference.device.type),
        "dtype": str(reference.dtype).removeprefix("torch."),
        schema.NOT_LOOKED_AT: json.dumps(not_looked_at),
        **(fewer if n_groups < raw.most_groups else {}),
    }


def _named(quantity: str, estimate: Estimate) -> dict[str, np.ndarray]:
    """The parts of an estimate by their names in a result; flags are 1 or 0, and NaN where there is no interval."""
    missing = np.isnan(estimate.low)
    parts = {"": estimate.value, schema.SE: estimate.se, schema.LOW: estimate.low, schema.HIGH: estimate.high}
    for suffix, flag in ((schema.WIDE, estimate.wide), (schema.SHORT, estimate.short)):
        parts[suffix] = np.where(missing, np.nan, flag)
    if quantity in schema.TAILED:
        parts[schema.TAIL] = np.broadcast_to(estimate.tail, missing.shape)
    return {quantity + suffix: part for suffix, part in parts.items()}
