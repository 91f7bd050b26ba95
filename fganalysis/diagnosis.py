"""diagnose(): what was measured beside what theory predicts, under the same names. The only file where the two meet.

`PREDICTIONS` says, for each class of estimator, how its closed form is asked for. An estimator without an entry has no
closed form: its prediction is NaN throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from fganalysis import estimators, schema
from fganalysis.estimators import Estimator, label, resolve
from fganalysis.estimators.newton_schulz_polynomials import COMPOSITIONS, nearest
from fganalysis.noise import Gaussian
from fganalysis.sampling import coordinates, sample, squared_gradients
from fganalysis.snapshot import Snapshot
from theory import linear_guess, normalised_upstream, quantities, upstream, wang2025, weight_perturbation
from theory.factors import Diagonal, Factor
from theory.linear_guess import Moments

Array = NDArray[np.float64]
Prediction = dict[str, Array]


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
        DataTree with /measured and /predicted, the same variables over (step, estimator, space, layer).

    Raises:
        ValueError: no estimator, or two that have the same label; whatever `sample` raises.
    """
    names = [label(estimator) for estimator in estimators]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"estimators must be different ones and at least one, got {names}")
    snapshots = [snapshot] if isinstance(snapshot, Snapshot) else list(snapshot)
    measured, predicted = [], []
    for one in snapshots:
        samples = [sample(one, e, n_guesses, seed, memory=memory, progress=progress) for e in estimators]
        measured.append(_along(schema.ESTIMATOR, samples))
        predicted.append(_along(schema.ESTIMATOR, [predict(one, e) for e in estimators]))
    nodes = {"measured": _along(schema.STEP, measured), "predicted": _along(schema.STEP, predicted)}
    return xr.DataTree.from_dict(nodes)


def join(trees: Sequence[xr.DataTree]) -> xr.DataTree:
    """One tree from the diagnoses of several steps."""
    nodes = {
        name: xr.concat([tree[name].to_dataset() for tree in trees], dim=schema.STEP, data_vars="all", join="outer")
        for name in ("measured", "predicted")
    }
    return xr.DataTree.from_dict(nodes)


def predict(snapshot: Snapshot, estimator: str | Estimator) -> xr.Dataset:
    """What theory says of the estimator on this snapshot: the variables of `sample` without errors; NaN where unknown.

    Computed in double precision from the snapshot's arrays by the package `theory`, which shares no code with the
    sampler: where both agree, it is evidence.
    """
    chosen = resolve(estimator)
    found = PREDICTIONS.get(type(chosen), _no_closed_form)(snapshot, chosen)
    grid = (schema.SPACE, schema.LAYER)
    shape = (len(schema.SPACES), len(snapshot.taps) + 1)
    known = schema.variables()
    variables: dict[str, tuple] = {}
    for name in (*schema.QUANTITIES, *schema.EXACT):
        dims = known[name].dims
        values = found.get(name, np.full(shape[len(shape) - len(dims) :], np.nan))
        variables[name] = (dims, values)
    variables["gradient_norm"] = (grid, np.sqrt(squared_gradients(snapshot)))
    dataset = xr.Dataset(variables, coords=coordinates(snapshot, label(chosen)))
    return schema.validate(schema.annotate(dataset))


def _along(dim: str, datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Datasets stacked along a new dimension; group dimensions of different length are padded with NaN."""
    attributes = {
        name: values[0] if len(set(values)) == 1 else str(values)
        for name in datasets[0].attrs
        if (values := [dataset.attrs[name] for dataset in datasets])
    }
    stacked = xr.concat(datasets, dim=dim, data_vars="all", join="outer", combine_attrs="drop_conflicts")
    return stacked.assign_attrs(attributes)


def _double(tensors: Sequence[Tensor]) -> list[Array]:
    return [tensor.detach().double().cpu().numpy() for tensor in tensors]


def _no_closed_form(snapshot: Snapshot, estimator: Any) -> Prediction:
    return {}


def _quantities(snapshot: Snapshot, moments: Sequence[Moments]) -> Prediction:
    """Quantities over (space, layer) and the seed paper's two, from the moments of every tap's activation guess."""
    gradients, inputs = _double(snapshot.gradients), _double([tap.inputs for tap in snapshot.taps])
    kernels = [x @ x.T for x in inputs]
    means = [moment.mean for moment in moments]
    plain = [moment.second_moment() for moment in moments]
    mixed = [moment.second_moment(kernel) for moment, kernel in zip(moments, kernels, strict=True)]
    activation = quantities.quantities(gradients, means, plain)
    weight = quantities.quantities(gradients, means, mixed, kernels)
    pairs = list(zip(gradients, moments, strict=True))
    return _with_squared_bias({name: np.stack([activation[name], weight[name]]) for name in activation}) | {
        "wang2025_bias": np.array([*(wang2025.bias(g, moment) for g, moment in pairs), np.nan]),
        "wang2025_variance": np.array([*(wang2025.variance(g, moment) for g, moment in pairs), np.nan]),
    }


def _with_squared_bias(found: Prediction) -> Prediction:
    return found | {"squared_bias": found["bias"] ** 2}


def _backpropagation(snapshot: Snapshot, estimator: estimators.Backpropagation) -> Prediction:
    gradients = _double(snapshot.gradients)
    exact = _quantities(snapshot, [Moments(g, g**2, g @ g.T) for g in gradients])
    ones = np.ones((len(schema.SPACES), len(gradients) + 1))
    return exact | {"cosine": ones, "descent_probability": ones}


def _weight(snapshot: Snapshot, estimator: estimators.WeightPerturbation) -> Prediction:
    gradients, inputs = _double(snapshot.weight_gradients), _double([tap.inputs for tap in snapshot.taps])
    sizes = [g.size for g in gradients]
    law = ([estimator.noise.fourth(n) for n in sizes], [estimator.noise.pair(n) for n in sizes])
    squares = [float((g**2).sum()) for g in gradients]
    if estimator.shared:
        second = weight_perturbation.second_moments(squares, sizes, *law, layers=estimator.layers)
    else:
        pairs = zip(_double(snapshot.gradients), inputs, strict=True)
        each = np.array([(g**2).sum(1) * (x**2).sum(1) for g, x in pairs])
        second = weight_perturbation.second_moments_per_example(each, squares, sizes, *law, layers=estimator.layers)
    found = _with_squared_bias(quantities.quantities(gradients, gradients, second))
    return {name: np.stack([np.full_like(values, np.nan), values]) for name, values in found.items()}


def _linear(snapshot: Snapshot, estimator: Any, factors: Sequence[Factor], noise_units: Sequence[int]) -> Prediction:
    """The general law of MATH.md §3 for directions A ε, factors and numbers of noise entries given tap by tap."""
    moments = linear_guess.moments(
        _double(snapshot.gradients),
        factors,
        [estimator.noise.fourth(n) for n in noise_units],
        [estimator.noise.pair(n) for n in noise_units],
        shared=estimator.shared,
        slope=estimator.slope,
        layers=estimator.layers,
    )
    norms = [wang2025.covariance_norm(factor) for factor in factors]
    return _quantities(snapshot, moments) | {"wang2025_covariance_norm": np.array([*norms, np.nan])}


def _activity(snapshot: Snapshot, estimator: estimators.ActivityPerturbation) -> Prediction:
    scales = [np.ones(tap.outputs.shape) for tap in snapshot.taps]
    if estimator.active_only:
        derivatives = _double([jacobian.derivative for jacobian in snapshot.upstream])
        scales[:-1] = [(derivative != 0).astype(float) for derivative in derivatives]
    return _linear(snapshot, estimator, [Diagonal(s) for s in scales], [s.shape[1] for s in scales])


def _jacobians(snapshot: Snapshot) -> tuple[list[Array], list[Array]]:
    """The next tap's weight (next_unit, unit) and φ' (example, unit) of every tap but the last."""
    return (
        _double([jacobian.weight for jacobian in snapshot.upstream]),
        _double([jacobian.derivative for jacobian in snapshot.upstream]),
    )


def _upstream_family(snapshot: Snapshot, estimator: Any, factors: Sequence[Factor]) -> Prediction:
    """Directions A_l ε, ε at the next tap; the identity at the output tap."""
    output = np.ones(snapshot.taps[-1].outputs.shape)
    noise_units = [*(len(jacobian.weight) for jacobian in snapshot.upstream), output.shape[1]]
    return _linear(snapshot, estimator, [*factors, Diagonal(output)], noise_units)


def _upstream(snapshot: Snapshot, estimator: estimators.Upstream) -> Prediction:
    weights, derivatives = _jacobians(snapshot)
    if not estimator.normalise:
        return _upstream_family(snapshot, estimator, list(map(upstream.upstream, weights, derivatives)))
    if estimator.shared or not isinstance(estimator.noise, Gaussian):
        return {}
    moments = normalised_upstream.moments(
        _double(snapshot.gradients), weights, derivatives, slope=estimator.slope, layers=estimator.layers
    )
    return _quantities(snapshot, moments)


def _orthogonal(snapshot: Snapshot, estimator: estimators.OrthogonalUpstream) -> Prediction:
    precision = torch.finfo(snapshot.outputs.dtype).eps
    factors = [
        upstream.orthogonal(weight, derivative, estimator.k, estimator.which, precision)
        for weight, derivative in zip(*_jacobians(snapshot), strict=True)
    ]
    gradients = _double(snapshot.gradients)
    overlaps = np.array(
        [wang2025.overlap(g, factor.left) for g, factor in zip(gradients, factors, strict=False)]
        + [(np.nan, np.nan)] * 2  # The output tap has no Jacobian, and layers are not averaged.
    ).T
    return _upstream_family(snapshot, estimator, factors) | {
        "wang2025_overlap": overlaps[0],
        "wang2025_squared_overlap": overlaps[1],
    }


def _newton_schulz(snapshot: Snapshot, estimator: estimators.NewtonSchulzUpstream) -> Prediction:
    factors = []
    for weight, derivative in zip(*_jacobians(snapshot), strict=True):
        values = upstream.singular_triplets(weight, derivative)[1]
        norms = np.where(values[:, 0] > 0, values[:, 0], 1.0)
        relative = values[:, min(estimator.k, values.shape[1]) - 1] / norms
        coefficients = nearest(torch.from_numpy(relative)).numpy()
        composed = np.repeat(coefficients[:, None, :], COMPOSITIONS, axis=1)
        factors.append(upstream.newton_schulz(weight, derivative, composed))
    return _upstream_family(snapshot, estimator, factors)


def _preconditioned(snapshot: Snapshot, estimator: estimators.PreconditionedUpstream) -> Prediction:
    weights, derivatives = _jacobians(snapshot)
    factors = [upstream.preconditioned(w, d, estimator.sigma) for w, d in zip(weights, derivatives, strict=True)]
    return _upstream_family(snapshot, estimator, factors)


PREDICTIONS: dict[type, Callable[[Snapshot, Any], Prediction]] = {
    estimators.Backpropagation: _backpropagation,
    estimators.WeightPerturbation: _weight,
    estimators.ActivityPerturbation: _activity,
    estimators.Upstream: _upstream,
    estimators.OrthogonalUpstream: _orthogonal,
    estimators.NewtonSchulzUpstream: _newton_schulz,
    estimators.PreconditionedUpstream: _preconditioned,
}
