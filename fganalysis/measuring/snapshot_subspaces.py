"""The subspaces in which a snapshot's gradient lies, and what follows for upstream guesses: /subspace of a tree."""

from __future__ import annotations

import numpy as np
import xarray as xr

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.measuring.spectra import spectra, upstream_modes
from fganalysis.predictions import story
from fganalysis.results import schema

# Tuned together with `fganalysis.measuring.diagnose.CHEAP`, which says how.
EACH = 5 * 10**6  # Least multiplications that a matrix counts for: its fixed cost is about half a millisecond.


def subspaces(snapshot: Snapshot) -> xr.Dataset:
    """The subspaces that the gradient lives in, `fganalysis.measuring.spectra`, and what they say of the upstream
    guesses.

    Bias, variance and efficiency of the orthogonal upstream guess for every k = mode, its best k, and the same
    quantities of the upstream guess; Gaussian noise, independent and joint, a slope for each example. Where singular
    values are equal: means over random bases of their span, see `theory.subspace`. Every Jacobian is
    decomposed, which takes longest: a tenth of a second an example, layer and core at width 1024. NaN where the
    upstream Jacobians are unknown or there are none.
    """
    try:
        jacobians = snapshot.upstream
    except ValueError:  # The network is not a chain and has no upstream Jacobians, but the other spectra exist.
        jacobians = ()
    modes = [upstream_modes(jacobian, g) for jacobian, g in zip(jacobians, snapshot.gradients, strict=False)]
    dataset = spectra(snapshot, modes)
    known = story(snapshot, modes, dataset[schema.MODE].values) if modes else {}
    dataset = dataset.assign_coords({schema.SPACE: list(schema.SPACES)})
    for name, variable in schema.STORY.items():
        unknown = np.full([dataset.sizes[dim] for dim in variable.dims], np.nan)
        dataset[name] = (variable.dims, known.get(name, unknown))
    return schema.validate(schema.annotate(dataset))


def subspace_work(snapshot: Snapshot) -> int:
    """The approximate number of multiplications in `subspaces`, from the sizes of its decompositions."""
    shapes = [array.shape for tap in snapshot.taps for array in (tap.outputs, tap.outputs, tap.weight)]
    for tap in snapshot.taps:
        if tap.upstream is not None:
            shapes += [tap.upstream.weight.shape] * snapshot.n_examples
    return sum(max(min(shape) ** 2 * max(shape), EACH) for shape in shapes)
