"""diagnose(): what was measured beside what theory predicts, under the same names. The only file where the two meet.

`PREDICTIONS` says, for each class of estimator, how its closed form is asked for. An estimator without an entry has no
closed form: its prediction is NaN throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
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
from fganalysis.spectra import UpstreamModes, spectra, upstream_modes
from theory import (
    activation_mixing,
    averaging,
    batch_cosine,
    cosine,
    descent,
    energy_curves,
    linear_guess,
    minibatch,
    multi_tangent,
    normalised_upstream,
    projection,
    quantities,
    subspace,
    upstream,
    wang2025,
    weight_perturbation,
)
from theory.factors import Diagonal, Factor, LowRank
from theory.linear_guess import Moments
from theory.spectrum import spectrum

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


def subspaces(snapshot: Snapshot) -> xr.Dataset:
    """The subspaces that the gradient lives in, `fganalysis.spectra`, and what they say of the upstream guesses.

    Bias, variance and efficiency of the orthogonal upstream guess for every k = mode, its best k, and the same
    quantities of the upstream guess; Gaussian noise, independent and joint, a slope for each example. Every Jacobian is
    decomposed, which takes longest: a tenth of a second an example, layer and core at width 1024. NaN where the
    upstream Jacobians are unknown or there are none.
    """
    try:
        jacobians = snapshot.upstream
    except ValueError:  # The network is not a chain: its spectra are still worth having.
        jacobians = ()
    modes = [upstream_modes(jacobian, g) for jacobian, g in zip(jacobians, snapshot.gradients, strict=False)]
    found = spectra(snapshot, modes)
    known = _story(snapshot, modes, found[schema.MODE].values) if modes else {}
    found = found.assign_coords({schema.SPACE: list(schema.SPACES)})
    for name, variable in schema.STORY.items():
        unknown = np.full([found.sizes[dim] for dim in variable.dims], np.nan)
        found[name] = (variable.dims, known.get(name, unknown))
    return schema.validate(schema.annotate(found))


def _story(snapshot: Snapshot, modes: Sequence[UpstreamModes], ks: NDArray[np.int64]) -> Prediction:
    """What the energy curves predict, over (space, layer, mode), (space, layer) or (layer, mode)."""
    gradients, inputs = _double(snapshot.gradients), _double([tap.inputs for tap in snapshot.taps])
    output = energy_curves.Output((gradients[-1] ** 2).sum(1), gradients[-1].shape[1])
    last = subspace.cross_terms(gradients[-1], gradients[-1], inputs[-1])
    hidden = list(zip(modes, gradients, inputs, strict=False))

    curves = [energy_curves.OverlapCurve(one.overlap, one.squared_gradient, one.rank) for one in modes]
    terms = subspace.orthogonal_terms(curves, output, ks)
    cross = [subspace.orthogonal_cross_terms(one.vectors, g, x, ks) for one, g, x in hidden]
    same = np.ones(len(ks))  # The output tap's guess does not know of k.
    flat = replace(last, inner=last.inner * same, mean_square=last.mean_square * same)
    orthogonal = [subspace.activation_quantities(terms), subspace.weight_quantities(terms, [*cross, flat])]
    kept = np.concatenate([(parts := terms.inner.sum(2)), parts.sum(0, keepdims=True)])
    squares = np.append((totals := terms.squared_gradient.sum(1)), totals.sum())
    best = np.stack([subspace.best_setting(one) for one in orthogonal])

    spectral = [energy_curves.UpstreamSpectrum(one.values, one.components, one.squared_gradient) for one in modes]
    plain = subspace.upstream_terms(spectral, output)
    means = [
        jacobian.transposed_product(jacobian.product(g))
        for jacobian, g in zip(snapshot.upstream, snapshot.gradients, strict=False)
    ]
    crossed = [subspace.cross_terms(mean, g, x) for mean, (_, g, x) in zip(_double(means), hidden, strict=True)]
    upstream_guess = [subspace.activation_quantities(plain), subspace.weight_quantities(plain, [*crossed, last])]
    found = {
        "kept_energy": np.divide(kept, squares[:, None], out=np.full_like(kept, np.nan), where=squares[:, None] > 0),
        "best_k": np.where(best >= 0, ks[best], np.nan),
        "best_k_of_each_layer": np.full(len(gradients) + 1, np.nan),
    }
    if squares[-1] > 0:
        found["best_k_of_each_layer"][: len(modes)] = subspace.best_k_of_each_layer(curves, output)
    for key, guesses in (("orthogonal", orthogonal), ("upstream", upstream_guess)):
        index = 0 if key == "upstream" else slice(None)
        found[f"{key}_bias"] = np.stack([np.sqrt(one.squared_bias[:, index]) for one in guesses])
        found[f"{key}_variance"] = np.stack([one.variance[:, index] for one in guesses])
        found[f"{key}_efficiency"] = np.stack([one.efficiency[:, index] for one in guesses])
    return found


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
    if estimator.shared and isinstance(estimator.noise, Gaussian):
        joint = estimator.layers == "joint"
        cosines = cosine.weight_perturbation if joint else batch_cosine.separate_weight_perturbation
        found["cosine"] = cosines(squares, sizes)
        found["descent_probability"] = descent.weight_perturbation(squares, layers=estimator.layers)
    return {name: np.stack([np.full_like(values, np.nan), values]) for name, values in found.items()}


def _linear(snapshot: Snapshot, estimator: Any) -> Prediction:
    return _linear_along(snapshot, estimator, FACTORS[type(estimator)](snapshot, estimator))


def _linear_along(snapshot: Snapshot, estimator: Any, factors: Sequence[Factor]) -> Prediction:
    """The general law of MATH.md §3 for directions A ε, A given tap by tap: most of the time goes into making it."""
    found = _quantities(snapshot, _linear_moments(snapshot, estimator, factors))
    norms = [wang2025.covariance_norm(factor) for factor in factors]
    found["wang2025_covariance_norm"] = np.array([*norms, np.nan])
    if isinstance(estimator.noise, Gaussian):
        found |= _distributional(snapshot, estimator, factors, _double(snapshot.gradients))
    return found


def _linear_moments(snapshot: Snapshot, estimator: Any, factors: Sequence[Factor]) -> list[Moments]:
    noise_units = _noise_units(snapshot, estimator)
    return linear_guess.moments(
        _double(snapshot.gradients),
        factors,
        [estimator.noise.fourth(n) for n in noise_units],
        [estimator.noise.pair(n) for n in noise_units],
        shared=estimator.shared,
        slope=estimator.slope,
        layers=estimator.layers,
    )


def _noise_units(snapshot: Snapshot, estimator: Any) -> list[int]:
    """Entries of one noise vector, tap by tap: the tap's own units, or the next tap's for the upstream family."""
    units = [tap.units for tap in snapshot.taps]
    return units if isinstance(estimator, estimators.ActivityPerturbation) else [*units[1:], units[-1]]


def _distributional(
    snapshot: Snapshot, estimator: Any, factors: Sequence[Factor], gradients: list[Array]
) -> Prediction:
    """What needs more of the guess than two moments: the probability of descent, and the cosine at the activations.

    The mean cosine has a closed form for independent noise and example slopes, in activation space only: in weight
    space the examples' directions meet in one norm.
    """
    kernels = [x @ x.T for x in _double([tap.inputs for tap in snapshot.taps])]
    shared, slope, layers = estimator.shared, estimator.slope, estimator.layers
    descents = [
        descent.descent_probability(gradients, factors, kernel, shared=shared, slope=slope, layers=layers)
        for kernel in (None, kernels)
    ]
    found = {"descent_probability": np.stack(descents)}
    if not shared and slope == "example":
        spectra = [spectrum(factor, gradient) for factor, gradient in zip(factors, gradients, strict=True)]
        squares = [float((gradient**2).sum()) for gradient in gradients]
        cosines = batch_cosine.activation_cosines(spectra, squares, layers=layers)
        found["cosine"] = np.stack([cosines, np.full_like(cosines, np.nan)])
    return found


def _identity(snapshot: Snapshot) -> Diagonal:
    return Diagonal(np.ones(snapshot.taps[-1].outputs.shape))


def _activity(snapshot: Snapshot, estimator: estimators.ActivityPerturbation) -> list[Factor]:
    scales = [np.ones(tap.outputs.shape) for tap in snapshot.taps]
    if estimator.active_only:
        scales[:-1] = [(derivative != 0).astype(float) for _, derivative in _jacobians(snapshot)]
    return [Diagonal(scale) for scale in scales]


def _jacobians(snapshot: Snapshot) -> list[tuple[Array, Array]]:
    """The next tap's weight (next_unit, unit) and φ' (example, unit) of every tap but the last."""
    return [(_double([j.weight])[0], _double([j.derivative])[0]) for j in snapshot.upstream]


def _upstream(snapshot: Snapshot, estimator: estimators.Upstream) -> list[Factor]:
    return [*(upstream.upstream(*jacobian) for jacobian in _jacobians(snapshot)), _identity(snapshot)]


def _upstream_guess(snapshot: Snapshot, estimator: estimators.Upstream) -> Prediction:
    if not estimator.normalise:
        return _linear(snapshot, estimator)
    if estimator.shared or not isinstance(estimator.noise, Gaussian):
        return {}
    weights, derivatives = zip(*_jacobians(snapshot), strict=True)
    return _quantities(
        snapshot,
        normalised_upstream.moments(
            _double(snapshot.gradients), weights, derivatives, slope=estimator.slope, layers=estimator.layers
        ),
    )


def _orthogonal(snapshot: Snapshot, estimator: estimators.OrthogonalUpstream) -> list[LowRank | Diagonal]:
    # What counts as a zero singular value depends on the precision that the network computes in.
    precision = torch.finfo(snapshot.outputs.dtype).eps
    k, which = estimator.k, estimator.which
    return [
        *(upstream.orthogonal(*jacobian, k, which, precision) for jacobian in _jacobians(snapshot)),
        _identity(snapshot),
    ]


def _orthogonal_guess(snapshot: Snapshot, estimator: estimators.OrthogonalUpstream) -> Prediction:
    factors = _orthogonal(snapshot, estimator)
    pairs = zip(_double(snapshot.gradients), factors, strict=True)
    overlaps = [wang2025.overlap(g, f.left) if isinstance(f, LowRank) else (np.nan, np.nan) for g, f in pairs]
    plain, squared = np.array([*overlaps, (np.nan, np.nan)]).T
    found = _linear_along(snapshot, estimator, factors)
    return found | {"wang2025_overlap": plain, "wang2025_squared_overlap": squared}


def _newton_schulz(snapshot: Snapshot, estimator: estimators.NewtonSchulzUpstream) -> list[Factor]:
    factors: list[Factor] = []
    for jacobian in _jacobians(snapshot):
        values = upstream.singular_triplets(*jacobian)[1]
        norms = np.where(values[:, 0] > 0, values[:, 0], 1.0)
        relative = values[:, min(estimator.k, values.shape[1]) - 1] / norms
        coefficients = nearest(torch.from_numpy(relative)).numpy()
        factors.append(upstream.newton_schulz(*jacobian, np.repeat(coefficients[:, None, :], COMPOSITIONS, axis=1)))
    return [*factors, _identity(snapshot)]


def _preconditioned(snapshot: Snapshot, estimator: estimators.PreconditionedUpstream) -> list[Factor]:
    jacobians = _jacobians(snapshot)
    return [*(upstream.preconditioned(*jacobian, estimator.sigma) for jacobian in jacobians), _identity(snapshot)]


def _mixing_moments(snapshot: Snapshot, estimator: estimators.ActivationMixing) -> list[Moments]:
    gradients, jacobians = _double(snapshot.gradients), _jacobians(snapshot)
    inputs = _double([tap.inputs for tap in snapshot.taps[1:]])
    sizes = [snapshot.n_examples] * len(jacobians) + [snapshot.taps[-1].units]
    return activation_mixing.moments(
        [x[:, : weight.shape[1]] for x, (weight, _) in zip(inputs, jacobians, strict=True)],
        [g @ weight for g, (weight, _) in zip(gradients[1:], jacobians, strict=True)],
        [derivative for _, derivative in jacobians],
        gradients[-1],
        [estimator.noise.fourth(n) for n in sizes],
        [estimator.noise.pair(n) for n in sizes],
        normalise=estimator.normalise,
        slope=estimator.slope,
        layers=estimator.layers,
    )


def _mixing(snapshot: Snapshot, estimator: estimators.ActivationMixing) -> Prediction:
    rotation_invariant = abs(estimator.noise.fourth(8) - 3 * estimator.noise.pair(8)) < 1e-12
    if estimator.normalise and not rotation_invariant:
        return {}
    return _quantities(snapshot, _mixing_moments(snapshot, estimator))


def _multi_tangent(snapshot: Snapshot, estimator: estimators.MultiTangent) -> Prediction:
    gradients = _double(snapshot.weight_gradients)
    sizes, k, layers = [g.size for g in gradients], estimator.k, estimator.layers
    squares = [float((g**2).sum()) for g in gradients]
    if estimator.combine == "mean":
        law = ([estimator.noise.fourth(n) for n in sizes], [estimator.noise.pair(n) for n in sizes])
        second = multi_tangent.second_moments(squares, sizes, k, *law, layers=layers)
        means = gradients
    elif isinstance(estimator.noise, Gaussian):
        second = projection.second_moments(squares, sizes, k, layers=layers)
        means = [g * k / (g.size if layers == "separate" else sum(sizes)) for g in gradients]
    else:
        return {}
    found = _with_squared_bias(quantities.quantities(gradients, means, second))
    return {name: np.stack([np.full_like(values, np.nan), values]) for name, values in found.items()}


def _minibatch_moments(snapshot: Snapshot, estimator: estimators.Minibatch) -> list[Moments]:
    return [minibatch.gradient_moments(gradient, estimator.size) for gradient in _double(snapshot.gradients)]


def _minibatch(snapshot: Snapshot, estimator: estimators.Minibatch) -> Prediction:
    return _quantities(snapshot, _minibatch_moments(snapshot, estimator))


def _averaged(snapshot: Snapshot, estimator: estimators.Averaged) -> Prediction:
    single = _moments_of(snapshot, estimator.estimator)
    if single is None:
        return {}
    return _quantities(snapshot, [averaging.averaged_moments(moment, estimator.n_averaged) for moment in single])


def _subsampled(snapshot: Snapshot, estimator: estimators.Subsampled) -> Prediction:
    inner: Any = estimator.estimator
    if type(inner) not in FACTORS or (inner.shared and inner.slope == "batch"):
        return {}
    whole, by_example = (_moments_of(snapshot, one) for one in (inner, replace(inner, slope="example")))
    if whole is None or by_example is None:
        return {}
    pairs = zip(whole, by_example, strict=True)
    return _quantities(snapshot, [minibatch.subsampled_moments(*pair, estimator.size) for pair in pairs])


def _moments_of(snapshot: Snapshot, estimator: Any) -> list[Moments] | None:
    """Moments of an estimator's activation guess, where they are known."""
    if isinstance(estimator, estimators.Upstream) and estimator.normalise:
        return None
    if type(estimator) in FACTORS:
        return _linear_moments(snapshot, estimator, FACTORS[type(estimator)](snapshot, estimator))
    if isinstance(estimator, estimators.Minibatch):
        return _minibatch_moments(snapshot, estimator)
    return None


FACTORS: dict[type, Callable[[Snapshot, Any], Sequence[Factor]]] = {
    estimators.ActivityPerturbation: _activity,
    estimators.Upstream: _upstream,
    estimators.OrthogonalUpstream: _orthogonal,
    estimators.NewtonSchulzUpstream: _newton_schulz,
    estimators.PreconditionedUpstream: _preconditioned,
}
PREDICTIONS: dict[type, Callable[[Snapshot, Any], Prediction]] = {
    estimators.Backpropagation: _backpropagation,
    estimators.WeightPerturbation: _weight,
    estimators.ActivityPerturbation: _linear,
    estimators.Upstream: _upstream_guess,
    estimators.OrthogonalUpstream: _orthogonal_guess,
    estimators.NewtonSchulzUpstream: _linear,
    estimators.PreconditionedUpstream: _linear,
    estimators.ActivationMixing: _mixing,
    estimators.MultiTangent: _multi_tangent,
    estimators.Minibatch: _minibatch,
    estimators.Averaged: _averaged,
    estimators.Subsampled: _subsampled,
}
