"""Units and long names for every variable of a study's Dataset, from those of its quantities."""

from __future__ import annotations

from collections.abc import Mapping

import xarray as xr

KINDS = {"_se": "standard error of: ", "_predicted": "predicted: "}


def described(
    dataset: xr.Dataset, quantities: Mapping[str, tuple[str, str]], kinds: Mapping[str, str] = KINDS
) -> xr.Dataset:
    """The Dataset with ``units`` and ``long_name`` on every variable.

    ``quantities`` gives the long name and the units of each quantity. A variable is a quantity, or one with a suffix of
    ``kinds``, whose words then open its long name: ``bias_se`` is "standard error of: " the long name of ``bias``.
    """
    for name, array in dataset.data_vars.items():
        suffix = next((suffix for suffix in kinds if str(name).endswith(suffix)), "")
        long_name, units = quantities[str(name).removesuffix(suffix)]
        array.attrs = {"units": units, "long_name": kinds.get(suffix, "") + long_name}
    return dataset
