"""A closed form belongs to a class: subclasses inherit it, and users register one for their own classes in one call."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import (
    ActivityPerturbation,
    Averaged,
    Backpropagation,
    DirectFeedback,
    FiniteDifference,
    Minibatch,
    OrthogonalUpstream,
    Subsampled,
    Upstream,
    WeightPerturbation,
)
from fganalysis.estimators.guesses import ActivationEstimates, WeightEstimates
from fganalysis.predictions import CLOSED_FORMS, ClosedForm, Guess, Moments, WeightMoments, registry


def captured() -> Snapshot:
    network = fga.networks.mlp([4, 6, 3], bias=False, seed=3, activation=torch.nn.Tanh, dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.tensor([0, 1, 2, 0, 1]))


SNAPSHOT = captured()


@pytest.fixture(autouse=True)
def table_as_it_was() -> Iterator[None]:
    before = dict(CLOSED_FORMS)
    yield
    CLOSED_FORMS.clear()
    CLOSED_FORMS.update(before)


@dataclass(frozen=True)
class Scaled:
    """ĝ = c g: the same every time."""

    factor: float = 0.5

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> ActivationEstimates:
        return ActivationEstimates(tuple(self.factor * g.expand(n_guesses, -1, -1) for g in snapshot.gradients))


@dataclass(frozen=True)
class AlsoScaled(Scaled):
    """A subclass, with a closed form of nobody's making."""


@dataclass(frozen=True)
class Noisy:
    """Ĝ = G + σ V at the weights, V of unit variance."""

    sigma: float = 0.1

    def __call__(self, snapshot: Snapshot, n_guesses: int, generator: torch.Generator) -> WeightEstimates:
        directions = []
        for gradient in snapshot.weight_gradients:
            noise = torch.randn(n_guesses, *gradient.shape, generator=generator, dtype=gradient.dtype)
            directions.append(gradient + self.sigma * noise)
        return WeightEstimates(directions[0].new_ones(n_guesses, len(directions)), tuple(directions))


def scaled(snapshot: Snapshot, estimator: Scaled) -> Guess:
    means = [estimator.factor * gradient.double().numpy() for gradient in snapshot.gradients]
    return Guess([Moments(m, np.zeros_like(m), np.zeros((len(m), len(m)))) for m in means], certain=True)


def noisy(snapshot: Snapshot, estimator: Noisy) -> Guess:
    means = [gradient.double().numpy() for gradient in snapshot.weight_gradients]
    within = np.array([estimator.sigma**2 * mean.size for mean in means])
    return Guess(weights=WeightMoments(means, within, np.zeros(len(means))))


def is_unknown(predicted: xr.Dataset) -> bool:
    return all(bool(predicted[name].isnull().all()) for name in predicted if name != "gradient_norm")


def test_a_users_closed_form_takes_one_call() -> None:
    assert is_unknown(fga.predict(SNAPSHOT, Scaled()))
    fga.register_closed_form(Scaled, ClosedForm(scaled))
    predicted = fga.predict(SNAPSHOT, Scaled(0.25))
    np.testing.assert_allclose(predicted["shrinkage"], 0.25)
    np.testing.assert_allclose(predicted["variance"], 0.0)
    np.testing.assert_allclose(predicted["cosine"], 1.0)
    tree = fga.diagnose(SNAPSHOT, [Scaled(), Noisy()], n_guesses=256)
    measured, theory = (tree[name].to_dataset().sel(estimator="Scaled") for name in ("measured", "predicted"))
    for name in ("shrinkage", "relative_bias", "mse", "efficiency", "cosine"):
        np.testing.assert_allclose(measured[name], theory[name], rtol=1e-10)


def test_the_examples_of_the_registry_run_as_printed() -> None:
    printed = [line for line in (registry.__doc__ or "").splitlines() if line.startswith("    ") or not line]
    names: dict[str, Any] = {}
    # Without this file's future annotations, which a dataclass looks up in its module.
    exec(compile(textwrap.dedent("\n".join(printed)), "registry", "exec", dont_inherit=True), names)
    predicted = fga.predict(SNAPSHOT, names["Scaled"](0.25))
    np.testing.assert_allclose(predicted["shrinkage"], 0.25)
    fga.register_closed_form(Scaled, ClosedForm(names["scaled_at_weights"]))
    at_weights = fga.predict(SNAPSHOT, Scaled(0.25))
    for name in ("shrinkage", "variance", "cosine"):
        np.testing.assert_allclose(at_weights[name].sel(space="weight"), predicted[name].sel(space="weight"))


def test_a_subclass_inherits_the_closed_form_unless_it_has_another() -> None:
    fga.register_closed_form(Scaled, ClosedForm(scaled))
    np.testing.assert_allclose(fga.predict(SNAPSHOT, AlsoScaled(2.0))["shrinkage"], 2.0)
    fga.register_closed_form(AlsoScaled, ClosedForm(lambda snapshot, estimator: scaled(snapshot, Scaled(3.0))))
    np.testing.assert_allclose(fga.predict(SNAPSHOT, AlsoScaled(2.0))["shrinkage"], 3.0)
    fga.register_closed_form(AlsoScaled, None)
    assert is_unknown(fga.predict(SNAPSHOT, AlsoScaled()))
    assert not is_unknown(fga.predict(SNAPSHOT, Scaled()))


@pytest.mark.parametrize(
    "known", [ActivityPerturbation(), Upstream(), OrthogonalUpstream(k=2), WeightPerturbation(), Backpropagation(),
              Minibatch(2), Averaged(WeightPerturbation(), 3), Subsampled(ActivityPerturbation(), 2)],
    ids=fga.estimators.label,
)  # fmt: skip
def test_a_subclass_of_every_family_inherits(known: object) -> None:
    fields = {name: getattr(known, name) for name in type(known).__dataclass_fields__}  # type: ignore[attr-defined]
    other = type("Subclass", (type(known),), {})(**fields)
    here, there = fga.predict(SNAPSHOT, other), fga.predict(SNAPSHOT, known)  # type: ignore[arg-type]
    for name in there:
        np.testing.assert_array_equal(here[name], there[name], err_msg=str(name))


def test_a_users_estimator_is_known_when_averaged_or_on_all_rows() -> None:
    fga.register_closed_form(Noisy, ClosedForm(noisy))
    single = fga.predict(SNAPSHOT, Noisy())["variance"].sel(space="weight")
    np.testing.assert_allclose(single.sel(layer="all"), 0.01 * (24 + 18))
    averaged = fga.predict(SNAPSHOT, Averaged(Noisy(), 4))["variance"].sel(space="weight")
    np.testing.assert_allclose(averaged, single / 4)
    np.testing.assert_array_equal(fga.predict(SNAPSHOT, Subsampled(Noisy(), 5))["variance"].sel(space="weight"), single)
    assert is_unknown(fga.predict(SNAPSHOT, Subsampled(Noisy(), 2))), "nobody has said what becomes of it on some rows"
    fga.register_closed_form(Scaled, ClosedForm(scaled))
    mean = fga.predict(SNAPSHOT, Averaged(Subsampled(Scaled(), 5), 2))
    np.testing.assert_allclose(mean["shrinkage"], 0.5)


def test_without_an_entry_nothing_is_known() -> None:
    assert is_unknown(fga.predict(SNAPSHOT, FiniteDifference()))
    assert is_unknown(fga.predict(SNAPSHOT, Averaged(FiniteDifference(), 2)))


class Branched(torch.nn.Module):
    """A branch goes around the second layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = (torch.nn.Linear(4, width) for width in (4, 4, 3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(inputs))
        outputs: torch.Tensor = self.last(hidden + torch.tanh(self.second(hidden)))
        return outputs


def test_what_a_closed_form_needs_is_asked_for_first() -> None:
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    branched = fga.capture(Branched(), torch.nn.functional.cross_entropy, inputs, torch.arange(5) % 3)
    for known in ("activity", Averaged(Upstream(), 2), ActivityPerturbation(active_only=True)):
        assert not is_unknown(fga.predict(branched, known))
    unknown = fga.predict(branched, DirectFeedback())
    assert is_unknown(unknown) and "no chain of Linear modules" in unknown.attrs["not_predicted"]
    fga.register_closed_form(Scaled, ClosedForm(scaled, needs=lambda estimator: ("upstream",)))
    with pytest.raises(ValueError, match="the network is no chain of Linear modules: between tap 'first' and"):
        fga.predict(branched, Scaled())


@pytest.mark.parametrize(
    ("estimator_class", "closed_form", "message"),
    [
        (Scaled(), ClosedForm(scaled), r"estimator_class must be a class whose instances are called with \(snapshot, "),
        ("activity", ClosedForm(scaled), r"estimator_class must be a class .*, got 'activity'"),
        (int, ClosedForm(scaled), r"estimator_class must be a class .*, got the class int"),
        (Scaled, scaled, r"closed_form must be a fganalysis\.predictions\.ClosedForm or None, got "),
    ],
)
def test_wrong_registrations_are_refused(estimator_class: type, closed_form: ClosedForm, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fga.register_closed_form(estimator_class, closed_form)
