"""diagnose(): what was measured beside what theory predicts, under the same names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from fganalysis import schema
from fganalysis.estimators import Estimator, label
from fganalysis.predictions import predict, story
from fganalysis.sampling import sample
from fganalysis.snapshot import Snapshot
from fganalysis.spectra import spectra, upstream_modes


def diagnose(
    snapshot: Snapshot | Sequence[Snapshot],
    estimators: Sequence[str | Estimator],
    n_guesses: int = 4096,
    seed: int = 0,
    *,
    memory: int = 2**30,
    progress: bool = False,
) -> xr.DataTree:
    """Measures every estimator and puts the prediction beside it.

    Args:
        snapshot: one snapshot, or several taken at different steps of one training.
        estimators: keys or instances. n_guesses, seed, memory, progress: as in `fganalysis.sample`.

    Returns:
        DataTree with /measured and /predicted, the same variables over (step, estimator, space, layer), and /subspace,
        see `subspaces`.

    Raises:
        ValueError: no estimator, or two that have the same label; no snapshot, or two of the same step; whatever
            `sample` raises.
    """
    names = [label(estimator) for estimator in estimators]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"estimators must be different ones and at least one, got {names}")
    snapshots = [snapshot] if isinstance(snapshot, Snapshot) else list(snapshot)
    steps = [one.step for one in snapshots]
    if not steps or len(set(steps)) < len(steps):
        raise ValueError(f"snapshots must be of different steps and at least one, got the steps {steps}")
    measured, predicted, spaces = [], [], []
    for one in snapshots:
        samples = [sample(one, e, n_guesses, seed, memory=memory, progress=progress) for e in estimators]
        measured.append(_along(schema.ESTIMATOR, samples))
        predicted.append(_along(schema.ESTIMATOR, [predict(one, e) for e in estimators]))
        spaces.append(subspaces(one))
    nodes = {"measured": measured, "predicted": predicted, "subspace": spaces}
    return xr.DataTree.from_dict({name: _along(schema.STEP, parts) for name, parts in nodes.items()})


def join(trees: Sequence[xr.DataTree]) -> xr.DataTree:
    """One tree from the diagnoses of several steps, with the parts that all of them have."""
    nodes = {
        name: xr.concat([tree[name].to_dataset() for tree in trees], dim=schema.STEP, data_vars="all", join="outer")
        for name in ("measured", "predicted", "subspace")
        if all(name in tree.children for tree in trees)
    }
    return xr.DataTree.from_dict(nodes)


def subspaces(snapshot: Snapshot) -> xr.Dataset:
    """The subspaces that the gradient lives in, `fganalysis.spectra`, and what they say of the upstream guesses.

    Bias, variance and efficiency of the orthogonal upstream guess for every k = mode, its best k, and the same
    quantities of the upstream guess; Gaussian noise, independent and joint, a slope for each example. Where singular
    values are equal: means over random bases of their span, see `theory.subspace`. Every Jacobian is
    decomposed, which takes longest: a tenth of a second an example, layer and core at width 1024. NaN where the
    upstream Jacobians are unknown or there are none.
    """
    try:
        jacobians = snapshot.upstream
    except ValueError:  # The network is not a chain: its spectra are still worth having.
        jacobians = ()
    modes = [upstream_modes(jacobian, g) for jacobian, g in zip(jacobians, snapshot.gradients, strict=False)]
    found = spectra(snapshot, modes)
    known = story(snapshot, modes, found[schema.MODE].values) if modes else {}
    found = found.assign_coords({schema.SPACE: list(schema.SPACES)})
    for name, variable in schema.STORY.items():
        unknown = np.full([found.sizes[dim] for dim in variable.dims], np.nan)
        found[name] = (variable.dims, known.get(name, unknown))
    return schema.validate(schema.annotate(found))


def _along(dim: str, datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Datasets stacked along a new dimension; group dimensions of different length are padded with NaN."""
    attributes = {
        name: values[0] if len(set(values)) == 1 else str(values)
        for name in datasets[0].attrs
        if (values := [dataset.attrs[name] for dataset in datasets])
    }
    stacked = xr.concat(datasets, dim=dim, data_vars="all", join="outer", combine_attrs="drop_conflicts")
    return stacked.assign_attrs(attributes)
