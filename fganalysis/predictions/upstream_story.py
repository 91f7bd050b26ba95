"""Predictions for the upstream guesses from the energy curves of a snapshot (docs/mathematics.md#energy-curves)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fganalysis.capturing.snapshot import Snapshot
from fganalysis.capturing.upstream_modes import UpstreamModes
from fganalysis.predictions.arrays import Prediction, double, inputs_of
from theory import energy_curves, subspace
from theory.best_k import best_k_of_each_layer, best_setting
from theory.weight_cross_terms import cross_terms, orthogonal_cross_terms


def story(snapshot: Snapshot, modes: Sequence[UpstreamModes], ks: NDArray[np.int64]) -> Prediction:
    """What the energy curves predict, over (space, layer, mode), (space, layer) or (layer, mode)."""
    gradients, inputs = double(snapshot.gradients), inputs_of(snapshot)
    output = energy_curves.Output((gradients[-1] ** 2).sum(1), gradients[-1].shape[1])
    last = cross_terms(gradients[-1], gradients[-1], inputs[-1])
    hidden = list(zip(modes, gradients, inputs, strict=False))

    curves = [energy_curves.OverlapCurve(one.overlap, one.squared_gradient, one.rank) for one in modes]
    terms = subspace.orthogonal_terms(curves, output, ks)
    cross = [orthogonal_cross_terms(one.parts, one.tied, g, x, ks) for one, g, x in hidden]
    same = np.ones(len(ks))  # The output tap's guess does not know of k.
    flat = replace(last, inner=last.inner * same, mean_square=last.mean_square * same)
    orthogonal = [subspace.activation_quantities(terms), subspace.weight_quantities(terms, [*cross, flat])]
    kept = np.concatenate([(parts := terms.inner.sum(2)), parts.sum(0, keepdims=True)])
    squares = np.append((totals := terms.squared_gradient.sum(1)), totals.sum())
    best = np.stack([best_setting(one) for one in orthogonal])

    spectral = [energy_curves.UpstreamSpectrum(one.values, one.components, one.squared_gradient) for one in modes]
    plain = subspace.upstream_terms(spectral, output)
    means = [
        jacobian.transposed_product(jacobian.product(g))
        for jacobian, g in zip(snapshot.upstream, snapshot.gradients, strict=False)
    ]
    crossed = [cross_terms(mean, g, x) for mean, (_, g, x) in zip(double(means), hidden, strict=True)]
    upstream_guess = [subspace.activation_quantities(plain), subspace.weight_quantities(plain, [*crossed, last])]
    found = {
        "kept_energy": np.divide(kept, squares[:, None], out=np.full_like(kept, np.nan), where=squares[:, None] > 0),
        "best_k": np.where(best >= 0, ks[best], np.nan),
        "best_k_of_each_layer": np.full(len(gradients) + 1, np.nan),
    }
    if squares[-1] > 0:
        found["best_k_of_each_layer"][: len(modes)] = best_k_of_each_layer(curves, output)
    for key, guesses in (("orthogonal", orthogonal), ("upstream", upstream_guess)):
        index = 0 if key == "upstream" else slice(None)
        found[f"{key}_bias"] = np.stack([np.sqrt(one.squared_bias[:, index]) for one in guesses])
        found[f"{key}_variance"] = np.stack([one.variance[:, index] for one in guesses])
        found[f"{key}_efficiency"] = np.stack([one.efficiency[:, index] for one in guesses])
    return found
