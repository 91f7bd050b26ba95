"""Predictions on networks of every kind are exact: to 1e-10 against all values of the noise, or its quadratic forms.

`exact_moments` goes through every value of the noise on networks of a handful of noise dimensions;
`quadratic_moments` takes the forms apart on larger ones, for every law. The last tests are wrong versions of what is
predicted, each of which is caught.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.assertions.enumeration import Enumeration, exact_moments, signs, three_points
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivityPerturbation,
    Averaged,
    Backpropagation,
    DirectFeedback,
    LowRankPerturbation,
    Minibatch,
    MultiTangent,
    NewtonSchulzUpstream,
    OrthogonalUpstream,
    PreconditionedUpstream,
    Subsampled,
    SubspacePerturbation,
    Upstream,
    WeightPerturbation,
    label,
)
from fganalysis.estimators.guesses import Estimates
from fganalysis.estimators.noise import Gaussian, Noise, Rademacher, Sphere
from fganalysis.predictions import examples
from fganalysis.predictions.linear import identity
from fganalysis.predictions.weight_maps import weight_map
from fganalysis.results import schema
from tests.networks.zoo import ZOO
from tests.unit.predictions import quadratic_moments, tiny_networks
from tests.unit.predictions.quadratic_moments import Moments
from theory.linear_guess import Law
from theory.weight_space import covariances

EXACT = 1e-10  # of each quantity's scale
ENUMERATED = ("tokens", "convolution", "tied", "called_twice", "layer_norm", "recurrent")
TINY = (*ENUMERATED, "positions", "packed")
# The others of the zoo have hundreds of noise dimensions, whose squares are as many guesses.
FEW = ("mlp", "conv", "conv1d", "gru", "attention", "words", "tuple_inputs", "group_norm", "own_parameters", "adapters",
       "weighted_tokens", "ignored_tokens", "positions_first", "windows", "windows_first", "tuple_targets")  # fmt: skip
SWITCHES = [
    {"shared": shared, "slope": slope, "layers": layers}
    for shared, slope, layers in itertools.product([False, True], ["example", "batch"], ["joint", "separate"])
]
SNAPSHOTS: dict[str, Snapshot] = {}


def snapshot_of(name: str) -> Snapshot:
    if name not in SNAPSHOTS:
        if hasattr(tiny_networks, name):
            SNAPSHOTS[name] = getattr(tiny_networks, name)()
        else:
            case = ZOO[name]()
            SNAPSHOTS[name] = fga.capture(case.network, case.loss_fn, case.inputs, case.targets)
    return SNAPSHOTS[name]


def expected(snapshot: Snapshot, at_taps: Moments | None, at_weights: Moments) -> dict[str, np.ndarray]:
    """(space, layer) of what is predicted, all layers together last; guesses at taps have none for other parameters."""
    sums = np.full((4, 2, len(snapshot.weights)), np.nan)  # ‖ḡ − g‖², ⟨ḡ, g⟩, ‖g‖² and tr Cov
    for index, layer in enumerate(snapshot.weights):
        if at_taps is not None and layer.taps:
            pairs = [(at_taps.means[i], snapshot.gradients[i].flatten()) for i in layer.taps]
            mean, exact = (torch.cat(side) for side in zip(*pairs, strict=True))
            sums[:, 0, index] = sums_of(mean, exact, sum(at_taps.variances[i] for i in layer.taps))
        if at_taps is None or layer.taps:
            exact = snapshot.weight_gradients[index].flatten()
            sums[:, 1, index] = sums_of(at_weights.means[index], exact, at_weights.variances[index])
    total = np.where(np.isnan(sums).all(-1), np.nan, np.nansum(sums, axis=-1))
    error, inner, square, spread = np.concatenate([sums, total[..., None]], axis=-1)
    mean_square = error + 2 * inner - square
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "squared_bias": error,
            "variance": spread,
            "mse": error + spread,
            "shrinkage": inner / square,
            "efficiency": inner**2 / (square * (mean_square + spread)),
        }


def sums_of(mean: torch.Tensor, exact: torch.Tensor, variance: float) -> list[float]:
    return [float((mean - exact).square().sum()), float(mean @ exact), float(exact @ exact), variance]


def assert_exact(snapshot: Snapshot, estimator: Any, known: dict[str, np.ndarray]) -> None:
    assert difference(fga.predict(snapshot, estimator), known) < EXACT, label(estimator)


def difference(predicted: Any, known: dict[str, np.ndarray]) -> float:
    """The largest error, relative to the quantity or its largest part; NaN has to be where it is expected."""
    errors = []
    for name, values in known.items():
        found = predicted[name].values
        assert (np.isnan(found) == np.isnan(values)).all(), (name, found, values)
        scale = np.nanmax(np.abs(known["mse" if name in ("squared_bias", "variance") else name]))
        errors.append(np.nanmax(np.abs(found - values)) / max(scale, 1e-3))
    return max(errors)


def assert_quadratic(snapshot: Snapshot, estimator: Any) -> None:
    assert_exact(snapshot, estimator, expected(snapshot, *quadratic_moments.moments(estimator, snapshot)))


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("name", ENUMERATED)
def test_every_value_of_the_noise(name: str, switches: dict[str, Any]) -> None:
    snapshot = snapshot_of(name)
    for kind, law in ((ActivityPerturbation, signs), (ActivityPerturbation, three_points), (Upstream, signs)):
        estimator = kind(**switches)
        if law is three_points and len(snapshot.taps[0].outputs) > 3 and not switches["shared"]:
            continue  # Nine noise dimensions and more have too many points.
        known = expected(snapshot, *enumerated(snapshot, estimator, law))
        stated = Rademacher() if law is signs else Gaussian()
        assert_exact(snapshot, replace(estimator, noise=stated), known)


def enumerated(snapshot: Snapshot, estimator: Any, law: Callable[[], Enumeration]) -> tuple[Moments, Moments]:
    found = exact_moments(estimator, snapshot, law)
    assert found.activation_mean is not None and found.activation_covariance is not None
    return (
        _by_part(found.activation_mean, found.activation_covariance, [t.outputs.numel() for t in snapshot.taps]),
        _by_part(found.weight_mean, found.weight_covariance, [layer.weight.numel() for layer in snapshot.weights]),
    )


def _by_part(mean: torch.Tensor, covariance: torch.Tensor, lengths: Sequence[int]) -> Moments:
    variances = [float(part.sum()) for part in covariance.diagonal().split(list(lengths))]
    return Moments(list(mean.split(list(lengths))), variances)


def test_quadratic_forms_are_what_the_enumeration_gives() -> None:
    snapshot = snapshot_of("tied")
    for estimator in (ActivityPerturbation(noise=Rademacher()), Upstream(noise=Rademacher(), shared=True)):
        spaces = zip(
            quadratic_moments.moments(estimator, snapshot), enumerated(snapshot, estimator, signs), strict=True
        )
        for one, other in spaces:
            assert one is not None
            np.testing.assert_allclose(one.variances, other.variances, rtol=1e-10)
            for mean, same in zip(one.means, other.means, strict=True):
                torch.testing.assert_close(mean, same, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("law", [Gaussian(), Rademacher(), Sphere()], ids=lambda law: type(law).__name__)
@pytest.mark.parametrize("name", TINY)
def test_activity_perturbation_with_every_switch_and_law(name: str, law: Noise, switches: dict[str, Any]) -> None:
    snapshot, estimator = snapshot_of(name), ActivityPerturbation(noise=law, **switches)
    if name == "packed" and switches["shared"]:
        predicted = fga.predict(snapshot, estimator)
        assert predicted["variance"].isnull().all()
        assert "different numbers of rows" in predicted.attrs[schema.NOT_PREDICTED]
        return
    assert_quadratic(snapshot, estimator)


UPSTREAM = [
    Upstream(),
    Upstream(noise=Sphere(), slope="batch", layers="separate"),
    Upstream(noise=Rademacher(), shared=True),
    Upstream(noise=Sphere(), shared=True, slope="batch"),
    OrthogonalUpstream(k="rank", noise=Sphere(), slope="batch"),
    OrthogonalUpstream(k=1, noise=Rademacher(), layers="separate"),
    NewtonSchulzUpstream(k=1, noise=Rademacher(), shared=True),
    PreconditionedUpstream(noise=Sphere(), shared=True, layers="separate"),
]


@pytest.mark.parametrize("estimator", UPSTREAM, ids=label)
@pytest.mark.parametrize("name", [name for name in TINY if name != "packed"])
def test_the_upstream_family(name: str, estimator: Any) -> None:
    assert_quadratic(snapshot_of(name), estimator)


@pytest.mark.parametrize("name", FEW)
def test_networks_of_the_zoo(name: str) -> None:
    snapshot = snapshot_of(name)
    assert_quadratic(snapshot, ActivityPerturbation(noise=Sphere()))
    assert_quadratic(snapshot, Upstream(noise=Rademacher(), slope="batch"))
    assert_quadratic(snapshot, PreconditionedUpstream(shared=True))


def test_examples_that_interact_have_the_slope_of_the_batch() -> None:
    snapshot = snapshot_of("interacting")
    for layers in ("joint", "separate"):
        assert_quadratic(snapshot, ActivityPerturbation(noise=Sphere(), slope="batch", layers=layers))
        assert_quadratic(snapshot, Upstream(noise=Rademacher(), slope="batch", layers=layers))
    for estimator in (ActivityPerturbation(), ActivityPerturbation(slope="batch", shared=True), Minibatch(2)):
        predicted = fga.predict(snapshot, estimator)
        assert predicted["variance"].isnull().all()
        assert "BatchNorm in training mode" in predicted.attrs[schema.NOT_PREDICTED]
    np.testing.assert_allclose(fga.predict(snapshot, Backpropagation())["cosine"], 1.0)


WEIGHTS = [
    WeightPerturbation(noise=Rademacher()),
    WeightPerturbation(noise=Sphere(), layers="separate"),
    MultiTangent(k=2, noise=Rademacher()),
]


@pytest.mark.parametrize("estimator", WEIGHTS, ids=label)
@pytest.mark.parametrize("name", ["tied", "called_twice", "recurrent", "layer_norm", "positions", "interacting"])
def test_guesses_at_the_weights(name: str, estimator: Any) -> None:
    assert_quadratic(snapshot_of(name), estimator)


def test_parameters_of_no_tap() -> None:
    """Guesses at the activations have none for them; guesses at the weights do."""
    snapshot = snapshot_of("untapped")
    assert snapshot.layers[-1] == "untapped"
    assert_quadratic(snapshot, ActivityPerturbation(noise=Rademacher(), slope="batch"))
    predicted = fga.predict(snapshot, WeightPerturbation())
    squares = np.array([float(g.square().sum()) for g in snapshot.weight_gradients])
    sizes = np.array([layer.weight.numel() for layer in snapshot.weights])
    np.testing.assert_allclose(predicted["variance"].sel(space="weight")[:-1], sizes * squares.sum() + squares)
    unknown = fga.predict(snapshot, Subsampled(WeightPerturbation(), 1))
    assert unknown["variance"].isnull().all()
    assert "parameters of no tap" in unknown.attrs[schema.NOT_PREDICTED]


def test_parameters_without_axes() -> None:
    """Numbers, one of them unused and one of no tap: with no matrix there is no structure."""
    snapshot = tiny_networks.scalars()
    assert snapshot.layers == ("inner", "scale", "untapped")
    assert_quadratic(snapshot, ActivityPerturbation(noise=Rademacher()))
    unstructured = fga.predict(snapshot, WeightPerturbation())
    for estimator in (LowRankPerturbation(), SubspacePerturbation()):
        predicted = fga.predict(snapshot, estimator)
        for name in ("squared_bias", "variance"):
            np.testing.assert_allclose(predicted[name], unstructured[name], atol=1e-15)


@dataclass
class FixedRows:
    """Chooses the same examples every time."""

    rows: list[int]

    def draw(self, n_guesses: int, n_examples: int, size: int, generator: torch.Generator) -> torch.Tensor:
        return torch.tensor(self.rows).expand(n_guesses, -1)


@dataclass(frozen=True)
class OnRows:
    """An estimator's guesses on given examples, with its noise to be injected."""

    estimator: Any
    rows: tuple[int, ...]
    noise: Noise = field(default=Rademacher())

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> Estimates:
        around = Subsampled(replace(self.estimator, noise=self.noise), len(self.rows))
        return around.guesses_on(snapshot, torch.tensor(self.rows), n_guesses, generator)


def over_subsets(per_subset: Sequence[Moments | None], between: Sequence[torch.Tensor]) -> Moments | None:
    """Moments over equally likely subsets, from those given each."""
    known = [moments for moments in per_subset if moments is not None]
    if not known:
        return None
    means, variances = [], []
    for part in range(len(known[0].means)):
        of_subsets = torch.stack([moments.means[part] for moments in known])
        means.append(of_subsets.mean(0))
        within = sum(moments.variances[part] for moments in known) / len(known)
        variances.append(float(within + of_subsets.var(0, correction=0).sum()))
    return Moments(means, variances)


@pytest.mark.parametrize("name", ["tokens", "tied", "called_twice", "layer_norm", "positions", "packed", "recurrent"])
def test_minibatches(name: str) -> None:
    """Every subset of the examples, those of rows that serve all examples too."""
    snapshot = snapshot_of(name)
    size = snapshot.n_examples - 1
    of_subsets = []
    for rows in itertools.combinations(range(snapshot.n_examples), size):
        found = Minibatch(size, rows=FixedRows(list(rows)))(snapshot, 1, torch.Generator())
        of_subsets.append([part[0] for part in found.dense(snapshot)])
    at_taps, at_weights = (torch.stack(side) for side in zip(*of_subsets, strict=True))
    lengths = [t.outputs.numel() for t in snapshot.taps], [layer.weight.numel() for layer in snapshot.weights]
    known = [
        _by_part(values.mean(0), torch.cov(values.T, correction=0), of_space)
        for values, of_space in zip((at_taps, at_weights), lengths, strict=True)
    ]
    assert_exact(snapshot, Minibatch(size), expected(snapshot, *known))
    exact = snapshot.weight_gradients
    cosines = torch.nn.functional.cosine_similarity(at_weights, torch.cat([g.flatten() for g in exact]), dim=1)
    predicted = fga.predict(snapshot, Minibatch(size)).sel(space="weight", layer="all")
    np.testing.assert_allclose(predicted["cosine"], cosines.mean(), rtol=1e-9)


@pytest.mark.parametrize(
    "inside",
    [
        ActivityPerturbation(noise=Rademacher()),
        ActivityPerturbation(noise=Rademacher(), slope="batch"),
        ActivityPerturbation(noise=Rademacher(), shared=True, layers="separate"),
        WeightPerturbation(noise=Rademacher()),
    ],
    ids=label,
)
@pytest.mark.parametrize("name", ["tokens", "tied", "called_twice", "layer_norm"])
def test_guesses_on_some_examples(name: str, inside: Any) -> None:
    snapshot = snapshot_of(name)
    size = snapshot.n_examples - 1
    subsets = list(itertools.combinations(range(snapshot.n_examples), size))
    spaces = zip(*(quadratic_moments.moments(OnRows(inside, rows), snapshot) for rows in subsets), strict=True)
    at_taps, at_weights = (over_subsets(space, []) for space in spaces)
    assert at_weights is not None
    known = expected(snapshot, at_taps, at_weights)
    assert_exact(snapshot, Subsampled(inside, size), known)
    parts = fga.predict_variance_parts(Subsampled(inside, size), snapshot)
    np.testing.assert_allclose(parts.within.value + parts.between.value, known["variance"], rtol=1e-9)


def test_the_mean_of_several_guesses() -> None:
    snapshot = snapshot_of("tied")
    single, mean = (fga.predict(snapshot, e) for e in (ActivityPerturbation(), Averaged(ActivityPerturbation(), 4)))
    np.testing.assert_allclose(mean["variance"], single["variance"] / 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [
        ActivityPerturbation(),
        ActivityPerturbation(layers="separate"),
        ActivityPerturbation(shared=True),
        Upstream(slope="batch"),
        OrthogonalUpstream(k=1),
    ],
    ids=label,
)
@pytest.mark.parametrize("name", ["tokens", "called_twice", "tied", "layer_norm", "positions"])
def test_what_needs_more_than_two_moments_is_what_is_sampled(name: str, estimator: Any) -> None:
    """At most 4.5 standard errors of the mean of 4096 guesses."""
    snapshot = snapshot_of(name)
    predicted, measured = fga.predict(snapshot, estimator), fga.sample(snapshot, estimator, 4096, seed=1)
    for quantity in ("cosine", "descent_probability", "shrinkage", "mse", "efficiency"):
        gap = np.abs(measured[quantity] - predicted[quantity]).values
        certain = gap <= 1e-6 * np.maximum(1.0, np.abs(predicted[quantity].values))
        scores = np.where(certain, 0.0, gap / np.maximum(measured[f"{quantity}_se"].values, 1e-12))
        assert np.nanmax(scores, initial=0.0) < 4.5, quantity
    if isinstance(estimator, ActivityPerturbation):
        assert predicted["descent_probability"].notnull().all()
        known = not estimator.shared and (name != "positions" or estimator.layers == "separate")
        assert predicted["cosine"].sel(space="activation").notnull().all() == known


def test_rescaled_directions_are_what_is_sampled() -> None:
    """Of several rows in activation space alone, where the variance of each number is enough."""
    snapshot, estimator = snapshot_of("convolution"), Upstream(normalise=True)
    predicted, measured = fga.predict(snapshot, estimator), fga.sample(snapshot, estimator, 4096, seed=1)
    for quantity in ("shrinkage", "mse", "efficiency"):
        gap = np.abs(measured[quantity] - predicted[quantity]).sel(space="activation")
        assert (gap <= 4.5 * measured[f"{quantity}_se"].sel(space="activation") + 1e-9).all(), quantity
    assert predicted["variance"].sel(space="weight", layer="0").isnull()
    assert "rescaled direction" in predicted.attrs[schema.NOT_PREDICTED]


def test_a_sign_that_is_certain_on_the_sphere() -> None:
    """t² is not negative; rows that serve all examples add products of different examples' slopes."""
    for name, known in (("tokens", True), ("positions", False)):
        predicted = fga.predict(snapshot_of(name), ActivityPerturbation(noise=Sphere()))["descent_probability"]
        assert bool(predicted.sel(space="activation", layer="all").notnull()) == known
        assert predicted.sel(space="weight").isnull().all()


@pytest.mark.parametrize("name", ["tokens", "tied", "called_twice", "convolution"])
def test_the_formula_over_rows(name: str) -> None:
    """tr Cov Ĝ = Σ_e [T_e out Σ_r ‖x_r‖² + ‖G_e‖²] of Gaussian noise, on layers of one tap."""
    snapshot = snapshot_of(name)
    predicted = fga.predict(snapshot, ActivityPerturbation())["variance"].sel(space="weight").values
    slopes = sum(t.owners.summed(g.square().sum(1)) for t, g in zip(snapshot.taps, snapshot.gradients, strict=True))
    for index, layer in enumerate(snapshot.weights):
        if len(layer.taps) > 1:
            continue
        tap, gradient = snapshot.taps[layer.taps[0]], snapshot.gradients[layer.taps[0]]
        squares = tap.owners.summed(tap.inputs.square().sum(1))
        by_example = [
            (gradient[tap.owners.examples == e].T @ tap.inputs[tap.owners.examples == e]).square().sum()
            for e in range(snapshot.n_examples)
        ]
        expected_variance = (slopes * tap.units * squares).sum() + sum(by_example)
        np.testing.assert_allclose(predicted[index], expected_variance, rtol=1e-12)


def test_what_is_unknown_says_why() -> None:
    snapshot = snapshot_of("tokens")
    predicted = fga.predict(snapshot, DirectFeedback())
    assert predicted["bias"].isnull().all() and "row an example" in predicted.attrs[schema.NOT_PREDICTED]


def test_what_is_too_large_to_write_out_is_unknown_in_weight_space_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fganalysis.predictions.weight_maps.MOST_NUMBERS", 5)
    predicted = fga.predict(tiny_networks.tokens(), ActivityPerturbation())
    assert predicted["variance"].sel(space="activation").notnull().all()
    assert predicted["variance"].sel(space="weight", layer=["0", "all"]).isnull().all()
    assert predicted["bias"].notnull().all()
    assert "numbers, which is too many (at most 5)" in predicted.attrs[schema.NOT_PREDICTED]


def test_rows_given_to_the_wrong_example_are_caught() -> None:
    snapshot = tiny_networks.tokens()
    known = expected(snapshot, *quadratic_moments.moments(ActivityPerturbation(), snapshot))
    assert difference(fga.predict(snapshot, ActivityPerturbation()), known) < EXACT
    wrong = tiny_networks.tokens()
    places = examples.examples_of(wrong).places
    exchanged = places[0].copy()
    exchanged[:, 0] = exchanged[::-1, 0]
    examples.examples_of(wrong).__dict__["places"] = (exchanged, *places[1:])
    assert difference(fga.predict(wrong, ActivityPerturbation()), known) > 1e-3


@pytest.mark.parametrize("name", ["tied", "called_twice", "recurrent"])
def test_parameters_counted_once_for_every_tap_are_caught(name: str) -> None:
    """The same formulas with every tap a layer of its own give another variance."""
    snapshot = snapshot_of(name)
    layer = next(layer for layer in snapshot.weights if len(layer.taps) > 1)
    n_taps = len(snapshot.taps)
    given: dict[str, Any] = {"shared": False, "slope": "example", "layers": "joint"}
    found = []
    for groups in ([layer.taps], [[tap] for tap in layer.taps]):
        of_groups = covariances(
            examples.gradients_of(snapshot),
            [identity(snapshot, index).factor for index in range(n_taps)],
            [weight_map(snapshot, index) for index in range(n_taps)],
            groups,
            [Law(3.0, 1.0)] * n_taps,
            **given,
        )
        found.append(float(np.sum(of_groups)))
    exact = quadratic_moments.moments(ActivityPerturbation(), snapshot)[1].variances[snapshot.weights.index(layer)]
    np.testing.assert_allclose(found[0], exact, rtol=1e-10)
    assert abs(found[1] / exact - 1) > 1e-3
