"""FDFA at frozen weights: variance, lag and spread of its guess, from independent histories, beside their closed forms.

    pooled     the guess of one step at rate 1: the activity-perturbed gradient φ' ⊙ (Mᵀe) that the matrices average,
               whose mean is g + spread and whose variance is that which α/(2−α) multiplies
    lag        E ĝ_t − E ĝ_pooled, from pairs of independent histories
    spread     E ĝ_pooled − g

Squared norms come as means over pairs of independent histories, so that noise does not enter them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import ActivityPerturbation, Estimator, ForwardDirectFeedback, WeightPerturbation
from fganalysis.estimators.guesses import ActivationEstimates
from fganalysis.results.schema import SPACES
from fganalysis.statistics import quantities as moments
from fganalysis.training.datasets import Dataset
from studies.kit import kept_data, resumed
from studies.kit.devices import on
from theory import feedback

Array = NDArray[np.float64]
Measured = tuple[Array, Array]  # value, standard error
TIMES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # α·t at which a history is looked at; after the last it is stationary.
HIDDEN = "hidden"
COMPARED: dict[str, Estimator] = {"weight": WeightPerturbation(), "activity": ActivityPerturbation()}


@dataclass(frozen=True)
class Sizes:
    """How much is drawn: independent histories, single steps for each of them, the longest history, other guesses."""

    histories: int
    pooled: int
    longest: int
    guesses: int


def snapshot_of(data: Dataset, width: int, epochs: int, examples: int, seed: int, scratch: Path) -> Snapshot:
    """Two hidden ReLU layers on the first examples, after epochs of backpropagation (Adam, rate 1e-3, batch 64)."""
    batch, classes = data.batch(examples), int(data.train_targets.max()) + 1
    network: torch.nn.Module = fga.networks.mlp([data.train_inputs.shape[1], width, width, classes], seed=seed)
    network = network.to(batch[0].device)
    if epochs:
        adam = partial(torch.optim.Adam, lr=1e-3)
        run = resumed.backpropagated(network, data, scratch, epochs=epochs, seed=seed, batch_size=64, optimizer=adam)
        network = run.network
    return fga.capture(network, torch.nn.functional.cross_entropy, *batch)


def measure(
    dataset: str,
    width: int,
    epochs: int,
    examples: int,
    rates: tuple[float, ...],
    sizes: Sizes,
    seed: int,
    device: str,
    scratch: Path,
) -> xr.Dataset:
    """Every term on one network, after some epochs of training; see `compared`."""
    data = on(device, kept_data.load(dataset))
    return compared(snapshot_of(data, width, epochs, examples, seed, scratch), rates, sizes, seed)


def compared(snapshot: Snapshot, rates: Sequence[float], sizes: Sizes, seed: int) -> xr.Dataset:
    """Every term, measured with standard errors and predicted, over (rate, time, space, layer) or (space, layer)."""
    dataset = measured(snapshot, rates, sizes, seed)
    layers, found = dataset["layer"].values, dict[str, tuple]()
    for name, estimator in COMPARED.items():
        variance = sampled(snapshot, estimator, sizes.guesses, seed)["variance"]
        _add(found, f"{name}_variance", ("space", "layer"), variance)
        predicted = fga.predict(snapshot, estimator)["variance"].sel(layer=layers[:-1]).values
        found[f"{name}_variance_predicted"] = (("space", "layer"), with_hidden(predicted))
    return dataset.assign(found | _predicted(snapshot, rates, dataset["step"].values.clip(min=0)))


def measured(snapshot: Snapshot, rates: Sequence[float], sizes: Sizes, seed: int) -> xr.Dataset:
    """What is measured of FDFA, on any network, over (rate, time, space, layer) or (space, layer)."""
    generator = torch.Generator(snapshot.device).manual_seed(seed)
    layers = [*snapshot.layers[:-1], HIDDEN]
    squares = with_hidden(squared_gradients(snapshot))
    means, pooled = _pooled(snapshot, sizes, generator)
    found: dict[str, tuple] = {"squared_gradient": (("space", "layer"), squares)}
    _add(found, "pooled_variance", ("space", "layer"), pooled["variance"])
    _add(found, "spread", ("space", "layer"), pooled["squared_bias"])
    steps = np.array([[max(1, round(time / rate)) for time in TIMES] for rate in rates])
    steps[np.outer(1 / np.array(rates), TIMES) > sizes.longest] = 0
    names = ("variance", "squared_bias", "mse", "efficiency", "lag")
    shape = (2, len(rates), len(TIMES), 2, len(layers))
    terms = {name: np.full(shape, np.nan) for name in names}
    for i, rate in enumerate(rates):
        for j, at_mark in _history(snapshot, rate, steps[i], sizes.histories, generator):
            quantities = _quantities(snapshot, at_mark, means)
            for name in names:
                terms[name][:, i, j] = quantities[name]
    for name in names:
        _add(found, name, ("rate", "time", "space", "layer"), (terms[name][0], terms[name][1]))
    found["step"] = (("rate", "time"), np.where(steps > 0, steps, -1))
    return xr.Dataset(found, coords={"rate": list(rates), "time": list(TIMES), "space": list(SPACES), "layer": layers})


def _add(found: dict[str, tuple], name: str, dims: tuple[str, ...], measured: Measured) -> None:
    found[name], found[f"{name}_se"] = (dims, measured[0]), (dims, measured[1])


def squared_gradients(snapshot: Snapshot) -> Array:
    spaces = (snapshot.gradients, snapshot.weight_gradients)
    return np.array([[float(gradient.double().square().sum()) for gradient in space[:-1]] for space in spaces])


def with_hidden(values: Array) -> Array:
    """Of the hidden layers, (space, layer, …), with their sum appended."""
    found: Array = np.concatenate([values, values.sum(1, keepdims=True)], axis=1)
    return found


def _pooled(
    snapshot: Snapshot, sizes: Sizes, generator: torch.Generator
) -> tuple[ActivationEstimates, dict[str, Measured]]:
    """Means of single steps at rate 1, one for each history, and what all those steps say."""
    estimator, scalars = ForwardDirectFeedback(rate=1.0, steps=1), []
    totals: list[Tensor] = []
    for _ in range(sizes.pooled):
        guesses = estimator(snapshot, sizes.histories, generator)
        scalars.append(guesses.inner_products(snapshot))
        totals = [a + b for a, b in zip(totals, guesses.guesses, strict=True)] if totals else list(guesses.guesses)
    means = ActivationEstimates(tuple(total / sizes.pooled for total in totals))
    inner, norms = (torch.cat([one[index] for one in scalars], dim=-1) for index in (0, 1))
    group = np.tile(np.arange(sizes.histories), sizes.pooled)
    gram = with_hidden(_gram(snapshot, means)[:, :-1])
    return means, _of(snapshot, inner.double().cpu().numpy(), norms.double().cpu().numpy(), gram, group)


def _history(
    snapshot: Snapshot, rate: float, steps: NDArray[np.int64], histories: int, generator: torch.Generator
) -> list[tuple[int, ActivationEstimates]]:
    """Guesses of independent histories from B = 0, at each of the steps that are above zero."""
    state, found = ForwardDirectFeedback(rate=rate).initialised(snapshot, histories), []
    for step in range(1, int(steps.max(initial=0)) + 1):
        state = state.advanced(snapshot, generator)
        for index in np.flatnonzero(steps == step):
            found.append((int(index), state(snapshot, histories, generator)))
    return found


def _quantities(snapshot: Snapshot, guesses: ActivationEstimates, means: ActivationEstimates) -> dict[str, Measured]:
    """Quantities of `moments.quantities` over (space, layer), and the squared norm of the lag."""
    n = len(guesses)
    both = ActivationEstimates(tuple(torch.cat(pair) for pair in zip(guesses.guesses, means.guesses, strict=True)))
    gram = with_hidden(_gram(snapshot, both)[:, :-1])
    own, other, crossed = gram[..., :n, :n], gram[..., n:, n:], gram[..., :n, n:]
    inner, norms = (scalars.double().cpu().numpy() for scalars in guesses.inner_products(snapshot))
    found = _of(snapshot, inner, norms, own, np.arange(n))
    lags = own + other - crossed - np.swapaxes(crossed, -1, -2)
    return found | {"lag": _of(snapshot, inner, norms, lags, np.arange(n))["squared_bias"]}


def _of(snapshot: Snapshot, inner: Array, norms: Array, gram: Array, group: NDArray[np.int64]) -> dict[str, Measured]:
    squares = squared_gradients(snapshot)
    inner, norms = (with_hidden(array[:, : squares.shape[1]]) for array in (inner, norms))
    found = moments.quantities(inner, norms, gram, group, with_hidden(squares))
    return {name: (estimate.value, estimate.se) for name, estimate in found.items()}


def _gram(snapshot: Snapshot, means: ActivationEstimates) -> Array:
    """Inner products of the errors of single guesses, (space, layer, guess, guess)."""
    separate = [tuple(guess[index] for guess in means.guesses) for index in range(len(means))]
    found: Array = means.error_grams(snapshot, separate).double().cpu().numpy()
    return found


def sampled(snapshot: Snapshot, estimator: Estimator, n_guesses: int, seed: int) -> dict[str, Measured]:
    """Quantities of `moments.quantities` for the hidden layers, also together, of any estimator."""
    sample = fga.sample(snapshot, estimator, n_guesses, seed)
    gram = with_hidden(sample["gram"].values[:, : len(snapshot.layers) - 1])
    inner, norms = (sample[name].values for name in ("inner_product", "squared_norm"))
    group = (np.arange(n_guesses) // sample.attrs["block_size"]) % gram.shape[-1]
    return _of(snapshot, inner, norms, gram, group)


def _terms_of(layer: feedback.LearnedFeedback, kernel: Array | None) -> dict[str, float]:
    """The parts of the mean squared error, ⟨E ĝ, g⟩ and E‖ĝ‖²."""
    moment = layer.moments()
    mixed = layer.exact if kernel is None else kernel @ layer.exact
    products = {"inner": float(np.sum(moment.mean * mixed)), "second": moment.second_moment(kernel)}
    return layer.terms(kernel) | products


def _predicted(snapshot: Snapshot, rates: Sequence[float], steps: NDArray[np.int64]) -> dict[str, tuple]:
    """The closed forms: at every mark, at step 0 (lag and cross term) and in the stationary state (variance)."""
    weights = [jacobian.weight.double().cpu().numpy() for jacobian in snapshot.upstream]
    derivatives = [jacobian.derivative.double().cpu().numpy() for jacobian in snapshot.upstream]
    jacobians = feedback.output_jacobians(weights, derivatives)
    error = snapshot.gradients[-1].double().cpu().numpy()
    kernels = [tap.kernel.double().cpu().numpy() for tap in snapshot.taps[:-1]]
    squares = with_hidden(squared_gradients(snapshot))

    def terms(rate: float, step: float) -> dict[str, Array]:
        layers = feedback.forward_direct_feedback(jacobians, derivatives, error, rate, step)[:-1]
        rows = [
            [_terms_of(layer, kernel if space else None) for layer, kernel in zip(layers, kernels, strict=True)]
            for space in (0, 1)
        ]
        found = {name: with_hidden(np.array([[cell[name] for cell in row] for row in rows])) for name in rows[0][0]}
        inner, second = found.pop("inner"), found.pop("second")
        return found | {"efficiency": inner**2 / (squares * second) if step else np.full_like(inner, np.nan)}

    start, pooled = terms(rates[0], 0), terms(1.0, 1)
    grid = ("rate", "time", "space", "layer")
    at = [[terms(rate, step) if step else None for step in row] for rate, row in zip(rates, steps, strict=True)]
    unknown = np.full(start["lag"].shape, np.nan)
    found: dict[str, tuple] = {}
    for name in ("variance", "lag", "cross", "efficiency"):
        found[f"{name}_predicted"] = (grid, np.array([[c[name] if c else unknown for c in row] for row in at]))
    bias = np.array([[c["lag"] + c["cross"] + c["spread"] if c else unknown for c in row] for row in at])
    found["squared_bias_predicted"] = (grid, bias)
    found["mse_predicted"] = (grid, bias + found["variance_predicted"][1])
    for name, values in (("spread", start["spread"]), ("lag_start", start["lag"]), ("cross_start", start["cross"])):
        found[f"{name}_predicted"] = (("space", "layer"), values)
    found["pooled_variance_predicted"] = (("space", "layer"), pooled["variance"])
    found["stationary_variance_predicted"] = (
        ("rate", "space", "layer"),
        np.array([terms(rate, np.inf)["variance"] for rate in rates]),
    )
    return found
