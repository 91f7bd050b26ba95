"""diagnose(): what was measured beside what theory predicts, under the same names. The only file where the two meet.

`PREDICTIONS` says, for each class of estimator, how its closed form is asked for. An estimator without an entry has no
closed form: its prediction is NaN throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from fganalysis import estimators, schema
from fganalysis.estimators import Estimator, label, resolve
from fganalysis.estimators.newton_schulz_polynomials import COMPOSITIONS, nearest
from fganalysis.intervals import Estimate
from fganalysis.jacobian import OVERSAMPLING
from fganalysis.noise import Gaussian
from fganalysis.sampling import coordinates, sample, squared_gradients
from fganalysis.snapshot import Snapshot
from fganalysis.spectra import UpstreamModes, spectra, upstream_modes
from fganalysis.variance_parts import VarianceParts
from theory import (
    activation_mixing,
    averaging,
    batch_cosine,
    cosine,
    descent,
    energy_curves,
    feedback,
    linear_guess,
    local_loss,
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


def predict_variance_parts(estimator: estimators.Subsampled, snapshot: Snapshot) -> VarianceParts:
    """The two parts of the variance that `fganalysis.variance_parts` measures, in closed form.

    (space, layer), layer "all" last; the standard errors are zero, and NaN stands where no closed form is known.
    """
    found = np.full((2, len(schema.SPACES), len(snapshot.taps) + 1), np.nan)
    moments, guess = _moments_of(snapshot, estimator), _weight_guess(snapshot, estimator)
    if moments is not None:
        for index, (moment, x) in enumerate(zip(moments, _inputs(snapshot), strict=True)):
            for space, kernel in enumerate((None, x @ x.T)):
                parts = minibatch.parts(moment, estimator.size, kernel)
                found[:, space, index] = parts.within, parts.between
    elif guess is not None:
        found[:, 1, :-1] = guess.within, guess.between
    found[..., -1] = found[..., :-1].sum(-1)
    errors = np.where(np.isnan(found), np.nan, 0.0)
    return VarianceParts(*(Estimate(value, error, value, value) for value, error in zip(found, errors, strict=True)))


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
    gradients, inputs = _double(snapshot.gradients), _inputs(snapshot)
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


def _inputs(snapshot: Snapshot) -> list[Array]:
    return _double([tap.inputs for tap in snapshot.taps])


def _no_closed_form(snapshot: Snapshot, estimator: Any) -> Prediction:
    return {}


def _quantities(snapshot: Snapshot, moments: Sequence[Moments]) -> Prediction:
    """Quantities over (space, layer) and the seed paper's two, from the moments of every tap's activation guess."""
    gradients, inputs = _double(snapshot.gradients), _inputs(snapshot)
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
    ones = np.ones((len(schema.SPACES), len(snapshot.taps) + 1))
    return _from_moments(snapshot, estimator) | {"cosine": ones, "descent_probability": ones}


def _backpropagation_moments(snapshot: Snapshot, estimator: estimators.Backpropagation) -> list[Moments]:
    return [feedback.deterministic(gradient) for gradient in _double(snapshot.gradients)]


@dataclass(frozen=True, eq=False)
class _WeightGuess:
    """A guess made at the weights: E Ĝ_l (unit, input) a tap, and the parts of tr Cov Ĝ_l, (layer,).

    ``between`` is the variance over the rows of a subsampled guess, zero on the whole batch.
    """

    means: list[Array]
    within: Array
    between: Array

    def prediction(self, snapshot: Snapshot) -> Prediction:
        """Quantities over (space, layer), NaN in activation space."""
        second = np.array([float((mean**2).sum()) for mean in self.means]) + self.within + self.between
        return _at_weights(quantities.quantities(_double(snapshot.weight_gradients), self.means, second))


def _at_weights(found: Prediction) -> Prediction:
    both = _with_squared_bias(found) if "bias" in found else found
    return {name: np.stack([np.full_like(values, np.nan), values]) for name, values in both.items()}


def _weight_guess(snapshot: Snapshot, estimator: Any, size: int | None = None) -> _WeightGuess | None:
    """What an estimator of weight gradients guesses on the batch, or on ``size`` random rows; None where not known.

    Given the rows every second moment here is linear in the squared norms of their gradients, whose expectation is
    ‖G_l‖² plus the minibatch gradient's variance.
    """
    if isinstance(estimator, estimators.Subsampled):
        return None if size is not None else _weight_guess(snapshot, estimator.estimator, estimator.size)
    if isinstance(estimator, estimators.Averaged):
        single, n = _weight_guess(snapshot, estimator.estimator, size), estimator.n_averaged
        if single is None:
            return None
        # Rows that are drawn once for all guesses do not average out.
        return _WeightGuess(single.means, single.within / n, single.between / (n if size is None else 1))
    if not isinstance(estimator, estimators.WeightPerturbation | estimators.MultiTangent):
        return None
    gradients, between = _double(snapshot.weight_gradients), np.zeros(len(snapshot.taps))
    if size is not None:
        pairs = zip(_double(snapshot.gradients), _inputs(snapshot), strict=True)
        between = np.array([minibatch.variance((g @ g.T) * (x @ x.T), size) for g, x in pairs])
    squares = np.array([float((gradient**2).sum()) for gradient in gradients]) + between
    second = _second_moments(snapshot, estimator, squares, size)
    if second is None:
        return None
    kept = _kept(estimator, [gradient.size for gradient in gradients])
    means = [share * gradient for share, gradient in zip(kept, gradients, strict=True)]
    return _WeightGuess(means, np.maximum(second - kept**2 * squares, 0.0), kept**2 * between)


def _kept(estimator: Any, sizes: list[int]) -> Array:
    """E Ĝ_l over G_l, (layer,)."""
    if isinstance(estimator, estimators.WeightPerturbation) or estimator.combine == "mean":
        return np.ones(len(sizes))
    return estimator.k / np.asarray(sizes if estimator.layers == "separate" else [sum(sizes)] * len(sizes), float)


def _second_moments(snapshot: Snapshot, estimator: Any, squares: Array, size: int | None) -> Array | None:
    """E‖Ĝ_l‖² (layer,) from ‖G_l‖² or its expectation over random rows."""
    sizes, layers = [tap.weight.numel() for tap in snapshot.taps], estimator.layers
    law = ([estimator.noise.fourth(n) for n in sizes], [estimator.noise.pair(n) for n in sizes])
    if isinstance(estimator, estimators.WeightPerturbation):
        if estimator.shared:
            return weight_perturbation.second_moments(squares, sizes, *law, layers=layers)
        pairs = zip(_double(snapshot.gradients), _inputs(snapshot), strict=True)
        each = np.array([(g**2).sum(1) * (x**2).sum(1) for g, x in pairs])
        row = 1.0 if size is None else minibatch.inclusion(snapshot.n_examples, size)[0]
        return weight_perturbation.second_moments_per_example(each / row, squares, sizes, *law, layers=layers)
    if estimator.combine == "mean":
        return multi_tangent.second_moments(squares, sizes, estimator.k, *law, layers=layers)
    if isinstance(estimator.noise, Gaussian):
        return projection.second_moments(squares, sizes, estimator.k, layers=layers)
    return None


def _weight(snapshot: Snapshot, estimator: estimators.WeightPerturbation) -> Prediction:
    found = _from_moments(snapshot, estimator)
    if not (estimator.shared and isinstance(estimator.noise, Gaussian)):
        return found
    sizes = [tap.weight.numel() for tap in snapshot.taps]
    squares = [float((gradient**2).sum()) for gradient in _double(snapshot.weight_gradients)]
    joint = estimator.layers == "joint"
    cosines = cosine.weight_perturbation if joint else batch_cosine.separate_weight_perturbation
    descents = descent.weight_perturbation(squares, layers=estimator.layers)
    return found | _at_weights({"cosine": cosines(squares, sizes), "descent_probability": descents})


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
    kernels = [x @ x.T for x in _inputs(snapshot)]
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
    k, which, iterations, jacobians = estimator.k, estimator.which, estimator.iterations, _jacobians(snapshot)
    if iterations is None or k == "rank":
        found = [upstream.orthogonal(*jacobian, k, which, precision) for jacobian in jacobians]
    else:
        found = [upstream.iterated(*jacobian, k, iterations, OVERSAMPLING) for jacobian in jacobians]
    return [*found, _identity(snapshot)]


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


def _feedback(snapshot: Snapshot, estimator: Any) -> list[Moments]:
    """Feedback alignment, or direct feedback: deterministic, given the matrices."""
    chained = isinstance(estimator, estimators.FeedbackAlignment)
    guess = feedback.chained_feedback if chained else feedback.direct_feedback
    derivatives = [derivative for _, derivative in _jacobians(snapshot)]
    guesses = guess(derivatives, _double(snapshot.gradients)[-1], _double(estimator.matrices(snapshot)))
    return [feedback.deterministic(one) for one in guesses]


def _learned_feedback(snapshot: Snapshot, estimator: estimators.ForwardDirectFeedback) -> list[Moments] | None:
    started = estimator.feedback
    if started and len(started[0]) > 1:
        return None
    weights, derivatives = [w for w, _ in _jacobians(snapshot)], [d for _, d in _jacobians(snapshot)]
    units = [tap.units for tap in snapshot.taps[:-1]]
    found = feedback.forward_direct_feedback(
        feedback.output_jacobians(weights, derivatives),
        derivatives,
        _double(snapshot.gradients)[-1],
        estimator.rate,
        estimator.steps,
        initial=None if started is None else [matrix[0] for matrix in _double(started)],
        fourth=[estimator.noise.fourth(n) for n in units],
        pair=[estimator.noise.pair(n) for n in units],
    )
    return [layer.moments() for layer in found]


def _adam_feedback(snapshot: Snapshot, estimator: estimators.ForwardDirectFeedbackAdam) -> list[Moments] | None:
    if estimator.steps:
        return None
    matrices = None if estimator.optimiser is None else estimator.optimiser.values
    return _learned_feedback(snapshot, estimators.ForwardDirectFeedback(feedback=matrices))


def _local_loss(snapshot: Snapshot, estimator: estimators.LocalLoss) -> list[Moments] | None:
    """The projection on the gradient of a linear head under the mean cross-entropy."""
    untrained = estimator.mode == "trained" and estimator.optimiser is None
    if estimator.head != "linear" or estimator.mode == "redrawn" or untrained or not _is_cross_entropy(snapshot):
        return None
    targets, jacobians = snapshot.targets.cpu().numpy(), _jacobians(snapshot)
    blocks = [x[:, : weight.shape[1]] for x, (weight, _) in zip(_inputs(snapshot)[1:], jacobians, strict=True)]

    def head_gradients(trained: bool) -> list[Array]:
        found = []
        heads = [_double(head) for head in estimator.own_heads(snapshot, trained)]
        for block, (_, derivative), (weight, bias) in zip(blocks, jacobians, heads, strict=True):
            found.append(local_loss.linear_head_gradient(block, derivative, weight, bias, targets))
        return found

    gradients = _double(snapshot.gradients)
    aims = gradients if estimator.target == "global" else head_gradients(estimator.optimiser is not None)
    kernels = [x @ x.T if estimator.space == "weight" else None for x in _inputs(snapshot)]
    hidden = zip(aims, head_gradients(estimator.mode == "trained"), kernels, strict=False)
    guesses = [*(local_loss.projected(*one) for one in hidden), gradients[-1]]
    return [feedback.deterministic(one) for one in guesses]


def _is_cross_entropy(snapshot: Snapshot) -> bool:
    """Whether the exact gradient at the outputs is that of the mean cross-entropy against class indices."""
    targets, error = snapshot.targets.cpu().numpy(), _double(snapshot.gradients)[-1]
    if targets.ndim != 1 or targets.dtype.kind not in "iu" or snapshot.outputs.shape != error.shape:
        return False
    if not np.isin(targets, np.arange(error.shape[1])).all():
        return False
    expected = local_loss.cross_entropy_error(_double([snapshot.outputs])[0], targets)
    return bool(np.allclose(error, expected, rtol=1e-4, atol=1e-5 / len(error)))


def _mixing_moments(snapshot: Snapshot, estimator: estimators.ActivationMixing) -> list[Moments] | None:
    rotation_invariant = abs(estimator.noise.fourth(8) - 3 * estimator.noise.pair(8)) < 1e-12
    if estimator.normalise and not rotation_invariant:
        return None
    gradients, jacobians = _double(snapshot.gradients), _jacobians(snapshot)
    sizes = [snapshot.n_examples] * len(jacobians) + [snapshot.taps[-1].units]
    return activation_mixing.moments(
        [x[:, : weight.shape[1]] for x, (weight, _) in zip(_inputs(snapshot)[1:], jacobians, strict=True)],
        [g @ weight for g, (weight, _) in zip(gradients[1:], jacobians, strict=True)],
        [derivative for _, derivative in jacobians],
        gradients[-1],
        [estimator.noise.fourth(n) for n in sizes],
        [estimator.noise.pair(n) for n in sizes],
        normalise=estimator.normalise,
        slope=estimator.slope,
        layers=estimator.layers,
    )


def _minibatch_moments(snapshot: Snapshot, estimator: estimators.Minibatch) -> list[Moments]:
    return [minibatch.gradient_moments(gradient, estimator.size) for gradient in _double(snapshot.gradients)]


def _averaged_moments(snapshot: Snapshot, estimator: estimators.Averaged) -> list[Moments] | None:
    single = _moments_of(snapshot, estimator.estimator)
    return single and [averaging.averaged_moments(moment, estimator.n_averaged) for moment in single]


def _subsampled_moments(snapshot: Snapshot, estimator: estimators.Subsampled) -> list[Moments] | None:
    sloped = _with_own_slopes(estimator.estimator)
    if sloped is None:
        return None
    whole, by_example = (_moments_of(snapshot, one) for one in (estimator.estimator, sloped))
    if whole is None or by_example is None:
        return None
    pairs = zip(whole, by_example, strict=True)
    return [minibatch.subsampled_moments(*pair, estimator.size) for pair in pairs]


def _with_own_slopes(inner: Any) -> Any:
    """The estimator with a slope for each example; None unless its guess on some rows is that part of one on all."""
    if isinstance(inner, estimators.Averaged):
        single = _with_own_slopes(inner.estimator)
        return single and replace(inner, estimator=single)
    if type(inner) in FACTORS:
        return None if inner.shared and inner.slope == "batch" else replace(inner, slope="example")
    apart = isinstance(inner, estimators.Backpropagation | estimators.FeedbackAlignment | estimators.DirectFeedback)
    learned = isinstance(inner, estimators.ForwardDirectFeedback | estimators.ForwardDirectFeedbackAdam)
    local = isinstance(inner, estimators.LocalLoss) and inner.space == "activation"
    return inner if apart or local or (learned and inner.steps == 0) else None


def _moments_of(snapshot: Snapshot, estimator: Any) -> list[Moments] | None:
    """Moments of an estimator's activation guess, where they are known."""
    if type(estimator) in FACTORS:
        if isinstance(estimator, estimators.Upstream) and estimator.normalise:
            return None
        return _linear_moments(snapshot, estimator, FACTORS[type(estimator)](snapshot, estimator))
    make = MOMENTS.get(type(estimator))
    return None if make is None else make(snapshot, estimator)


def _from_moments(snapshot: Snapshot, estimator: Any) -> Prediction:
    """Whatever follows from two moments, of the guess at the activations or, where there is none, at the weights."""
    moments = _moments_of(snapshot, estimator)
    if moments is not None:
        return _quantities(snapshot, moments)
    guess = _weight_guess(snapshot, estimator)
    return {} if guess is None else guess.prediction(snapshot)


def _never_random(snapshot: Snapshot, estimator: Any) -> Prediction:
    """For guesses that are all alike the cosine and the descent follow as well; not for FDFA's histories."""
    found = _from_moments(snapshot, estimator)
    learned = isinstance(estimator, estimators.ForwardDirectFeedback | estimators.ForwardDirectFeedbackAdam)
    if not found or (learned and estimator.steps):
        return found
    along = found["shrinkage"]
    cosines = np.where(along == 0, 0.0, np.sign(along) * np.sqrt(found["efficiency"]))
    return found | {"cosine": cosines, "descent_probability": np.where(np.isnan(along), np.nan, along > 0)}


FACTORS: dict[type, Callable[[Snapshot, Any], Sequence[Factor]]] = {
    estimators.ActivityPerturbation: _activity,
    estimators.Upstream: _upstream,
    estimators.OrthogonalUpstream: _orthogonal,
    estimators.NewtonSchulzUpstream: _newton_schulz,
    estimators.PreconditionedUpstream: _preconditioned,
}
MOMENTS: dict[type, Callable[[Snapshot, Any], list[Moments] | None]] = {
    estimators.Backpropagation: _backpropagation_moments,
    estimators.ActivationMixing: _mixing_moments,
    estimators.FeedbackAlignment: _feedback,
    estimators.DirectFeedback: _feedback,
    estimators.ForwardDirectFeedback: _learned_feedback,
    estimators.ForwardDirectFeedbackAdam: _adam_feedback,
    estimators.LocalLoss: _local_loss,
    estimators.Minibatch: _minibatch_moments,
    estimators.Averaged: _averaged_moments,
    estimators.Subsampled: _subsampled_moments,
}
PREDICTIONS: dict[type, Callable[[Snapshot, Any], Prediction]] = {
    estimators.Backpropagation: _backpropagation,
    estimators.WeightPerturbation: _weight,
    estimators.ActivityPerturbation: _linear,
    estimators.Upstream: _upstream_guess,
    estimators.OrthogonalUpstream: _orthogonal_guess,
    estimators.NewtonSchulzUpstream: _linear,
    estimators.PreconditionedUpstream: _linear,
    estimators.ActivationMixing: _from_moments,
    estimators.MultiTangent: _from_moments,
    estimators.FeedbackAlignment: _never_random,
    estimators.DirectFeedback: _never_random,
    estimators.ForwardDirectFeedback: _never_random,
    estimators.ForwardDirectFeedbackAdam: _never_random,
    estimators.LocalLoss: _never_random,
    estimators.Minibatch: _from_moments,
    estimators.Averaged: _from_moments,
    estimators.Subsampled: _from_moments,
}
